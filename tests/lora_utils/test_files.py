"""Test headers of safetensors files, damaged ones, and writing one tensor after the other."""

from __future__ import annotations

import ast
import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_utils.files import Header, LoraError, read_header, write_stream

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(0, 5)}


@pytest.fixture
def file(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    return tmp_path / "x.safetensors"


def failure(path) -> LoraError:
    with pytest.raises(LoraError) as caught:
        read_header(path)
    assert caught.value.values["file"] == str(path)
    return caught.value


def test_a_header_says_what_is_inside(file):
    header = read_header(file)
    assert header.shapes == {"a": (2, 3), "b": (4,), "c": (0, 5)}
    assert header.dtypes == {"a": "F32", "b": "BF16", "c": "F32"}
    assert header.metadata == {"format": "pt"}
    data = file.read_bytes()
    for name, (first, end) in header.places.items():
        assert data[first:end] == TENSORS[name].contiguous().view(torch.uint8).numpy().tobytes()


def test_a_missing_file_and_a_folder(tmp_path):
    assert failure(tmp_path / "x.safetensors").key == "missing"
    (tmp_path / "d.safetensors").mkdir()
    assert failure(tmp_path / "d.safetensors").key == "folder"
    assert failure(tmp_path / ("x" * 300 + ".safetensors")).key == "missing"


@pytest.mark.parametrize(
    ("content", "key", "said"),
    [
        (b"", "empty", {}),
        (b"hello", "header_cut", {"actual": 5}),
        (struct.pack("<Q", 500) + b'{"a": {"dtype"', "header_cut", {"actual": 22}),
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "not_safetensors",
            {"begins": "version https://git-lfs.github.com/spec/"},
        ),
        (b"<!DOCTYPE html>\n<html>", "not_safetensors", {"begins": "<!DOCTYPE html>"}),
        (b"PK\x03\x04\x00\x00\x08\x08" + b"\0" * 99, "not_safetensors", {"begins": "50 4b 03 04 00 00 08 08"}),
        (b"\0" * 99, "not_safetensors", {"begins": "00 00 00 00 00 00 00 00"}),
    ],
)
def test_files_that_are_none_are_told_apart(content, key, said, tmp_path):
    """All of them were "damaged: 46 bytes instead of safetensors", a folder was missing, and a text had 8e18 bytes too few."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    error = failure(path)
    assert error.key == key and {name: value for name, value in error.values.items() if name != "file"} == said


def test_a_file_that_may_not_be_read_is_not_damaged(file, monkeypatch):
    """A file without permission to read is not called damaged; it was "damaged: - bytes instead of Permission denied"."""
    monkeypatch.setattr("pathlib.Path.open", lambda *a, **k: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    error = failure(file)
    assert (error.key, error.values["reason"]) == ("unreadable", "Permission denied")


@pytest.mark.parametrize(
    ("name", "target"),
    [("z.pt", "z"), ("z.safetensors.pt", "z"), ("z.SafeTensors.bin", "z"), ('it\'s "z".ckpt', 'it\'s "z"')],
)
def test_the_hint_how_to_convert_is_python_that_works(name, target, tmp_path):
    """The hint how to convert a file is valid Python: a quote in a name broke it, and z.safetensors.pt became
    z.safetensors.safetensors."""
    (tmp_path / name).write_bytes(b"")
    values = failure(tmp_path / name).values
    assert ast.literal_eval(values["source"]) == name
    assert ast.literal_eval(values["target"]).lower() == f"{target}.safetensors"


@pytest.mark.parametrize(
    ("suffix", "key"), [(".pt", "pickle"), (".BIN", "pickle"), (".ckpt", "pickle"), (".txt", "suffix"), ("", "suffix")]
)
def test_other_kinds_are_refused_unopened(suffix, key, tmp_path, monkeypatch):
    """A pickle runs what it likes when it is opened."""
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"")
    monkeypatch.setattr("pathlib.Path.open", lambda *a, **k: pytest.fail("it was opened"))
    assert failure(path).key == key


def test_every_way_of_being_cut_off_is_found(file):
    """A file that is cut off at any length is found to be damaged."""
    data = file.read_bytes()
    for length in range(len(data)):
        file.write_bytes(data[:length])
        begun = 8 + struct.unpack("<Q", data[:8])[0]
        assert failure(file).key == ("empty" if not length else "header_cut" if length < begun else "damaged")
    file.write_bytes(data + b"\0")
    assert failure(file).key == "damaged"
    file.write_bytes(data)
    assert read_header(file).shapes


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b"5",
        b'{"a": 5}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, '
        b'"b": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}',
        b'{"__metadata__": 5}',
        b"\xff\xfe",
    ],
)
def test_headers_that_are_none(header, file):
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    assert failure(file).key == ("header" if header.startswith(b"{") else "not_safetensors")


def test_a_header_of_impossible_length_reserves_nothing(file):
    file.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    assert failure(file).key == "not_safetensors"


def test_what_is_written_is_read_again(file, tmp_path):
    """The safetensors library reads a written file, with its metadata, its order and an empty tensor."""
    header = read_header(file)
    parts = (TENSORS[name].contiguous().view(torch.uint8).numpy().tobytes() for name in header.shapes)
    write_stream(tmp_path / "y.safetensors", header, parts)
    again = load_file(tmp_path / "y.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in TENSORS.items())
    assert read_header(tmp_path / "y.safetensors") == header
    (length,) = struct.unpack("<Q", (tmp_path / "y.safetensors").read_bytes()[:8])
    assert length % 8 == 0
    assert list(json.loads((tmp_path / "y.safetensors").read_bytes()[8 : 8 + length])) == ["__metadata__", *header.shapes]


def test_bytes_that_are_too_many_or_too_few(tmp_path):
    header = Header({"a": "F32"}, {"a": (2,)})
    for data in (b"1234", b"123456789"):
        with pytest.raises(ValueError, match="a has"):
            write_stream(tmp_path / "x.safetensors", header, [data])
