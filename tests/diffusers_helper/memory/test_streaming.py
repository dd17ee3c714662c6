"""Test that streamed, resident and plain weights give equal bits, on a card with late copies and garbage in its memory."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from diffusers_helper.memory.memory import module_bytes
from diffusers_helper.memory.streaming import Ring, Streamer, WeightGroup, evenly_spaced, tensors_of
from diffusers_helper.memory.weight_groups import InPlace, WeightGroups
from diffusers_helper.models.linear import LowRankBranch, quantise, set_strengths
from diffusers_helper.models.step_cache import FirstBlockCache, TeaCache
from diffusers_helper.models.transformer import PackedTransformer
from tests.diffusers_helper.inputs import LAYOUTS, inputs, random_net, running, section_of, velocity
from tests.fake_device import FakeDevice

pytestmark = pytest.mark.slow

# Few tokens: where weights lie, and when, is the same for all.
GIVEN = inputs(LAYOUTS["one picture"], 4, 4)


@pytest.fixture(autouse=True)
def grad_is_off():
    with torch.no_grad():
        yield


@pytest.fixture
def long_net(tiny):
    return random_net(tiny[1], 5, 7)


def stream(net, budget: int, device: FakeDevice | None = None, slots: int = 3) -> tuple[PackedTransformer, Streamer]:
    streamer = Streamer(device or FakeDevice(), net.weight_groups(), slots)
    streamer.fit(budget)
    return running(net, weights=streamer), streamer


def eight_bits(net) -> None:
    for layer in net.block_linears().values():
        weight, layer.weight_scale = quantise(layer.weight, "int8", torch.float32)
        layer.weight = nn.Parameter(weight, requires_grad=False)


def add_branches(net) -> None:
    generator = torch.Generator().manual_seed(1)
    for layer in net.block_linears().values():
        up, down = (
            torch.randn(layer.out_features, 2, generator=generator),
            torch.randn(2, layer.in_features, generator=generator),
        )
        layer.branches.append(LowRankBranch(0, 0.1 * up, 0.1 * down, 1.0))


def unchanged(net) -> None:
    pass


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
# How many blocks lie on the card at once has nothing to do with what they hold.
@pytest.mark.parametrize(
    ("change", "slots"), [*((unchanged, slots) for slots in (2, 3, 5)), (eight_bits, 3), (add_branches, 3)]
)
def test_streamed_is_resident_is_plain(long_net, change, share, slots):
    """Streamed, resident and plain networks give the same result, in float32, in 8 bits with scales, and with a LoRA's
    factors, with none to all of the blocks resident."""
    change(long_net)
    plain = velocity(long_net, GIVEN)
    device = FakeDevice()
    streamer = Streamer(device, long_net.weight_groups(), slots)
    budget = streamer.least_bytes + int(share * (streamer.step_bytes - streamer.least_bytes))
    streamer.fit(budget)
    long_net = running(long_net, weights=streamer)
    for _ in range(3):
        assert torch.equal(velocity(long_net, GIVEN), plain)
    assert streamer.card_bytes <= budget
    assert len(streamer.resident) == {0.0: 0, 1.0: 12}.get(share, len(streamer.resident)) and bool(streamer.resident) == bool(
        share
    )
    streamer.close()
    assert device.allocated() == 0 and device.locked == {}
    long_net = running(long_net, weights=InPlace())
    assert torch.equal(velocity(long_net, GIVEN), plain)


def test_weights_that_are_asked_for_too_early(long_net):
    """If weights are asked for before `fit` or outside of `job`, the error names them; it used to be about `None`."""
    streamer = Streamer(FakeDevice(), long_net.weight_groups())
    for name in ("dual/0", "time"):
        with pytest.raises(RuntimeError, match=name), streamer.lend(name):
            pass


def test_bytes_are_counted_three_ways(long_net):
    """The streamer's count, the card's count and the sum over the network's tensors agree."""
    device = FakeDevice()
    streamer = Streamer(device, long_net.weight_groups())
    groups = long_net.weight_groups()
    step = sum(module_bytes(module) for modules in groups.step.values() for module in modules)
    job = sum(module_bytes(module) for modules in groups.job.values() for module in modules)
    always = sum(module_bytes(module) for module in groups.always)
    assert step + job + always == module_bytes(long_net)
    tensors = sum(len(tensors_of(modules)) for modules in [*groups.step.values(), groups.always])
    assert step + always <= streamer.step_bytes < step + always + 256 * tensors
    for budget in range(streamer.least_bytes, streamer.step_bytes + 20000, 20000):
        streamer.fit(budget)
        assert device.allocated() == streamer.card_bytes <= budget
    assert streamer.resident == tuple(groups.step)
    streamer.leave(streamer.step_bytes // 2)
    assert device.allocated() == streamer.card_bytes <= streamer.step_bytes // 2
    streamer.leave()
    assert device.allocated() == streamer.card_bytes == 0


def test_a_step_moves_each_streamed_block_once(long_net):
    device = FakeDevice()
    long_net, streamer = stream(long_net, 0, device)
    job = long_net.prepare_job(GIVEN.text, GIVEN.pooled, GIVEN.image, 10.0, [0.7] * 8)
    section = section_of(long_net, GIVEN)
    long_net.step(GIVEN.x, 0, job, section)
    sizes = sum(group.bytes for group in streamer._step.values())
    before = device.copied
    for index in range(1, 5):
        long_net.step(GIVEN.x, index, job, section)
    assert device.copied - before == 4 * sizes
    streamer.fit(streamer.least_bytes + sizes // 2)
    long_net.step(GIVEN.x, 5, job, section)
    before = device.copied
    long_net.step(GIVEN.x, 6, job, section)
    streamed = sum(group.bytes for name, group in streamer._step.items() if name not in streamer.resident)
    assert device.copied - before == streamed < sizes


def test_tables_are_made_part_by_part_and_leave_nothing(long_net):
    """Two slots for the largest part, while half of the card is the modulation's."""
    device = FakeDevice()
    long_net, streamer = stream(long_net, 0, device)
    before = device.allocated()
    device.reset_peak()
    plain = long_net.prepare_job(GIVEN.text, GIVEN.pooled, None, 10.0, [0.9, 0.5])
    assert device.allocated() == before
    assert device.peak() == before + streamer.job_bytes
    streamer.close()
    long_net = running(long_net, weights=InPlace())
    other = long_net.prepare_job(GIVEN.text, GIVEN.pooled, None, 10.0, [0.9, 0.5])
    assert torch.equal(plain.context, other.context) and torch.equal(plain.head, other.head)
    assert all(torch.equal(a, b) for pair in zip(plain.dual, other.dual, strict=True) for a, b in zip(*pair, strict=True))


@pytest.mark.parametrize(("kind", "threshold"), [(TeaCache, 0.3), (FirstBlockCache, 0.9)])
def test_skipped_steps_do_not_disturb_the_ring(long_net, kind, threshold):
    job_arguments = GIVEN.text, GIVEN.pooled, GIVEN.image, 10.0, [0.9, 0.88, 0.86, 0.5, 0.3, 0.1]

    def run():
        cache = kind(threshold, 6)
        job, section, x = long_net.prepare_job(*job_arguments), section_of(long_net, GIVEN), GIVEN.x
        outputs = []
        for index in range(6):
            x = x - 0.1 * long_net.step(x, index, job, section, cache)
            outputs.append(x)
        return cache.computed, outputs

    plain = run()
    assert 2 <= len(plain[0]) < 6
    long_net, _ = stream(long_net, 0)
    streamed = run()
    assert streamed[0] == plain[0]
    assert all(torch.equal(a, b) for a, b in zip(plain[1], streamed[1], strict=True))


def test_strengths_change_between_steps(long_net):
    """Branches travel with their blocks; their strength is a number of the module."""
    add_branches(long_net)
    wanted = {}
    for strength in (0.0, 0.5):
        set_strengths(long_net, [strength])
        wanted[strength] = velocity(long_net, GIVEN)
    long_net, _ = stream(long_net, 0)
    for strength in (0.5, 0.0, 0.5):
        set_strengths(long_net, [strength])
        assert torch.equal(velocity(long_net, GIVEN), wanted[strength])


@pytest.mark.parametrize("missing", ["wait", "after"])
def test_a_forgotten_wait_shows(long_net, missing, monkeypatch):
    """Without one of the two waits the numbers are wrong; otherwise the other streaming tests would prove nothing."""
    plain = velocity(long_net, GIVEN)
    device = FakeDevice()
    long_net, _ = stream(long_net, 0, device)
    if missing == "wait":
        monkeypatch.setattr(device, "wait", lambda event: None)
    else:
        early, copy = device.mark(), device.copy
        monkeypatch.setattr(device, "copy", lambda pairs, after: copy(pairs, early))
    assert not torch.equal(velocity(long_net, GIVEN), plain)


@pytest.mark.parametrize("number", range(1, 30, 2))
def test_a_copy_that_fails_half_way(long_net, number):
    """If a copy fails half way, the error reaches the caller, and the next attempt computes with whole weights."""
    plain = velocity(long_net, GIVEN)
    device = FakeDevice()
    long_net, _ = stream(long_net, 0, device)
    device.fail_copy = {device.copies + number}
    with pytest.raises(RuntimeError, match="half-way"):
        for _ in itertools.repeat(None, 3):
            velocity(long_net, GIVEN)
    assert torch.equal(velocity(long_net, GIVEN), plain)


@pytest.mark.parametrize("number", range(2, 16))
def test_an_allocation_that_fails_while_blocks_are_kept(long_net, number):
    """Less is free than the driver said: fewer blocks stay, and the film goes on."""
    plain = velocity(long_net, GIVEN)
    device = FakeDevice()
    device.fail_allocation = {number}
    streamer = Streamer(device, long_net.weight_groups())
    whole = streamer.step_bytes
    streamer.fit(whole)
    long_net = running(long_net, weights=streamer)
    assert len(streamer.resident) == min(number - 2, 12)
    assert device.allocated() == streamer.card_bytes
    assert torch.equal(velocity(long_net, GIVEN), plain)


def test_a_card_with_nothing_left_says_so(long_net):
    device = FakeDevice()
    streamer = Streamer(device, long_net.weight_groups())
    device.capacity = streamer.least_bytes - 1
    with pytest.raises(torch.OutOfMemoryError):
        streamer.fit(2**40)
    streamer.leave()
    assert device.allocated() == 0


def out_of_memory_once(net, block: int, error: type[Exception] = torch.OutOfMemoryError):
    """Let the next pass through a single block fail."""
    failed = []

    def hook(module, arguments):
        if not failed:
            failed.append(True)
            raise error("injected")

    net.single_transformer_blocks[block].register_forward_pre_hook(hook)
    return failed


@pytest.mark.parametrize(
    ("block", "kind"), [*((block, TeaCache) for block in range(7)), (0, FirstBlockCache), (6, FirstBlockCache)]
)
def test_memory_that_is_taken_in_mid_run(long_net, block, kind):
    """Half of the resident blocks leave, the step is repeated once, and its numbers and the step cache's are the same."""
    sigmas = [0.9, 0.88, 0.5, 0.1]
    section = section_of(long_net, GIVEN)
    job = long_net.prepare_job(GIVEN.text, GIVEN.pooled, GIVEN.image, 10.0, sigmas)

    def run():
        cache = kind(0.3, 4)
        return [long_net.step(GIVEN.x, index, job, section, cache) for index in range(4)], cache.computed

    plain = run()
    device = FakeDevice()
    long_net, streamer = stream(long_net, 2**40, device)
    failed = out_of_memory_once(long_net, block)
    again = run()
    assert failed and again[1] == plain[1]
    assert all(torch.equal(a, b) for a, b in zip(plain[0], again[0], strict=True))
    assert 0 < len(streamer.resident) < 12 and device.allocated() == streamer.card_bytes < streamer.step_bytes


def test_memory_that_stays_taken(long_net):
    """If memory runs out a second time, the job ends; so it does the first time if nothing is resident."""

    def always(module, arguments):
        raise torch.OutOfMemoryError("injected")

    long_net, streamer = stream(long_net, 2**40)
    handle = long_net.single_transformer_blocks[3].register_forward_pre_hook(always)
    for _ in range(8):
        with pytest.raises(torch.OutOfMemoryError):
            velocity(long_net, GIVEN)
    assert streamer.resident == ()
    handle.remove()
    velocity(long_net, GIVEN)


def test_tables_make_room_for_themselves(long_net):
    plain = velocity(long_net, GIVEN)
    device = FakeDevice()
    long_net, streamer = stream(long_net, 2**40, device)
    device.capacity = device.allocated()
    assert torch.equal(velocity(long_net, GIVEN), plain)
    assert 0 < len(streamer.resident) < 12


def test_resident_parts_are_evenly_spaced():
    groups = [WeightGroup(str(number), [nn.Linear(8, 8, bias=False)]) for number in range(60)]
    size = groups[0].bytes
    for count in (0, 1, 7, 20, 30, 45, 59, 60):
        chosen = [int(group.name) for group in evenly_spaced(groups, count * size + size // 2)]
        assert len(chosen) == count
        gaps = {b - a for a, b in itertools.pairwise(chosen)}
        assert not gaps or max(gaps) - min(gaps) <= 1
    assert evenly_spaced(groups, -1) == [] == evenly_spaced(groups, 0)


def test_what_stays_is_not_copied_again_for_a_few_bytes(long_net):
    """Free memory differs a little at every section; blocks that stay must not wander."""
    device = FakeDevice()
    long_net, streamer = stream(long_net, 0, device)
    budget = (streamer.least_bytes + streamer.step_bytes) // 2
    streamer.fit(budget)
    before, resident = device.copied, streamer.resident
    for less in (100, 0, 200, 50):
        streamer.fit(budget - less)
    assert set(streamer.resident) <= set(resident)
    assert len(resident) - len(streamer.resident) <= 1
    assert device.copied - before <= max(group.bytes for group in streamer._step.values())


def test_memory_that_may_not_be_locked_is_staged(long_net):
    """Containers and Windows cap it: part is locked, all of it is right, and closing unlocks."""
    plain = velocity(long_net, GIVEN)
    device = FakeDevice()
    long_net, streamer = stream(long_net, 0, device)
    sizes = [run.source.numel() for group in streamer._step.values() for run in group.runs]
    device.lockable = sum(sizes) // 2
    assert sum(sizes) // 3 < streamer.lock(2**40) == sum(device.locked.values()) <= sum(sizes) // 2
    assert torch.equal(velocity(long_net, GIVEN), plain)
    streamer.close()
    assert device.locked == {}
    # Nor more than the caller allows, so that the system is not starved.
    assert stream(long_net, 0)[1].lock(sum(sizes) // 4) <= sum(sizes) // 4


def test_one_slab_that_may_not_be_locked_is_not_the_last(long_net, monkeypatch):
    device, asked = FakeDevice(), []
    (_, streamer), lock = stream(long_net, 0, device), device.lock
    monkeypatch.setattr(device, "lock", lambda memory: asked.append(memory) or (len(asked) != 3 and lock(memory)))
    streamer.lock(2**40)
    assert len(device.locked) == len(asked) - 1 > 3


def test_every_block_is_one_copy(long_net):
    """Weights, scales and LoRA factors of a block move together: a copy for each tensor would be two thousand a step."""
    eight_bits(long_net)
    add_branches(long_net)
    streamer = Streamer(FakeDevice(), long_net.weight_groups())
    assert all(len(group.runs) == 1 for group in streamer._step.values())


def test_parts_may_come_in_any_order():
    """Parts may be asked for in any order: an unexpected one only makes the ring slower."""
    layers = [nn.Linear(8, 8) for _ in range(6)]
    groups = [WeightGroup(str(number), [layer]) for number, layer in enumerate(layers)]
    x = torch.randn(2, 8)
    wanted = [layer(x) for layer in layers]
    device = FakeDevice()
    ring = Ring(device, groups, 3, cyclic=True)
    generator = torch.Generator().manual_seed(0)
    for number in torch.randint(6, (200,), generator=generator).tolist():
        with ring.lend(groups[number]):
            assert torch.equal(layers[number](x), wanted[number])
    ring.close()
    assert device.allocated() == 0


def test_a_part_without_tensors_and_a_network_without_blocks():
    device = FakeDevice()
    streamer = Streamer(device, WeightGroups(always=[nn.Identity()], step={"only": [nn.Linear(2, 2)]}))
    streamer.fit(0)
    with streamer.lend("only"):
        pass
    streamer.close()
    assert device.allocated() == 0
