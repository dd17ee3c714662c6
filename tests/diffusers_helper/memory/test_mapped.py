"""Test that mapped files can be taken out of this process's memory, and that other memory is left alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from diffusers_helper.memory import mapped
from diffusers_helper.memory.streaming import WeightGroup

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what is mapped")
MIB = 2**20


def of_files() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile")) * 1024


@pytest.fixture
def window(tmp_path):
    weight = torch.randn(4, MIB)
    save_file({"a": torch.randn(3), "weight": weight}, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        yield file.get_tensor("weight"), weight


def test_pages_of_a_window_are_given_back_and_come_again(window):
    """The 15 GB of the language model counted as the program's memory until its last layer was used."""
    seen, exact = window
    assert torch.equal(seen, exact)
    before = of_files()
    assert mapped.forget(seen, mapped.windows())
    assert of_files() <= before - 15 * MIB
    assert torch.equal(seen, exact)


def test_what_is_no_window_stays(window):
    """Memory that is no mapped window is not given back to the system: pages of the heap would come back as zeros."""
    own = torch.ones(4 * MIB)
    assert not mapped.forget(own, mapped.windows()) and not mapped.forget(own, [])
    assert own.sum() == 4 * MIB
    # Less than a page has none to give.
    assert not mapped.forget(window[0][0, :8], mapped.windows())


def test_a_part_that_was_copied_is_forgotten(window):
    layer = torch.nn.Linear(MIB, 4, bias=False)
    layer.weight = torch.nn.Parameter(window[0], requires_grad=False)
    group = WeightGroup("layer", [layer])
    assert torch.equal(layer.weight, window[1])
    before = of_files()
    group.forget()
    assert of_files() <= before - 15 * MIB and torch.equal(layer.weight, window[1])
