"""Keep slabs in a file, as they lie in memory, so that they need not be made again.

The file is a safetensors file of one tensor of bytes, with the places of the tensors in it and a checksum in its metadata; data
begins at a page, so that it can be mapped.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from diffusers_helper.checkpoints.files import CheckpointError, read_header
from diffusers_helper.checkpoints.reading import read_into, readers
from diffusers_helper.memory.slabs import Arena, Place, aligned, allocate

FORMAT, NAME = "2", "slabs"
# A mapping may begin at a multiple of this on any system.
GRANULARITY = 2**16
PIECE = 2**20
# Bytes that the checksum adds up to one sum; a row of weights has more.
SUMMED = 512


class SlabFileError(Exception):
    """Say that a file is cut off, damaged, or of other slabs; the message says which."""


def write(path: Path, arena: Arena, key: str = "") -> None:
    """Write slabs into a file without taking memory. key: what the weights are made of; others have the same layout.

    Raises OSError.
    """
    data = {"dtype": "U8", "shape": [arena.bytes], "data_offsets": [0, arena.bytes]}
    metadata = {"format": FORMAT, "key": key, "places": _described(arena.places), "checksum": checksum(arena.buffer)}
    text = json.dumps({"__metadata__": metadata, NAME: data}).encode()
    text += b" " * (aligned(8 + len(text), GRANULARITY) - 8 - len(text))
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.write(arena.buffer.numpy().data)


def read(path: Path, places: Mapping[str, Place], size: int, key: str = "") -> Tensor:
    """Return the buffer of slabs with these places and this key, `size` bytes of uint8, in memory of this process.

    For weights that a card copies from: locking memory that belongs to a file may be refused, and what is not locked is staged
    at every step. Raises SlabFileError and OSError.
    """
    start, expected = _begin(path, places, size, key)
    buffer = allocate(size)
    with readers() as pool:
        if not read_into(path, start, buffer, pool):
            raise SlabFileError("ends too early")
    return _checked(buffer, expected)


def mapped(path: Path, places: Mapping[str, Place], size: int, key: str = "") -> Tensor:
    """Return the buffer as `read` does, but as a window into the file, without taking memory.

    The system gives up pages of it when it must. Nothing written to it reaches the file. For weights that are computed with
    where they lie. Raises SlabFileError and OSError.
    """
    start, expected = _begin(path, places, size, key)
    with path.open("rb", buffering=0) as stream:
        mapping = mmap.mmap(stream.fileno(), start + size, access=mmap.ACCESS_COPY)
    with torch.inference_mode(False):
        return _checked(torch.frombuffer(mapping, dtype=torch.uint8, offset=start, count=size), expected)


def checksum(buffer: Tensor) -> str:
    """Return a checksum of bytes, computed at the speed of memory: a hash of the sums of every 512 of them.

    Zeros, cuts, flipped bits and rows that changed places change it.
    """
    total = hashlib.sha256()
    for piece in buffer.split(PIECE):
        whole = len(piece) // SUMMED * SUMMED
        total.update(piece[:whole].view(torch.int64).view(-1, SUMMED // 8).sum(1).numpy().data)
        total.update(piece[whole:].numpy().data)
    return total.hexdigest()


def _checked(buffer: Tensor, expected: str) -> Tensor:
    if checksum(buffer) != expected:
        raise SlabFileError("wrong checksum")
    return buffer


def _begin(path: Path, places: Mapping[str, Place], size: int, key: str) -> tuple[int, str]:
    """Return the byte at which data begins in a file of these slabs, and its checksum. Raises SlabFileError and OSError."""
    try:
        header = read_header(path)
    except CheckpointError as error:
        if error.key == "file_missing":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
        raise SlabFileError(f"damaged: {error.values['actual']} bytes instead of {error.values['expected']}") from None
    begin, end = header.places.get(NAME, (0, 0))
    if end - begin != size:
        raise SlabFileError(f"{end - begin} bytes instead of {size}")
    metadata = header.metadata
    own = {"format": FORMAT, "places": _described(places), "key": key}
    if any(metadata.get(name) != value for name, value in own.items()):
        raise SlabFileError("of other slabs")
    return begin, metadata.get("checksum", "")


def _described(places: Mapping[str, Place]) -> str:
    return json.dumps({name: [str(place.dtype), list(place.shape), place.offset] for name, place in places.items()})
