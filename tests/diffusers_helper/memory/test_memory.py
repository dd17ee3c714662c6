"""Test the choice of a device, and the counting of bytes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusers_helper.memory.memory import free_bytes, module_bytes, move, placement
from diffusers_helper.memory.streaming import gather

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this computer has a CUDA card")


def test_the_cpu_computes_in_float32():
    """Half precision on a CPU is slow and, for convolutions, not there in every release."""
    cpu = placement("cpu")
    assert cpu.device == torch.device("cpu")
    assert cpu.transformer == cpu.encoder == torch.float32


@NO_CUDA
def test_auto_is_the_cpu_without_a_card():
    assert placement() == placement("auto") == placement("cpu")


@NO_CUDA
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:1"])
def test_a_card_that_is_not_there_is_named(device):
    """A card that does not exist is named at once, not by an error of the driver after minutes of loading."""
    with pytest.raises(ValueError, match=f"'{device}'.*sees 0 CUDA cards"):
        placement(device)


def test_a_number_beyond_the_last_card_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert placement("cuda:1").device == torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"'cuda:2'.*sees 2 CUDA cards"):
        placement("cuda:2")


def test_a_card_computes_in_the_published_precisions(monkeypatch):
    """The transformer is published in bfloat16, the encoders in float16."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    card = placement("cuda")
    assert (card.transformer, card.encoder) == (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("device", ["mps", "xpu", "meta"])
def test_other_devices_are_refused(device):
    with pytest.raises(ValueError, match=f"'{device}' is neither"):
        placement(device)


@pytest.mark.parametrize("device", ["bogus", "gpu", "cuda:first", ""])
def test_a_device_without_a_meaning_is_refused(device):
    """An unknown device, such as a typing error in --device, is a ValueError, whatever torch raises for it."""
    with pytest.raises(ValueError):
        placement(device)


class Net(nn.Module):
    """Hold 10 float32 numbers, 6 in half precision, and a buffer of 4 bytes."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Parameter(torch.zeros(10))
        self.inner = nn.Linear(2, 2).half()
        self.register_buffer("seen", torch.zeros(1, dtype=torch.int32))


def test_bytes_of_a_network_are_its_parameters_and_buffers():
    assert module_bytes(Net()) == 10 * 4 + 6 * 2 + 4


def test_a_weight_used_twice_is_counted_once():
    net = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
    net[1].weight = net[0].weight
    assert module_bytes(net) == 9 * 4


def test_moving_reports_what_was_not_there_before():
    """Moving reports what was moved, for the pool's accounts, and moves nothing twice. The meta device stands in for a card."""
    net, cpu, meta = Net(), torch.device("cpu"), torch.device("meta")
    assert move(net, cpu) == 0
    net.inner.to(meta)
    assert move(net, meta) == 10 * 4 + 4
    assert {tensor.device.type for tensor in (*net.parameters(), *net.buffers())} == {"meta"}
    assert move(net, meta) == 0


def test_a_cpu_has_no_card_memory():
    assert free_bytes(torch.device("cpu")) is None


def anonymous() -> int:
    """Return the bytes of this process that belong to no file."""
    with Path("/proc/self/status").open(encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="what is freed is looked up in /proc")
def test_what_moved_into_a_slab_is_not_there_twice():
    """A LoRA of 263 MiB stayed in memory a second time: its factors had been freed, and the C library had kept them."""
    size, count = 2**18, 400
    # What the library keeps for itself grows with what was freed before.
    del [torch.ones(2**21)][0]
    tensors = [torch.ones(size // 4) for _ in range(count)]
    # Something that lives on lies above them.
    above = torch.ones(size // 4)
    before = anonymous()
    gather({"part": tensors})
    assert above.sum() == size // 4 and all(tensor[0] == 1 for tensor in tensors)
    assert anonymous() - before < 0.1 * size * count
