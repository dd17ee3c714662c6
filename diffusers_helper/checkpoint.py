"""Checkpoint folders: what they hold, whether they are whole, and loading the transformer from one.

Only the headers of safetensors files are read for a check, so that 40 GB are judged in milliseconds, before any work starts.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import logging as transformers_logging

from diffusers_helper.models.transformer import PackedTransformer, TransformerConfig

Shapes = Mapping[str, tuple[int, ...]]


class CheckpointError(Exception):
    """key: "file_missing", "file_damaged", "tensor_missing", "tensor_unknown", "tensor_shape" or "config_damaged".

    values name the file or tensor and what is wrong with it.
    """

    def __init__(self, key: str, **values: Any):
        self.key, self.values = key, values
        super().__init__(f"{key}: {values}")


@dataclass(frozen=True)
class Tensors:
    """shapes by tensor name, and the file that holds each."""

    shapes: dict[str, tuple[int, ...]]
    files: dict[str, Path]


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


def read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError("file_missing", file=str(path)) from None
    except (OSError, ValueError) as error:
        raise CheckpointError("config_damaged", file=str(path), reason=str(error)[:200]) from None
    if not isinstance(document, dict):
        raise CheckpointError("config_damaged", file=str(path), reason="not a JSON object")
    return document


def weight_files(folder: Path, stem: str) -> list[Path]:
    """`stem`.safetensors, or the shards its index names. Raises CheckpointError naming the first missing file."""
    index = folder / f"{stem}.safetensors.index.json"
    single = folder / f"{stem}.safetensors"
    if not index.exists():
        files = [single]
    else:
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
            raise CheckpointError("config_damaged", file=str(index), reason="no weight_map of file names")
        files = [folder / name for name in sorted(set(names.values()))]
    for file in files:
        if not file.is_file():
            raise CheckpointError("file_missing", file=str(file))
    return files


def read_headers(files: list[Path]) -> Tensors:
    """Names and shapes of all tensors; raises CheckpointError for a file that is cut off or not safetensors."""
    shapes: dict[str, tuple[int, ...]] = {}
    where: dict[str, Path] = {}
    for file in files:
        for name, shape in _header(file).items():
            shapes[name] = shape
            where[name] = file
    return Tensors(shapes, where)


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size - 8:
                raise CheckpointError("file_damaged", file=str(file), expected=length + 8, actual=size)
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        expected = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError("file_damaged", file=str(file), expected="safetensors", actual=size) from None
    if size != expected:
        raise CheckpointError("file_damaged", file=str(file), expected=expected, actual=size)
    return shapes


def compare(expected: Shapes, found: Tensors, folder: Path, *, strict: bool) -> None:
    """Raises CheckpointError for the first tensor that is missing, of another shape or, if `strict`, unknown."""
    for name, shape in expected.items():
        if name not in found.shapes:
            raise CheckpointError("tensor_missing", folder=str(folder), tensor=name)
        if found.shapes[name] != tuple(shape):
            file = str(found.files[name])
            raise CheckpointError("tensor_shape", file=file, tensor=name, expected=shape, actual=found.shapes[name])
    unknown = [name for name in found.shapes if name not in expected]
    if strict and unknown:
        raise CheckpointError("tensor_unknown", file=str(found.files[unknown[0]]), tensor=unknown[0])


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


def load_transformer(folder: Path, dtype: torch.dtype) -> PackedTransformer:
    """Strict, tensor by tensor from memory-mapped files; on the CPU."""
    net = meta_transformer(folder)
    tensors = {}
    for file in weight_files(folder, "diffusion_pytorch_model"):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                tensors[name] = opened.get_tensor(name).to(dtype)
    net.load_state_dict(tensors, strict=True, assign=True)
    return net.eval().requires_grad_(False)
