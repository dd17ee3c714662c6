"""A checkpoint's files as they lie on the disk: JSON, and what the headers of safetensors files say.

Only headers are read, so that 40 GB are judged in milliseconds, and without torch, so that a page can say what is there.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
# A file's identity reads it whole up to this size; of a larger one so many pieces.
SMALL_FILE = 32 * 2**20
SAMPLES, SAMPLE = 16, 2**16


class CheckpointError(Exception):
    """key: "file_missing", "file_damaged", "tensor_missing", "tensor_unknown", "tensor_shape" or "config_damaged".

    values name the file or tensor and what is wrong with it.
    """

    def __init__(self, key: str, **values: Any):
        self.key, self.values = key, values
        super().__init__(f"{key}: {values}")


@dataclass(frozen=True)
class Tensors:
    """shapes by tensor name, and the file that holds each. dtypes, in the format's words, and places, (first byte, end) in the
    file: of tensors that are read by them."""

    shapes: dict[str, tuple[int, ...]]
    files: dict[str, Path]
    dtypes: dict[str, str] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)


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
    """Names, shapes, dtypes and places of all tensors; raises CheckpointError for a file that is cut off or not safetensors."""
    found = Tensors({}, {})
    for file in files:
        start, header = _header(file)
        for name, (dtype, shape, begin, end) in header.items():
            found.shapes[name], found.files[name], found.dtypes[name] = shape, file, dtype
            found.places[name] = start + begin, start + end
    return found


def _header(file: Path) -> tuple[int, dict[str, tuple[str, tuple[int, ...], int, int]]]:
    """Where data begins, and (dtype, shape, first byte, end) of each tensor from there."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size - 8:
                raise CheckpointError("file_damaged", file=str(file), expected=length + 8, actual=size)
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        kinds = {name: (str(entry["dtype"]), tuple(entry["shape"])) for name, entry in header.items()}
        entries = {name: (*kinds[name], *map(int, entry["data_offsets"])) for name, entry in header.items()}
        expected = 8 + length + max((end for _, _, _, end in entries.values()), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError("file_damaged", file=str(file), expected="safetensors", actual=size) from None
    if size != expected:
        raise CheckpointError("file_damaged", file=str(file), expected=expected, actual=size)
    return 8 + length, entries


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


def identity(file: Path) -> str:
    """Tells this file from any other, whatever its name and place: a hash of its content, or of a large file of size, time of
    change, its beginning and pieces spread over it. Raises OSError."""
    stat = file.stat()
    total = hashlib.sha256(str(stat.st_size).encode())
    with file.open("rb") as stream:
        if stat.st_size <= SMALL_FILE:
            total.update(stream.read())
        else:
            total.update(str(stat.st_mtime_ns).encode())
            for number in range(SAMPLES):
                stream.seek((stat.st_size - SAMPLE) * number // (SAMPLES - 1))
                total.update(stream.read(SAMPLE))
    return total.hexdigest()


def folder_identity(folder: Path) -> str:
    """Tells what is in a folder, by the files' names in it and their content. Raises OSError."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return hashlib.sha256("\n".join(f"{file.name} {identity(file)}" for file in files).encode()).hexdigest()
