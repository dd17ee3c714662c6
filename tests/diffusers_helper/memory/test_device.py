"""Test what a CUDA card is asked for, with a stand-in for torch's functions: no card is needed."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from diffusers_helper.memory.device import CudaDevice
from diffusers_helper.memory.slabs import PAGE, Arena


class Queue:
    """Stand in for a stream and its events, on which everything is done at once."""

    def wait_event(self, event) -> None: ...

    def record(self, stream=None) -> None: ...

    def synchronize(self) -> None: ...


@pytest.fixture
def card(monkeypatch) -> CudaDevice:
    """Simulate a card that locks memory without torch's own `is_pinned` seeing it."""
    calls = SimpleNamespace(cudaHostRegister=lambda pointer, size, flags: 0, cudaHostUnregister=lambda pointer: 0)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: calls)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", Queue)
    card = object.__new__(CudaDevice)
    card.device, card._copies, card._locked = torch.device("cpu"), Queue(), {}
    return card


def test_slabs_that_are_locked_are_copied_without_staging(card, monkeypatch):
    """torch says of a slab that it is not locked where the storage's beginning is not, which is before the first page: all
    weights were staged through the host's processors, and a busy machine needed 1640 ms for a step of 640."""
    arena = Arena([{"a": (torch.uint8, (PAGE,))}, {"b": (torch.uint8, (PAGE // 2,))}])
    first, second = arena.view("a"), arena.view("b")
    first.fill_(1), second.fill_(2)
    staged = []
    monkeypatch.setattr(card, "_copy_staged", lambda target, source: staged.append(source.data_ptr()))
    assert card.lock(first)
    target = torch.zeros(PAGE, dtype=torch.uint8)
    card.copy([(target, first)], Queue())
    assert not staged
    assert torch.equal(target, first)
    card.copy([(target[: PAGE // 2], second)], Queue())
    assert staged == [second.data_ptr()]
    card.unlock(first)
    card.copy([(target, first)], Queue())
    assert staged == [second.data_ptr(), first.data_ptr()]
