"""Test a card that becomes full at any operation of a run: fewer weights stay on it, and the numbers are the same."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_helper.memory.streaming import Streamer
from diffusers_helper.models.step_cache import FirstBlockCache, TeaCache
from tests.diffusers_helper.inputs import random_net, running, section_of
from tests.diffusers_helper.memory.test_streaming import GIVEN, grad_is_off, stream
from tests.fake_device import FakeDevice

pytestmark = pytest.mark.slow

__all__ = ["grad_is_off"]
SIGMAS = [0.9, 0.88, 0.5, 0.1]
CACHES = {"none": lambda: None, "teacache": lambda: TeaCache(0.3, 4), "first_block": lambda: FirstBlockCache(0.3, 4)}


@pytest.fixture
def net(tiny):
    return random_net(tiny[1], 2, 2)


class FullAt(TorchDispatchMode):
    """Let memory run out once, at an operation's number, from 1. count: operations so far."""

    def __init__(self, number: int = 0):
        super().__init__()
        self.number, self.count = number, 0

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        self.count += 1
        if self.count == self.number:
            raise torch.OutOfMemoryError(f"injected in {operation}")
        return operation(*arguments, **(named or {}))


def positions(count: int) -> list[int]:
    """Return numbers of operations: of the first and last ones, which are outside of blocks, and of some between."""
    return sorted({*range(1, 15, 2), *range(15, count - 20, count // 3), *range(count - 20, count + 1, 3)})


def jobs(net, sigmas=SIGMAS):
    return net.prepare_job(GIVEN.text, GIVEN.pooled, GIVEN.image, 10.0, sigmas)


def tensors(made) -> list[torch.Tensor]:
    if isinstance(made, torch.Tensor):
        return [made]
    parts = vars(made).values() if hasattr(made, "__dict__") else made
    return [tensor for part in parts for tensor in tensors(part)]


def assert_repeated(net, make) -> None:
    """Check that make(net) gives the same when memory runs out at any of the positions."""
    plain, (net, streamer) = make(net), stream(net, 2**40)
    with FullAt() as counted:
        make(net)
    for number in positions(counted.count):
        streamer.fit(2**40)
        with FullAt(number) as full:
            made = make(net)
        assert full.count > counted.count and len(streamer.resident) < 4
        assert all(torch.equal(a, b) for a, b in zip(tensors(made), tensors(plain), strict=True)), number


@pytest.mark.parametrize("kind", CACHES)
def test_a_step_is_repeated_whole(net, kind: str) -> None:
    """Outside of blocks the first error ended the film with all its blocks on the card, at 23 to 31 operations."""
    section, job = section_of(net, GIVEN), jobs(net)

    def second_step(net) -> list[torch.Tensor]:
        cache = CACHES[kind]()
        return [net.step(GIVEN.x, index, job, section, cache) for index in range(2)]

    assert_repeated(net, second_step)


@pytest.mark.parametrize("kind", ["teacache", "first_block"])
def test_a_repeated_step_counts_once(net, kind: str) -> None:
    """Whatever of it was done: what a step cache remembers is as if the memory had been there."""
    section, job = section_of(net, GIVEN), jobs(net)

    def run(number: int) -> tuple[list[torch.Tensor], list[int], int]:
        cache, made = CACHES[kind](), []
        with FullAt(number) as full:
            made += [net.step(GIVEN.x, index, job, section, cache) for index in range(4)]
        return made, cache.computed, full.count

    made, computed, count = run(0)
    net, streamer = stream(net, 2**40)
    for number in range(count // 12, count + 1, count // 6):
        streamer.fit(2**40)
        again, steps, _ = run(number)
        assert steps == computed and all(torch.equal(a, b) for a, b in zip(again, made, strict=True)), number


def test_tables_are_made_again(net) -> None:
    """Tables of a job and of a section are made again after memory ran out; an error in them used to end the film."""
    assert_repeated(net, lambda net: jobs(net, SIGMAS[:1]))
    assert_repeated(net, lambda net: section_of(net, GIVEN))


def test_a_card_that_is_always_full_is_told_of(net) -> None:
    streamer = Streamer(FakeDevice(), net.weight_groups())
    job, section = jobs(net), section_of(net, GIVEN)
    streamer.fit(streamer.least_bytes)
    net = running(net, weights=streamer)
    assert streamer.resident == ()
    with FullAt(3), pytest.raises(torch.OutOfMemoryError):
        net.step(GIVEN.x, 0, job, section)
