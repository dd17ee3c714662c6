"""Read what a checkpoint's files say of themselves: JSON, and the headers of safetensors files.

Only headers are read, so that 40 GB are judged in milliseconds, and without torch, so that a page can say what is there.
`safetensors.safe_open` does not serve: it does not say where a tensor lies, and of a damaged file only that it is damaged.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
FORMAT = "safetensors"
# Bits of one number of each dtype, by the format's names (https://huggingface.co/docs/safetensors).
BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
# Limits on a header's length: LARGE_HEADER bytes, and SMALL_HEADER plus the file's size / HEADER_PART. A header of 10,000
# tensors takes about a megabyte, and a film's request in it half a megabyte at most. Parsing takes ten times the length in
# memory, and thirty times for brackets alone, which MOST_BRACKETS limits.
SMALL_HEADER, LARGE_HEADER, HEADER_PART = 4 * 2**20, 16 * 2**20, 8
MOST_BRACKETS = 2**17
# Real names of tensors are less than a quarter as long; systems count a file's bytes in 63 bits; tensors have few dimensions.
LONGEST_NAME, LARGEST_SIZE, MOST_SIDES = 500, 2**63 - 1, 8
# Bytes. The JSON files read here have some kilobytes, an index 100; only a tokenizer's, which transformers reads, are longer.
LONGEST_JSON = 16 * 2**20
# `identity` reads a file of up to SMALL_FILE bytes whole, and SAMPLES pieces of SAMPLE bytes of a larger one.
SMALL_FILE = 32 * 2**20
SAMPLES, SAMPLE = 16, 2**16


class CheckpointError(Exception):
    """Say what is wrong with a checkpoint.

    key: "file_missing", "file_damaged", "tensor_missing", "tensor_unknown", "tensor_shape" or "config_damaged". values name the
    file or tensor and what is wrong with it.
    """

    def __init__(self, key: str, **values: Any):
        self.key, self.values = key, values
        super().__init__(f"{key}: {values}")


@dataclass(frozen=True)
class Header:
    """Hold what a safetensors file's header says of its tensors, by name.

    dtypes: in the format's words. places: (first byte, end) in the file. metadata: the texts beside the tensors.
    """

    dtypes: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    places: dict[str, tuple[int, int]]
    metadata: dict[str, str]


@dataclass(frozen=True)
class Tensors:
    """Hold what the headers of a model's files say of its tensors, by name.

    files: the file that holds each. dtypes (in the format's words) and places (first byte, end in that file) are needed only
    for tensors that are read by them.
    """

    shapes: dict[str, tuple[int, ...]]
    files: dict[str, Path]
    dtypes: dict[str, str] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises CheckpointError ("file_missing", "config_damaged")."""
    if not path.is_file():
        raise CheckpointError("file_missing", file=str(path))
    try:
        with path.open("rb") as stream:
            data = stream.read(LONGEST_JSON + 1)
        if len(data) > LONGEST_JSON:
            raise ValueError(f"longer than {LONGEST_JSON // 2**20} MB")
        document = json.loads(data.decode("utf-8-sig"), parse_float=_finite, parse_constant=_finite)
    except FileNotFoundError:
        raise CheckpointError("file_missing", file=str(path)) from None
    except RecursionError:
        raise CheckpointError("config_damaged", file=str(path), reason="nested too deeply") from None
    except (OSError, ValueError) as error:
        raise CheckpointError("config_damaged", file=str(path), reason=str(error)[:200]) from None
    if not isinstance(document, dict):
        raise CheckpointError("config_damaged", file=str(path), reason="not a JSON object")
    return document


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is no number")
    return number


def weight_files(folder: Path, stem: str) -> list[Path]:
    """Return a model's weight files: `stem`.safetensors, or the shards that its index names.

    Raises CheckpointError for the first missing file, or for a damaged index.
    """
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
    """Read names, shapes, dtypes and places of all tensors in the files.

    Raises CheckpointError for a file that is missing, cut off or not safetensors.
    """
    found = Tensors({}, {})
    for file in files:
        header = read_header(file)
        found.shapes.update(header.shapes)
        found.dtypes.update(header.dtypes)
        found.places.update(header.places)
        found.files.update(dict.fromkeys(header.shapes, file))
    return found


def read_header(file: Path) -> Header:
    """Read the header of one safetensors file. Raises CheckpointError ("file_missing" for what is no regular file,
    "file_damaged").
    """
    if not file.is_file():
        raise CheckpointError("file_missing", file=str(file))
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(LARGE_HEADER, SMALL_HEADER + size // HEADER_PART, size - 8):
                raise ValueError("a header of impossible length")
            header = _parsed(stream.read(length), 8 + length)
    except OSError as error:
        expected = error.strerror or str(error)
        raise CheckpointError("file_damaged", file=str(file), expected=expected, actual=size) from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise CheckpointError("file_damaged", file=str(file), expected=FORMAT, actual=size) from None
    expected = max((end for _, end in header.places.values()), default=8 + length)
    if size != expected:
        raise CheckpointError("file_damaged", file=str(file), expected=expected, actual=size)
    return header


def _parsed(data: bytes, start: int) -> Header:
    """Parse a header's text as strictly as the format's own reader does.

    start: where data begins in the file. Raises ValueError, LookupError, TypeError, AttributeError or RecursionError.
    """
    if data.count(b"{") > MOST_BRACKETS or data.count(b"[") > MOST_BRACKETS:
        raise ValueError("more brackets than any network has tensors")
    document = json.loads(data.decode("utf-8"), parse_float=_no_size, parse_constant=_no_size, object_pairs_hook=_once)
    metadata = document.pop("__metadata__", None)
    header = Header({}, {}, {}, {} if metadata is None else metadata)
    for text in (*header.metadata, *header.metadata.values()):
        # Raises a ValueError for half a surrogate pair, which could be neither written nor shown.
        text.encode()
    for name, entry in document.items():
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise ValueError("a name that cannot be shown")
        if not isinstance(shape, list) or len(shape) > MOST_SIDES or not all(map(_is_size, (*shape, begin, end))):
            raise ValueError(f"{name}: sides or places that are none")
        if (end - begin) * 8 != math.prod(shape) * BITS[dtype]:
            raise ValueError(f"{name}: {end - begin} bytes")
        header.dtypes[name], header.shapes[name], header.places[name] = dtype, tuple(shape), (start + begin, start + end)
    # The format asks that tensors follow each other without gaps.
    if any(begin != end for (_, end), (begin, _) in pairwise([(start, start), *sorted(header.places.values())])):
        raise ValueError("gaps")
    return header


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_SIZE


def _no_size(number: str) -> None:
    raise ValueError(f"{number[:20]} is no size")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of a JSON object's pairs. Raises ValueError if a name stands there twice.

    Of two tensors of one name nobody knows which is meant.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice")
    return found


def compare(expected: Shapes, found: Tensors, folder: Path, *, strict: bool) -> None:
    """Compare the tensors of a model with those found in its files.

    Raises CheckpointError for the first that is missing, of another shape or, if `strict`, unknown.
    """
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
    """Return a hash that tells a file from any other, whatever its name and place. Raises OSError.

    It is made of the file's content, or for a large file of its size, time of change, beginning and pieces spread over it.
    """
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
    """Return a hash of the names and content of the files in a folder. Raises OSError."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return hashlib.sha256("\n".join(f"{file.name} {identity(file)}" for file in files).encode()).hexdigest()
