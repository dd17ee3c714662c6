"""Test that two packages that cannot share code accept the same headers of safetensors files, as the library does."""

from __future__ import annotations

import json
import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError, safe_open

from diffusers_helper.checkpoints import files
from diffusers_helper.checkpoints.files import CheckpointError
from lora_utils.files import BITS, LoraError, read_header

CASES = Path(__file__).parents[2] / "cases" / "hostile"
ONE = {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}
TWO, SIX = ({"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}, {"dtype": "U8", "shape": [6], "data_offsets": [2, 8]})
NONE = {"dtype": "F32", "shape": [0, 5], "data_offsets": [0, 0]}


def written(path: Path, header: object, data: bytes = b"\0" * 8) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def readable(path: Path, *more: Callable) -> tuple[bool, ...]:
    """Return which readers accept a file: ours for LoRA, ours for checkpoints and latents, and others."""
    found = []
    for read in (read_header, files.read_header, *more):
        try:
            read(path)
            found.append(True)
        except (LoraError, CheckpointError, SafetensorError):
            found.append(False)
    return tuple(found)


def library(path: Path) -> None:
    safe_open(path, "numpy").keys()


@pytest.mark.parametrize(
    "header",
    [
        {"a": ONE},
        {"__metadata__": {"a": "b\n", "花": "火"}, "a": ONE},
        {"__metadata__": None, "a": ONE},
        {"a": {**ONE, "dtype": "F64", "shape": []}},
        {"a": {**ONE, "shape": [2, *[1] * 7]}},
        {"a": TWO, "b": SIX},
        {"b": SIX, "a": TWO},
        {"none": NONE, "a": ONE, "end": {**ONE, "shape": [0], "data_offsets": [8, 8]}},
        {"層": ONE},
        json.dumps({"a": ONE}).encode() + b"   ",
    ],
)  # fmt: skip
def test_good_headers_mean_the_same_to_all(header: object, tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", header)
    ours, theirs = read_header(path), files.read_header(path)
    assert readable(path, library) == (True, True, True)
    for name in ("dtypes", "shapes", "places", "metadata"):
        assert getattr(ours, name) == getattr(theirs, name)
    with safe_open(path, "numpy") as opened:
        assert set(opened.keys()) == set(ours.shapes) and (opened.metadata() or {}) == ours.metadata
        assert all(tuple(opened.get_slice(name).get_shape()) == shape for name, shape in ours.shapes.items())


BAD = [
    {"a": {**ONE, "shape": [2.0, 1]}},
    b'{"a": {"dtype": "F32", "shape": [1e309], "data_offsets": [0, 8]}}',
    b'{"a": {"dtype": "F32", "shape": [2e0, 1], "data_offsets": [0, 8]}}',
    {"a": {**ONE, "shape": [True, 2]}},
    {"a": {**ONE, "shape": [-2, -1]}},
    {"a": {**ONE, "shape": "21"}},
    {"a": {**ONE, "shape": [10**30, 0], "data_offsets": [0, 0]}},
    {"a": {**ONE, "data_offsets": [0.0, 8]}},
    {"a": {**ONE, "data_offsets": [False, 8]}},
    {"a": {**ONE, "data_offsets": [8, 0]}},
    {"a": {**ONE, "data_offsets": [0, 8, 8]}},
    {"a": {**ONE, "dtype": "F99"}},
    {"a": {**ONE, "dtype": ["F32"]}},
    {"a": {**ONE, "dtype": None}},
    {"a": {"dtype": "F32", "shape": [2, 1]}},
    {"a": [0, 8]},
    {"a": {**ONE, "dtype": "F16", "data_offsets": [4, 8]}},
    {"__metadata__": {"a": 5}, "a": ONE},
    {"__metadata__": {"a": {"b": "c"}}, "a": ONE},
    {"__metadata__": ["a"], "a": ONE},
    b'{"\\ud800": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}}',
    b'{"__metadata__": {"a": "\\ud800"}, "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}}',
    b'{"\xff": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}}',
    json.dumps({"a": ONE}).encode("utf-16"),
    json.dumps({"a": ONE}).encode()[:-1],
    b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
]  # fmt: skip
# The library takes these; nobody has written one.
STRICTER = [
    {"a": {**ONE, "shape": [2, *[1] * 8]}},
    {"a\x1b[2Jb": ONE},
    {"x" * 501: ONE},
    b'{"a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8], "dtype": "I32"}}',
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_headers_are_refused_by_all(number: int, tmp_path: Path) -> None:
    """1e309 as a side ended in an OverflowError, and a name that is half a surrogate pair where it was printed."""
    assert readable(written(tmp_path / "x.safetensors", BAD[number]), library) == (False, False, False)


@pytest.mark.parametrize("number", range(len(STRICTER)))
def test_some_headers_are_refused_by_us_alone(number: int, tmp_path: Path) -> None:
    assert readable(written(tmp_path / "x.safetensors", STRICTER[number])) == (False, False)


def test_both_know_the_same_types() -> None:
    assert BITS == files.BITS


@pytest.mark.parametrize("name", ["lora_shape_1e309.safetensors", "lora_tensor_name_lone_surrogate.safetensors"])
def test_files_that_ended_in_a_traceback(name: str) -> None:
    assert readable(CASES / name, library) == (False, False, False)


@pytest.mark.slow
@pytest.mark.parametrize("piece", [b"{},", b'{"":0},'])
def test_a_header_of_nothing_is_refused_soon_and_in_little_memory(piece: bytes, tmp_path: Path) -> None:
    """A file may be a header of a hundred megabytes and nothing else, which takes thirty times as much when it is parsed."""
    for size in (2**20, 40 * 2**20):
        path = written(tmp_path / "x.safetensors", b'{"a":[' + piece * (size // len(piece)) + b"0]}", b"")
        began = time.perf_counter()
        assert readable(path) == (False, False)
        assert time.perf_counter() - began < 2
    # A quarter of what may be there at all.
    path = written(tmp_path / "x.safetensors", b'{"a":[' + piece * (files.MOST_BRACKETS // 4) + b"0]}", b"")
    tracemalloc.start()
    assert readable(path) == (False, False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 4 * peak < 300 * 2**20


def test_a_header_may_be_long_where_the_file_is(tmp_path: Path) -> None:
    """Metadata of trainers: a list of tags of four megabytes is nothing strange."""
    header = {"__metadata__": {"ss_tag_frequency": "x" * (4 * 2**20 - 500)}, "a": ONE}
    assert readable(written(tmp_path / "x.safetensors", header), library) == (True, True, True)
    large = {
        "__metadata__": {"ss_tag_frequency": "x" * (5 * 2**20)},
        "a": {**ONE, "dtype": "U8", "shape": [2**24], "data_offsets": [0, 2**24]},
    }
    assert readable(written(tmp_path / "y.safetensors", large, b"\0" * 2**24), library) == (True, True, True)  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_pipes_and_folders_are_not_waited_for(tmp_path: Path) -> None:
    """Opening a pipe that nobody writes to waits for ever."""
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(LoraError):
            read_header(tmp_path / f"{name}.safetensors")
        with pytest.raises(CheckpointError):
            files.read_header(tmp_path / f"{name}.safetensors")
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError):
        files.read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b'{"a": NaN}', b'{"a": 1e999}', b"\xff\xfe{", b"5", b'{"a": 1' + b"0" * 5000 + b"}"]
)
def test_a_config_that_no_program_wrote(text: bytes, tmp_path: Path) -> None:
    """Nested without an end it was a RecursionError, and infinite sizes came as far as the model's layers."""
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError) as error:
        files.read_json(tmp_path / "config.json")
    assert error.value.key == "config_damaged"
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"a": 1.5}')
    assert files.read_json(tmp_path / "config.json") == {"a": 1.5}
