"""Check that a checkpoint folder holds a whole model, before any work starts, and load the transformer from one."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from diffusers_helper.checkpoints.files import CheckpointError, compare, read_headers, read_json, weight_files
from diffusers_helper.checkpoints.reading import Reader
from diffusers_helper.interrupt import Tick, never
from diffusers_helper.memory.slabs import Arena, Place, Spec, lay_out
from diffusers_helper.memory.streaming import tensors_of
from diffusers_helper.models.linear import STORAGES, quantise
from diffusers_helper.models.transformer import PackedTransformer, TransformerConfig

T = TypeVar("T")

STEM = "diffusion_pytorch_model"
# Numbers of a weight that are quantised at a time on the CPU.
QUANTISED_AT_ONCE = 2**20
CPU = torch.device("cpu")


@contextmanager
def quiet(tick: Tick = never) -> Iterator[None]:
    """Switch transformers' progress bars off, inside of the block, and call tick for every tensor in their place.

    Loading from a local disk takes seconds, and the bars would tear up our own output.
    """

    def bar(factory: Callable[..., Any], args: tuple, settings: dict[str, Any]) -> Any:
        return ticking(args[0], tick) if args else factory(*args, **settings)

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    before = transformers_logging.set_tqdm_hook(bar)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(before)
        if shown:
            transformers_logging.enable_progress_bar()


def ticking(things: Iterable[T], tick: Tick) -> Iterator[T]:
    """Yield the things, and call `tick` before each."""
    for thing in things:
        tick()
        yield thing


def meta_transformer(folder: Path) -> PackedTransformer:
    """Return the transformer that config.json describes, without memory. Raises CheckpointError."""
    path = folder / "config.json"
    try:
        config = TransformerConfig.from_json(read_json(path))
        with torch.device("meta"):
            return PackedTransformer(config)
    # Numbers that cannot be sizes are noticed only when layers are made of them.
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError("config_damaged", file=str(path), reason=str(error)[:200]) from None


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a network's state, by name."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def check_transformer(folder: Path) -> int:
    """Check that names and shapes of the tensors in a folder are exactly the model's; return the bytes of the files.

    Raises CheckpointError.
    """
    net = meta_transformer(folder)
    files = weight_files(folder, STEM)
    compare(shapes_of(net), read_headers(files), folder, strict=True)
    return sum(file.stat().st_size for file in files)


class Change(Protocol):
    """Change weights while they are loaded, such as by merging a LoRA into them."""

    def changes(self, name: str) -> bool:
        """Return whether the tensor of this name becomes another one."""
        ...

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Return the changed tensor of this name, in the dtype and shape of the given one."""
        ...


class SlabStore(Protocol):
    """Keep what loading made, so that it need not be made again."""

    def load(self, places: Mapping[str, Place], size: int) -> Tensor | None:
        """Return the saved buffer of `size` bytes, or None if none with these places was saved."""
        ...

    def save(self, arena: Arena) -> None:
        """Save a buffer that loading has filled, for `load`."""
        ...


def load_transformer(
    folder: Path,
    dtype: torch.dtype,
    storage: str | None = None,
    change: Change | None = None,
    device: torch.device = CPU,
    beside_card: bool = False,
    store: SlabStore | None = None,
    tick: Tick = never,
) -> PackedTransformer:
    """Load the transformer to the CPU, tensor by tensor, each into its place in a slab.

    Names and shapes must be exactly the model's, otherwise CheckpointError is raised. The host holds the slabs and one tensor
    besides.

    storage: "int8" or "float8" keeps the weights of the blocks' linear layers in 8 bits. change: changes tensors in `dtype`,
    before they are quantised. device: where tensors are changed and quantised. store: where finished slabs come from, and go
    to. tick: is called for every tensor.

    Each group of weights that a step uses is one slab. beside_card: the other weights are copied to a card, not computed with
    here; those that need no conversion then stay in the files. Without a card they lie in slabs too, because kernels round
    differently over memory that begins anywhere.
    """
    net = meta_transformer(folder).requires_grad_(False)
    found = read_headers(weight_files(folder, STEM))
    compare(shapes_of(net), found, folder, strict=True)
    narrow = {f"{name}.weight": layer for name, layer in net.block_linears().items()} if storage else {}
    with Reader(found) as reader:
        same = {name for name, (kept, _) in reader.specs.items() if kept == dtype and not (change and change.changes(name))}
        slabs = lay_slabs(net, dtype, storage, same if beside_card else ())
        in_slabs = {name for slab in slabs for name in slab}
        layout = slabs, [row for row in net.contiguous() if in_slabs.issuperset(row)]
        buffer = store.load(*lay_out(*layout)) if store else None
        arena = Arena(*layout, buffer)
        if buffer is None:
            for name in (name for name in reader.names() if name in arena):
                tick()
                if name in same and name not in narrow:
                    reader.into(name, arena.bytes_of(name))
                    continue
                tensor = reader.tensor(name)
                if change and change.changes(name):
                    tensor = change(name, tensor.to(dtype).to(device))
                if storage and name in narrow:
                    _put_quantised(arena, name, tensor, storage, dtype, device)
                else:
                    # `copy_` also converts.
                    arena.view(name).copy_(tensor)
            if store is not None:
                store.save(arena)
        tensors = {name: arena.view(name) if name in arena else reader.window(name) for name in reader.specs}
    for name, layer in narrow.items():
        layer.weight_scale = tensors[f"{name}_scale"] = arena.view(f"{name}_scale")
    net.load_state_dict(tensors, strict=True, assign=True)
    return net.eval()


def _put_quantised(arena: Arena, name: str, tensor: Tensor, storage: str, dtype: torch.dtype, device: torch.device) -> None:
    """Quantise a weight into its place, some rows at a time on the CPU and all of them at once on a card.

    Rows are quantised independently. Quantising takes several times the size of its input, which would count in the host's
    memory.
    """
    rows = max(1, QUANTISED_AT_ONCE // tensor.shape[1]) if device.type == "cpu" else len(tensor)
    weights, scales = arena.view(name).split(rows), arena.view(f"{name}_scale").split(rows)
    for part, weight, scale in zip(tensor.split(rows), weights, scales, strict=True):
        made = quantise(part.to(dtype).to(device), storage, dtype)
        weight.copy_(made[0])
        scale.copy_(made[1])


def lay_slabs(
    net: PackedTransformer, dtype: torch.dtype, storage: str | None, in_files: Container[str]
) -> list[dict[str, Spec]]:
    """Return what each slab in host memory shall hold: dtype and shape of its tensors by name.

    The scales of a weight of 8 bits are named like the weight, with `_scale` behind. in_files: names of tensors that may stay
    in the files; those that a step uses lie in slabs nevertheless.
    """
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    narrow = {f"{name}.weight" for name in net.block_linears()} if storage else set()
    parts = net.weight_groups()
    slabs: list[dict[str, Spec]] = []
    for modules in (*parts.step.values(), parts.always, *parts.job.values()):
        slab: dict[str, Spec] = {}
        for tensor in tensors_of(modules):
            name, shape = names[id(tensor)], tuple(tensor.shape)
            if storage and name in narrow:
                slab |= {name: (STORAGES[storage][0], shape), f"{name}_scale": (dtype, (shape[0], 1))}
            elif len(slabs) < len(parts.step) or name not in in_files:
                slab[name] = dtype, shape
        slabs.append(slab)
    return slabs
