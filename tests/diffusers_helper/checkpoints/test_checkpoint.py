"""Test that damaged and incomplete checkpoints are named before anything is loaded."""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_helper.checkpoints.checkpoint import (
    CheckpointError,
    check_transformer,
    compare,
    load_transformer,
    meta_transformer,
    read_headers,
    shapes_of,
    weight_files,
)

STEM = "diffusion_pytorch_model"


def weights(folder: Path) -> Path:
    return folder / f"{STEM}.safetensors"


def sharded(folder: Path, count: int = 3) -> list[Path]:
    """Split the single file in the hub's layout: numbered shards, and an index that names each tensor's."""
    tensors = load_file(weights(folder))
    weights(folder).unlink()
    names = list(tensors)
    per_shard = math.ceil(len(names) / count)
    files, weight_map = [], {}
    for i in range(count):
        part = names[i * per_shard : (i + 1) * per_shard]
        file = folder / f"{STEM}-{i + 1:05}-of-{count:05}.safetensors"
        save_file({name: tensors[name] for name in part}, file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file.name))
        files.append(file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(index))
    return files


def rewrite(file: Path, change: Callable[[dict], None]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def failure(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        check_transformer(folder)
    return caught.value


def test_a_whole_checkpoint_passes(models):
    assert check_transformer(models) == weights(models).stat().st_size


def test_a_whole_checkpoint_in_shards_passes(models):
    files = sharded(models)
    assert len(files) == 3
    assert check_transformer(models) == sum(file.stat().st_size for file in files)


def test_a_missing_file_is_named(models):
    weights(models).unlink()
    error = failure(models)
    assert (error.key, error.values) == ("file_missing", {"file": str(weights(models))})


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_missing_shard_is_named(models, number):
    """A missing shard is named, as after a download that was stopped: the index and some of its files are there."""
    file = sharded(models)[number]
    file.unlink()
    error = failure(models)
    assert (error.key, error.values) == ("file_missing", {"file": str(file)})


@pytest.mark.parametrize("left", [-1, -1000, 4000, 8, 5, 0])
def test_a_file_that_was_cut_off_is_named(models, left):
    """A file cut off by a full disk or a stopped download is named; the load failed after minutes with a message that named
    nothing."""
    file = weights(models)
    data = file.read_bytes()
    file.write_bytes(data[:left])
    error = failure(models)
    assert error.key == "file_damaged" and error.values["file"] == str(file)
    assert error.values["actual"] == file.stat().st_size < len(data)


def test_a_cut_off_file_says_how_long_it_should_be(models):
    size = weights(models).stat().st_size
    weights(models).write_bytes(weights(models).read_bytes()[:-100])
    assert failure(models).values["expected"] == size


def test_a_file_that_is_too_long_is_named(models):
    """A file longer than its header says, such as two downloads written into one file, is named."""
    with weights(models).open("ab") as stream:
        stream.write(b"more")
    assert failure(models).key == "file_damaged"


def test_a_header_longer_than_the_file_is_named(models):
    """A header length beyond the end of the file is named. It is a 64-bit number, and to believe it would fill the memory."""
    weights(models).write_bytes(struct.pack("<Q", 2**62) + b"{}")
    error = failure(models)
    assert error.key == "file_damaged" and error.values["actual"] == 10


def with_header(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    "data",
    [
        b"<!DOCTYPE html><html>Access denied</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9972\n",
        b"PK\x03\x04\x14\x00\x08\x08" + bytes(400),
        with_header(b"not json"),
        with_header(b"\xff\xfe"),
        with_header(b"[]"),
        with_header(b'{"x": 1}'),
        with_header(b'{"x": {"dtype": "F32"}}'),
        with_header(b'{"x": {"dtype": "F32", "shape": [0], "data_offsets": ["a", "b"]}}'),
        with_header(b'{"x": {"dtype": "F32", "data_offsets": [0, 0]}}'),
    ],
    ids=["html", "lfs pointer", "zip", "no json", "no text", "list", "number", "no offsets", "offsets of letters", "no shape"],
)
def test_a_file_that_is_not_safetensors_is_named(models, data):
    """An error page or an LFS pointer saved under the name, or a .pt file renamed."""
    weights(models).write_bytes(data)
    error = failure(models)
    assert error.key == "file_damaged" and error.values["file"] == str(weights(models))


def test_a_missing_tensor_is_named(models):
    rewrite(weights(models), lambda tensors: tensors.pop("norm_out.linear.bias"))
    error = failure(models)
    assert error.key == "tensor_missing"
    assert error.values == {"folder": str(models), "tensor": "norm_out.linear.bias"}


def test_a_tensor_too_many_is_named_with_its_file(models):
    """An unexpected tensor is named with its file: the weights are another model's, or this one's with a LoRA saved into it."""
    file = sharded(models)[2]
    rewrite(file, lambda tensors: tensors.update({"lora.down": torch.zeros(1)}))
    error = failure(models)
    assert (error.key, error.values) == ("tensor_unknown", {"file": str(file), "tensor": "lora.down"})


def test_a_tensor_of_another_shape_is_named_with_both(models):
    """A tensor of another shape is named with both shapes: the file is of a model of another size under the same names."""
    file = sharded(models)[0]
    name = next(iter(read_headers([file]).shapes))
    rewrite(file, lambda tensors: tensors.update({name: torch.zeros(7, 3)}))
    error = failure(models)
    assert error.key == "tensor_shape"
    expected = tuple(meta_transformer(models).state_dict()[name].shape)
    assert error.values == {"file": str(file), "tensor": name, "expected": expected, "actual": (7, 3)}


def test_unknown_tensors_are_allowed_where_not_strict(models, tmp_path):
    """Unknown tensors are allowed where the check is not strict: the language model's file has a head that nobody reads."""
    found = read_headers([weights(models)])
    expected = dict(found.shapes)
    del expected["proj_out.bias"]
    compare(expected, found, tmp_path, strict=False)
    with pytest.raises(CheckpointError, match="tensor_unknown"):
        compare(expected, found, tmp_path, strict=True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"rope_axes_dim": [4, 4, 4]}',
        '{"rope_axes_dim": 128}',
        '{"patch_size": 4}',
        '{"num_layers": "twenty"}',
    ],
)
def test_a_damaged_config_is_named(models, text):
    """Whatever is wrong with config.json, the message is about config.json."""
    (models / "config.json").write_text(text)
    error = failure(models)
    assert error.key == "config_damaged" and error.values["file"] == str(models / "config.json")
    assert error.values["reason"]


