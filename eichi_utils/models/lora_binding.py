"""Bind LoRA files to the transformer, as side branches beside its weights or merged into them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusers_helper.checkpoints import checkpoint
from diffusers_helper.checkpoints.files import CheckpointError
from diffusers_helper.checkpoints.reading import read_tensor
from diffusers_helper.interrupt import Tick, never
from diffusers_helper.models.hadamard import HadamardBranch
from diffusers_helper.models.linear import KroneckerBranch, LowRankBranch, SideBranch, layers, remove_branches, set_strengths
from diffusers_helper.models.transformer import PackedTransformer
from eichi_utils.files.disk_cache import DiskCache
from eichi_utils.models.weight_cache import cached_weights
from eichi_utils.problems import UserError
from eichi_utils.requests.loras import Lora, file_state, layouts, lora_problem
from lora_utils.factors import Hadamard, Kronecker, Update, merged, updates
from lora_utils.files import Header, LoraError
from lora_utils.formats import Layout, Shapes
from lora_utils.peft import scaling_metadata


def shapes_of(net: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights that a LoRA can change, by layer."""
    return {name: tuple(layer.weight.shape) for name, layer in layers(net).items()}


def read_updates(loras: Sequence[Lora], shapes: Shapes) -> list[Iterator[Update]]:
    """Return an iterator over each file's updates, which reads them one by one.

    shapes: of the weights by layer. Raises UserError for files that do not fit; the iterators raise it for files that have
    changed since. Files are read, not mapped: a mapped file that another program shortens crashes this one.
    """
    judged = layouts(loras, shapes)
    return [_updates(number, lora.path, *known) for number, (lora, known) in enumerate(zip(loras, judged, strict=True))]


def _updates(number: int, path: Path, header: Header, layout: Layout) -> Iterator[Update]:
    def tensor(key: str) -> Tensor:
        try:
            return read_tensor(path, header.places[key], header.dtypes[key], header.shapes[key])
        except CheckpointError:
            raise LoraError("changed", file=str(path)) from None

    try:
        yield from updates(layout, tensor, scaling_metadata(path, header))
    except LoraError as error:
        raise UserError([lora_problem(f"loras/{number}", error)]) from None


def fingerprints(loras: Sequence[Lora]) -> tuple[tuple, ...]:
    """Return what identifies the contents of these files, so that a replaced file counts as another one.

    Raises UserError for a file that does not exist.
    """
    found = []
    for number, lora in enumerate(loras):
        try:
            found.append(file_state(lora.path))
        except LoraError as error:
            raise UserError([lora_problem(f"loras/{number}", error)]) from None
    return tuple(found)


def merge_key(loras: Sequence[Lora]) -> tuple:
    """Return a key of all that merged weights depend on besides the checkpoint: the files and their strengths."""
    return tuple(zip(fingerprints(loras), (lora.strength for lora in loras), strict=True))


def bind(net: PackedTransformer, loras: Sequence[Lora], bound: tuple | None = ()) -> tuple:
    """Give the network the side branches of these files, one slot for each file, unless it has them; and set their strengths.

    bound: fingerprints of the files whose branches it has, None if unknown. Returns the fingerprints of these files. Raises
    UserError for a file that cannot be used; then no branch of any of the files is added.
    """
    wanted = fingerprints(loras)
    if bound != wanted:
        remove_branches(net)
        found = enumerate(read_updates(loras, shapes_of(net)))
        # All branches are made before the first is added, so that a file that cannot be read leaves the network without any.
        made = [(update.layer, _branch(update, slot, net.dtype)) for slot, of_file in found for update in of_file]
        places = layers(net)
        for layer, branch in made:
            places[layer].branches.append(branch)
    set_strengths(net, [lora.strength for lora in loras])
    return wanted


def _branch(update: Update, slot: int, dtype: torch.dtype) -> SideBranch:
    # The factors are copied, because those of a fused layer's parts are views that would keep the whole in memory.
    if isinstance(update, Kronecker):
        left, right = (factor.to(dtype, copy=True) for factor in (update.left, update.right))
        return KroneckerBranch(slot, left, right, update.scale, update.rows)
    if isinstance(update, Hadamard):
        factors = (update.up_1, update.down_1, update.up_2, update.down_2)
        up_1, down_1, up_2, down_2 = (factor.to(dtype, copy=True) for factor in factors)
        return HadamardBranch(slot, up_1, down_1, up_2, down_2, update.scale)
    up, down = (factor.to(dtype, copy=True) for factor in (update.up, update.down))
    return LowRankBranch(slot, up, down, update.scale)


def load_transformer(
    folder: Path,
    dtype: torch.dtype,
    storage: str | None,
    merged_in: Sequence[Lora],
    device: torch.device,
    beside_card: bool,
    cache: DiskCache,
    tick: Tick = never,
) -> PackedTransformer:
    """Load the transformer of a folder with LoRA merged into its weights; see `checkpoint.load_transformer`.

    merged_in: LoRA to merge. beside_card: whether weights are copied to a card. cache: where 8-bit weights are kept. tick:
    called for every tensor. Raises UserError for LoRA files that do not fit, CheckpointError for a folder that cannot be used.
    """
    change = LoraMerge(merged_in, shapes_of(checkpoint.meta_transformer(folder))) if merged_in else None
    kept = cached_weights(cache, folder, dtype, storage, merged_in, device, beside_card)
    return checkpoint.load_transformer(folder, dtype, storage, change, device, beside_card, kept, tick)


class LoraMerge:
    """Add LoRA to weights while a checkpoint is loaded, as a `checkpoint.Change`: the same sum that side branches compute.

    shapes: of the weights by layer. Raises UserError for files that do not fit them.
    """

    def __init__(self, loras: Sequence[Lora], shapes: Shapes):
        self._additions: dict[str, list[tuple[Update, float]]] = defaultdict(list)
        for lora, found in zip(loras, read_updates(loras, shapes), strict=True):
            for update in found:
                self._additions[f"{update.layer}.weight"].append((update, lora.strength))

    def changes(self, name: str) -> bool:
        """Tell whether one of the files changes the tensor of this name."""
        return name in self._additions

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Return the tensor of this name with the files' updates added."""
        return merged(tensor, self._additions[name]) if self.changes(name) else tensor
