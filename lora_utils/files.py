"""Read headers of safetensors files without their data, and write such files tensor by tensor.

The format: 8 bytes with the header's length, a JSON header with dtype, shape and place of every tensor, then the data
(https://huggingface.co/docs/safetensors). Nothing here needs torch. `safetensors` itself tells neither places nor what is wrong
with a file, and writes only what is in memory as a whole.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

# Bits of one number of each dtype, by the format's names.
BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
# Suffixes of files that torch.save writes; opening such a file runs whatever code its author put there.
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
# The format's limit, in bytes; a file that claims a longer header is of another kind.
LONGEST_HEADER = 100 * 2**20
# Limits on a header's length: LARGE_HEADER bytes, and SMALL_HEADER plus the file's size / HEADER_PART. A header of 10,000
# tensors takes about a megabyte, trainers' lists of tags and a thumbnail some more. Parsing takes ten times the length in
# memory, and thirty times for brackets alone, which MOST_BRACKETS limits.
SMALL_HEADER, LARGE_HEADER, HEADER_PART = 4 * 2**20, 16 * 2**20, 8
MOST_BRACKETS = 2**17
# Real names of layers are less than a quarter as long; systems count a file's bytes in 63 bits; tensors have few dimensions.
LONGEST_NAME, LARGEST_SIZE, MOST_SIDES = 500, 2**63 - 1, 8
# Bytes at a file's beginning that tell whether it is a safetensors file.
BEGINNING = 40


class LoraError(Exception):
    """Say what is wrong with a LoRA file.

    key: what is wrong, as the texts call it after "problem.lora_". values name the file and the fault.
    """

    def __init__(self, key: str, **values: Any):
        self.key, self.values = key, values
        super().__init__(f"{key}: {values}")


@dataclass(frozen=True)
class Header:
    """Hold what a safetensors file's header says of its tensors, by name and in the file's order.

    dtypes: in the format's own words. metadata: the texts beside the tensors. places: (first byte, end) of each tensor in the
    file that was read; empty for a file that is to be written.
    """

    dtypes: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict, compare=False)


def read_header(path: Path) -> Header:
    """Read the header of a file.

    Raises LoraError for a file that is missing, of another kind, cut off or damaged, with a key of its own for each.
    """
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
            if length > min(LARGE_HEADER, SMALL_HEADER + size // HEADER_PART):
                raise LoraError("header_long", file=name, actual=length)
            stream.seek(8)
            header = _parsed(stream.read(length), 8 + length)
    except OSError as error:
        raise LoraError("unreadable", file=name, reason=error.strerror or str(error)) from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise LoraError("header", file=name) from None
    expected = max((end for _, end in header.places.values()), default=8 + length)
    if size != expected:
        raise LoraError("damaged", file=name, expected=expected, actual=size)
    return header


def _parsed(data: bytes, start: int) -> Header:
    """Parse a header's text as strictly as the format's own reader does.

    start: where data begins in the file. Raises ValueError, LookupError, TypeError, AttributeError or RecursionError.
    """
    if data.count(b"{") > MOST_BRACKETS or data.count(b"[") > MOST_BRACKETS:
        raise ValueError("more brackets than any network has tensors")
    document = json.loads(data.decode("utf-8"), parse_float=_no_size, parse_constant=_no_size, object_pairs_hook=_once)
    metadata = document.pop("__metadata__", None)
    header = Header({}, {}, {} if metadata is None else metadata, {})
    for text in (*header.metadata, *header.metadata.values()):
        # Raises a ValueError for half a surrogate pair, which could be neither written nor shown.
        text.encode()
    for name, entry in document.items():
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise ValueError("a name that cannot be shown")
        if not isinstance(shape, list) or len(shape) > MOST_SIDES or not all(map(_is_size, (*shape, begin, end))):
            raise ValueError(f"{name}: sides or places that are none")
        if (end - begin) * 8 != prod(shape) * BITS[dtype]:
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


def _converted(path: Path) -> str:
    """Return the name that a pickle has after it is converted; some are called `ink.safetensors.pt`."""
    stem = path.stem
    return stem if stem.lower().endswith(".safetensors") else f"{stem}.safetensors"


def _shown(start: bytes) -> str:
    """Return a file's first bytes as a person can read them: the beginning of a text, or hexadecimal numbers."""
    text = start.decode("utf-8", errors="ignore").split("\n")[0].strip()
    return text if text.isprintable() and len(text) > 3 else start[:8].hex(" ")


def write_stream(path: Path, header: Header, tensors: Iterable[bytes | memoryview]) -> None:
    """Write a file one tensor after the other, so that only one of them needs to be in memory.

    tensors: the bytes of each tensor, little-endian and contiguous, in the order of the header's names. Raises ValueError if
    one has another length than dtype and shape say.
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
    # The format asks that data begins at a multiple of 8.
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)))
        stream.write(text)
        for name, data, length in zip(header.dtypes, tensors, lengths, strict=True):
            if memoryview(data).nbytes != length:
                raise ValueError(f"{name} has {memoryview(data).nbytes} bytes instead of {length}")
            stream.write(data)