def test_a_config_in_another_encoding_is_damaged(models):
    (models / "config.json").write_bytes('{"a": "é"}'.encode("latin-1"))
    assert failure(models).key == "config_damaged"


def test_a_missing_config_is_a_missing_file(models):
    (models / "config.json").unlink()
    error = failure(models)
    assert (error.key, error.values) == ("file_missing", {"file": str(models / "config.json")})


@pytest.mark.parametrize("index", ["{}", '{"weight_map": {}}', '{"weight_map": 3}', '{"weight_map": {"a": 1}}', "", "[1]"])
def test_a_damaged_index_is_named(models, index):
    path = models / f"{STEM}.safetensors.index.json"
    path.write_text(index)
    error = failure(models)
    assert error.key == "config_damaged" and error.values["file"] == str(path)


def test_errors_speak_without_a_catalogue(models):
    """An error's message holds its key and its file, so that logs and tracebacks are clear without a catalogue of texts."""
    weights(models).unlink()
    assert "file_missing" in str(failure(models)) and str(weights(models)) in str(failure(models))


def test_a_check_reads_headers_only(models, monkeypatch):
    """25 GB must be judged in milliseconds: no data is read."""
    (length,) = struct.unpack("<Q", weights(models).read_bytes()[:8])
    reads, opened = [], Path.open

    class Watched(io.FileIO):
        def read(self, size=-1):
            reads.append(size)
            return super().read(size)

    def watched(path, *arguments, **options):
        return Watched(path) if path.suffix == ".safetensors" else opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", watched)
    check_transformer(models)
    assert reads == [8, length]


def test_shards_hold_the_same_weights_as_the_single_file(models, checkpoint):
    """Shards give the same weights as a single file: the hub's three files and Kijai's one are the same network."""
    single = load_transformer(checkpoint / "transformer", torch.float32)
    sharded(models)
    together = load_transformer(models, torch.float32)
    assert shapes_of(single) == shapes_of(together)
    for (name, one), other in zip(single.state_dict().items(), together.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_is_loaded_in_the_asked_precision_ready_to_run(models, dtype):
    net = load_transformer(models, dtype)
    assert net.dtype == dtype and net.device.type == "cpu" and not net.training
    stored = load_file(weights(models))
    for name, parameter in net.named_parameters():
        assert parameter.dtype == dtype and not parameter.requires_grad
        assert torch.equal(parameter, stored[name].to(dtype)), name


def test_an_index_goes_before_a_single_file(models):
    """If a folder holds an index and a single file, the index is used: it says which files belong together."""
    data = weights(models).read_bytes()
    files = sharded(models)
    weights(models).write_bytes(data)
    assert weight_files(models, STEM) == files


def test_the_meta_network_takes_no_memory(models):
    assert all(parameter.is_meta for parameter in meta_transformer(models).parameters())
