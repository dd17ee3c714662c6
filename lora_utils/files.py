"""Safetensors files: their headers without their data, and writing them tensor by tensor.

The format: 8 bytes with the header's length, a JSON header with dtype, shape and place of every tensor, then the data
(https://huggingface.co/docs/safetensors). Nothing here needs torch.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip
# Files that torch.save writes; opening one runs what its author wanted.
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
# A header of 10,000 tensors takes about a megabyte.
LONGEST_HEADER = 100 * 2**20
# Bytes that tell a safetensors file from another.
BEGINNING = 40


class LoraError(Exception):
    """key: what is wrong, as the texts call it after "problem.lora_"; values name file and fault."""

    def __init__(self, key: str, **values: Any):
        self.key, self.values = key, values
        super().__init__(f"{key}: {values}")


@dataclass(frozen=True)
class Header:
    """dtypes (in the format's own words) and shapes by tensor name, in the file's order.

    places: (first byte, end) of each tensor in the file that was read.
    """

    dtypes: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict, compare=False)


def read_header(path: Path) -> Header:
    """Raises LoraError for a file that is missing, of another kind, cut off or damaged; each in a way of its own."""
    name = str(path)
    if os.path.isdir(path):
        raise LoraError("folder", file=name)
    if not os.path.isfile(path):
        raise LoraError("missing", file=name)
    if path.suffix.lower() != ".safetensors":
        if path.suffix.lower() in PICKLES:
            raise LoraError("pickle", file=name, suffix=path.suffix, source=repr(path.name), target=repr(_converted(path)))
        raise LoraError("suffix", file=name)
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(BEGINNING)
            length = int.from_bytes(start[:8], "little")
            if not start:
                raise LoraError("empty", file=name)
            if len(start) >= 8 and (length > LONGEST_HEADER or start[8:9] not in (b"{", b"")):
                raise LoraError("not_safetensors", file=name, begins=_shown(start))
            if len(start) < 8 or length > size - 8:
                raise LoraError("header_cut", file=name, actual=size)
            stream.seek(8)
            entries = json.loads(stream.read(length))
        metadata = {str(key): str(value) for key, value in entries.pop("__metadata__", {}).items()}
        dtypes = {key: entry["dtype"] for key, entry in entries.items()}
        shapes = {key: tuple(int(side) for side in entry["shape"]) for key, entry in entries.items()}
        places = {key: tuple(map(int, entry["data_offsets"])) for key, entry in entries.items()}
        expected = 8 + length + max((end for _, end in places.values()), default=0)
        whole = all(end - begin == prod(shapes[key]) * BITS[dtypes[key]] // 8 for key, (begin, end) in places.items())
        # One after the other, without gaps, as the format asks.
        whole = whole and all(begin == end for (_, end), (begin, _) in pairwise([(0, 0), *sorted(places.values())]))
    except OSError as error:
        raise LoraError("unreadable", file=name, reason=error.strerror or str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise LoraError("header", file=name) from None
    if not whole:
        raise LoraError("header", file=name)
    if size != expected:
        raise LoraError("damaged", file=name, expected=expected, actual=size)
    return Header(
        dtypes, shapes, metadata, {key: (8 + length + begin, 8 + length + end) for key, (begin, end) in places.items()}
    )


def _converted(path: Path) -> str:
    """What a pickle is called after it is converted; some are called `ink.safetensors.pt`."""
    stem = path.stem
    return stem if stem.lower().endswith(".safetensors") else f"{stem}.safetensors"


def _shown(start: bytes) -> str:
    """A file's first bytes as a person can read them: the beginning of a text, or numbers."""
    text = start.decode("utf-8", errors="ignore").split("\n")[0].strip()
    return text if text.isprintable() and len(text) > 3 else start[:8].hex(" ")


def write_stream(path: Path, header: Header, tensors: Iterable[bytes | memoryview]) -> None:
    """Write a file one tensor after the other; only one of them needs to be in memory.

    tensors: the bytes of each tensor, little-endian and contiguous, in the order of the header's names.
    Raises ValueError if one has another length than dtype and shape say.
    """
    entries: dict[str, Any] = {"__metadata__": dict(header.metadata)} if header.metadata else {}
    place = 0
    lengths = []
    for name, dtype in header.dtypes.items():
        length = prod(header.shapes[name]) * BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(header.shapes[name]), "data_offsets": [place, place + length]}
        place += length
        lengths.append(length)
    text = json.dumps(entries, separators=(",", ":")).encode()
    # Data begins at a multiple of 8, as the format asks.
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)))
        stream.write(text)
        for name, data, length in zip(header.dtypes, tensors, lengths, strict=True):
            if memoryview(data).nbytes != length:
                raise ValueError(f"{name} has {memoryview(data).nbytes} bytes instead of {length}")
            stream.write(data)
