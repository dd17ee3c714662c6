"""LoRA files and the transformer: side branches beside its weights, or merged into them."""

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
    """Weights that a LoRA can change, by layer."""
    return {name: tuple(layer.weight.shape) for name, layer in layers(net).items()}


def read_updates(loras: Sequence[Lora], shapes: Shapes) -> list[Iterator[Update]]:
    """The updates of each file, read as they are asked for. Raises UserError for files that do not fit, or that change
    meanwhile.

    They are read, not mapped: a mapped file that becomes shorter ends the whole program.
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
    """Which files these are; another one under the same name is another file. Raises UserError for one that is gone."""
    found = []
    for number, lora in enumerate(loras):
        try:
            found.append(file_state(lora.path))
        except LoraError as error:
            raise UserError([lora_problem(f"loras/{number}", error)]) from None
    return tuple(found)


def merge_key(loras: Sequence[Lora]) -> tuple:
    """What merged weights depend on besides the checkpoint."""
    return tuple(zip(fingerprints(loras), (lora.strength for lora in loras), strict=True))


def bind(net: PackedTransformer, loras: Sequence[Lora], bound: tuple | None = ()) -> tuple:
    """Give the network the branches of these files, each file one slot, unless it has them; and set their strengths.

    bound: the fingerprints of the files whose branches it has, None where they are unknown. Returns those of the files whose
    branches it has then. Raises UserError for a file that cannot be used; branches of those before it are left out too.
    """
    wanted = fingerprints(loras)
    if bound != wanted:
        remove_branches(net)
        found = enumerate(read_updates(loras, shapes_of(net)))
        # All are made before one is given: a file that cannot be read to its end leaves the network without any.
        made = [(update.layer, _branch(update, slot, net.dtype)) for slot, of_file in found for update in of_file]
        places = layers(net)
        for layer, branch in made:
            places[layer].branches.append(branch)
    set_strengths(net, [lora.strength for lora in loras])
    return wanted


def _branch(update: Update, slot: int, dtype: torch.dtype) -> SideBranch:
    # Copies: parts of a fused layer's factors are windows into the whole, which would stay in memory with each.
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
    """The transformer of a folder with these files merged into it; see `checkpoint.load_transformer`.

    cache: where weights of 8 bits are kept. tick: is called for every tensor.
    """
    change = LoraMerge(merged_in, shapes_of(checkpoint.meta_transformer(folder))) if merged_in else None
    kept = cached_weights(cache, folder, dtype, storage, merged_in, device, beside_card)
    return checkpoint.load_transformer(folder, dtype, storage, change, device, beside_card, kept, tick)


class LoraMerge:
    """change(name, tensor) for loading a checkpoint: the same sum as the branches make, worked into the weights.

    Raises UserError for files that do not fit weights of these shapes.
    """

    def __init__(self, loras: Sequence[Lora], shapes: Shapes):
        self._additions: dict[str, list[tuple[Update, float]]] = defaultdict(list)
        for lora, found in zip(loras, read_updates(loras, shapes), strict=True):
            for update in found:
                self._additions[f"{update.layer}.weight"].append((update, lora.strength))

    def changes(self, name: str) -> bool:
        """Say whether one of the files changes the weight of this name."""
        return name in self._additions

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor with what the files add to the weight of this name."""
        return merged(tensor, self._additions[name]) if self.changes(name) else tensor
