"""Test files of slabs: the same bytes are read again, or an error is raised."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffusers_helper.memory.slab_file import PIECE, SlabFileError, checksum, mapped, read, write
from diffusers_helper.memory.slabs import PAGE, Arena, lay_out

SLABS = [
    {"a": (torch.int8, (300, 500)), "a_scale": (torch.bfloat16, (300, 1)), "b": (torch.float32, ())},
    {"c": (torch.float8_e4m3fn, (700, 2000)), "d": (torch.bfloat16, (3, 7))},
]
WAYS = [read, mapped]


@pytest.fixture
def arena() -> Arena:
    """Make an arena of 1.5 MB whose last bytes are no whole word."""
    arena = Arena(SLABS)
    arena.buffer.copy_(torch.randint(0, 256, (arena.bytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))
    assert arena.bytes > PIECE and arena.bytes % 8
    return arena


@pytest.fixture
def file(arena: Arena, tmp_path: Path) -> Path:
    write(tmp_path / "slabs.safetensors", arena)
    return tmp_path / "slabs.safetensors"


@pytest.mark.parametrize("way", WAYS)
def test_the_same_bytes_come_back(way, arena: Arena, file: Path) -> None:
    """A slab file gives back the same bytes, aligned to a page so that they can be locked, and as ordinary tensors even in
    inference mode."""
    with torch.inference_mode():
        buffer = way(file, arena.places, arena.bytes)
    assert torch.equal(buffer, arena.buffer) and not buffer.is_inference()
    assert buffer.data_ptr() % PAGE == 0
    again = Arena(SLABS, buffer=buffer)
    for name in again.places:
        assert torch.equal(again.bytes_of(name), arena.bytes_of(name))


@pytest.mark.parametrize("way", WAYS)
def test_writing_to_them_does_not_reach_the_file(way, arena: Arena, file: Path) -> None:
    data = file.read_bytes()
    buffer = way(file, arena.places, arena.bytes)
    buffer.zero_()
    del buffer
    assert file.read_bytes() == data


def test_it_is_an_ordinary_safetensors_file(arena: Arena, file: Path) -> None:
    """Other tools can say what it is, and its layout is there to be read."""
    assert torch.equal(load_file(file)["slabs"], arena.buffer)
    (length,) = struct.unpack("<Q", file.read_bytes()[:8])
    metadata = json.loads(file.read_bytes()[8 : 8 + length])["__metadata__"]
    assert json.loads(metadata["places"])["a_scale"] == ["torch.bfloat16", [300, 1], arena.places["a_scale"].offset]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("left", [0, 5, 8, 1000, 2**16, 2**16 + 100, -1])
def test_a_file_that_is_cut_off(way, left: int, arena: Arena, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(SlabFileError):
        way(file, arena.places, arena.bytes)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("at", [2**16, 2**16 + PIECE - 1, 2**16 + PIECE, -1])
def test_a_flipped_bit(way, at: int, arena: Arena, file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 16
    file.write_bytes(data)
    with pytest.raises(SlabFileError, match="checksum"):
        way(file, arena.places, arena.bytes)


@pytest.mark.parametrize("way", WAYS)
def test_a_page_that_was_never_written(way, arena: Arena, file: Path) -> None:
    """A file of the right length with a hole in it: what a computer leaves that lost its power."""
    data = bytearray(file.read_bytes())
    data[2**16 + 4096 : 2**16 + 8192] = bytes(4096)
    file.write_bytes(data)
    with pytest.raises(SlabFileError, match="checksum"):
        way(file, arena.places, arena.bytes)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("header", [b"[]", b"{}", b"not json", b'{"__metadata__": 3}', b"\xff\xfe"])
def test_a_header_that_is_none(way, header: bytes, arena: Arena, file: Path) -> None:
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(arena.bytes))
    with pytest.raises(SlabFileError):
        way(file, arena.places, arena.bytes)


@pytest.mark.parametrize("way", WAYS)
def test_other_slabs_of_the_same_size(way, arena: Arena, file: Path) -> None:
    """A file of other slabs of the same size is not used: names, dtypes, shapes and places all belong to the layout."""
    for change in (
        [SLABS[0], {**SLABS[1], "d": (torch.float16, (3, 7))}],
        [SLABS[0], {**SLABS[1], "d": (torch.bfloat16, (7, 3))}],
        [SLABS[0], {**{"e" if name == "d" else name: spec for name, spec in SLABS[1].items()}}],
    ):
        places, size = lay_out(change)
        assert size == arena.bytes
        with pytest.raises(SlabFileError, match="other"):
            way(file, places, size)


def test_the_checksum_knows_order_and_place() -> None:
    buffer = torch.arange(3 * PIECE + 5, dtype=torch.int64).to(torch.uint8)
    assert checksum(buffer) == checksum(buffer.clone()) != checksum(buffer[:-1])
    swapped = torch.cat([torch.zeros(PIECE, dtype=torch.uint8), torch.ones(PIECE, dtype=torch.uint8)])
    assert checksum(swapped) != checksum(swapped.flip(0))
    rows = torch.randint(256, (64, 3072), dtype=torch.uint8)
    # They were the same while whole megabytes were summed up.
    assert checksum(rows.view(-1)) != checksum(rows[[1, 0, *range(2, 64)]].reshape(-1))
