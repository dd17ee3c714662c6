"""Checkpoint folders: whether they hold a whole model, and loading the transformer from one, before any work starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils import logging as transformers_logging

from diffusers_helper.files import CheckpointError, compare, read_headers, read_json, weight_files
from diffusers_helper.models.linear import quantise
from diffusers_helper.models.transformer import PackedTransformer, TransformerConfig

CPU = torch.device("cpu")


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars: loading from a local disk takes seconds, and they would tear up ours."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def meta_transformer(folder: Path) -> PackedTransformer:
    """The transformer that config.json describes, without memory."""
    path = folder / "config.json"
    try:
        config = TransformerConfig.from_json(read_json(path))
        with torch.device("meta"):
            return PackedTransformer(config)
    # Numbers that are no sizes show only where layers are made of them.
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError("config_damaged", file=str(path), reason=str(error)[:200]) from None


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def check_transformer(folder: Path) -> int:
    """Names and shapes must be exactly the model's. Returns the bytes of the files."""
    net = meta_transformer(folder)
    files = weight_files(folder, "diffusion_pytorch_model")
    compare(shapes_of(net), read_headers(files), folder, strict=True)
    return sum(file.stat().st_size for file in files)


def load_transformer(
    folder: Path,
    dtype: torch.dtype,
    storage: str | None = None,
    change: Callable[[str, Tensor], Tensor] | None = None,
    device: torch.device = CPU,
) -> PackedTransformer:
    """Strict, tensor by tensor from memory-mapped files; on the CPU.

    storage: "int8" or "float8" keeps the weights of the blocks' linear layers in 8 bits. change(name, tensor): what becomes of
    a tensor, in `dtype`, before that. device: where that is worked out, so that memory holds one wide tensor at a time.
    """
    net = meta_transformer(folder).requires_grad_(False)
    narrow = {f"{name}.weight": layer for name, layer in net.block_linears().items()} if storage else {}
    tensors = {}
    for file in weight_files(folder, "diffusion_pytorch_model"):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                tensor = opened.get_tensor(name).to(dtype)
                if change is not None:
                    tensor = change(name, tensor.to(device))
                if name in narrow:
                    tensor, scale = quantise(tensor.to(device), storage, dtype)
                    narrow[name].weight_scale = scale.to(CPU)
                tensors[name] = tensor.to(CPU)
    scales = {f"{name}_scale": layer.weight_scale for name, layer in narrow.items() if layer.weight_scale is not None}
    net.load_state_dict({**tensors, **scales}, strict=True, assign=True)
    return net.eval()
