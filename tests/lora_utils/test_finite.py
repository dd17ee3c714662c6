"""Test that NaN and infinity in a file's tensors are found."""

from __future__ import annotations

import math
import tracemalloc

import pytest
import torch
from safetensors.torch import save_file

from lora_utils import finite
from lora_utils.files import LoraError, read_header
from lora_utils.finite import first_not_finite
from lora_utils.peft import config_of

WIDE = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2)


def first(path) -> str | None:
    header = read_header(path)
    return first_not_finite(path, header, header.shapes)


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", WIDE)
def test_one_number_that_is_none_is_found(dtype, value, tmp_path):
    """One NaN or infinity is found wherever it is, in every floating point format; the largest finite numbers are allowed."""
    path = tmp_path / "a.safetensors"
    largest = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
    good = torch.tensor([0.0, -0.0, largest, -largest, 1.0], dtype=torch.float64).to(dtype)
    save_file({"a": good, "b": torch.arange(3)}, path)
    assert first(path) is None
    for place in (0, 3, 6):
        bad = torch.zeros(7)
        bad[place] = value
        save_file({"a": good, "bad": bad.to(dtype), "c": good.clone()}, path)
        assert first(path) == "bad"
        header = read_header(path)
        assert first_not_finite(path, header, ["a", "c"]) is None


def test_formats_that_have_no_infinity_or_more_than_float32(tmp_path):
    """E4M3 has NaN alone, in two codes; a number of 64 bits that rounds to infinity in 32 is infinite here."""
    path = tmp_path / "a.safetensors"
    for code in range(256):
        tensor = torch.tensor([code], dtype=torch.uint8).view(torch.float8_e4m3fn)
        save_file({"a": tensor}, path)
        assert (first(path) is None) == bool(torch.isfinite(tensor.float())), code
    largest = torch.finfo(torch.float32).max
    for value in (largest * (1 + 2.0**-26), largest * (1 + 2.0**-25), largest * 2):
        tensor = torch.tensor([value], dtype=torch.float64)
        save_file({"a": tensor}, path)
        assert (first(path) is None) == bool(torch.isfinite(tensor.float())), value


@pytest.mark.slow
def test_a_large_file_is_read_in_pieces(tmp_path, monkeypatch):
    """64 MiB with the fault in the last number: found across pieces, with a few pieces in memory at a time."""
    path = tmp_path / "a.safetensors"
    large = torch.zeros(2**25, dtype=torch.bfloat16)
    large[-1] = math.inf
    save_file({"odd": torch.zeros(3, dtype=torch.uint8), "a": large}, path)
    del large
    tracemalloc.start()
    assert first(path) == "a"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * finite.PIECE
    monkeypatch.setattr(finite, "PIECE", 2**10 - 8)
    assert first(path) == "a"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"lora_alpha": NaN}', "lora_alpha"),
        ('{"transformer.lora_alpha": 1e999}', "lora_alpha"),
        ('{"lora_alpha": 1' + "0" * 400 + "}", "lora_alpha"),
        ('{"lora_alpha": 4, "alpha_pattern": {"to_q": -Infinity}}', "alpha_pattern.to_q"),
    ],
)
def test_alphas_in_json(text, name):
    """Python reads and writes NaN and Infinity in JSON; an integer that no float can hold ended a job with an OverflowError."""
    with pytest.raises(LoraError) as error:
        config_of({"lora_adapter_metadata": text}, "a.safetensors")
    assert error.value.key == "not_finite" and error.value.values == {"file": "a.safetensors", "name": name}
