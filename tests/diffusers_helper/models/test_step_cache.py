"""Test TeaCache: which steps are skipped, and what skipping does."""

from __future__ import annotations

import itertools

import pytest
import torch

from diffusers_helper.models.step_cache import FirstBlockCache, TeaCache, polynomial
from tests.diffusers_helper.inputs import LAYOUTS, inputs, section_of

STEPS = 25


def computed(cache: TeaCache, tensors) -> list[int]:
    """Return the steps that the cache wants computed."""
    return [i for i, tensor in enumerate(tensors) if cache.must_compute(tensor)]


def growing(change: float, steps: int = STEPS) -> list[torch.Tensor]:
    """Return inputs whose relative change from step to step is `change`, in float64."""
    return [torch.ones(1, 4, 8, dtype=torch.float64) * (1 + change) ** i for i in range(steps)]


def longest_skip(steps: list[int]) -> int:
    return max(b - a - 1 for a, b in itertools.pairwise(steps))


def test_the_fit_of_the_authors():
    """The polynomial gives the values of the published fit."""
    assert polynomial(0.0) == pytest.approx(0.0961237896)
    assert polynomial(0.1) == pytest.approx(0.129, abs=5e-4)
    lowest = min(range(1, 1000), key=lambda i: polynomial(i / 1000)) / 1000
    assert lowest == pytest.approx(0.031, abs=1e-3) and polynomial(lowest) == pytest.approx(0.052, abs=5e-4)


def test_an_input_that_does_not_change_is_computed_every_second_time():
    """An unchanged input is computed every second time: the estimate is 0.096 a step even then, and two of them pass 0.15."""
    cache = TeaCache(0.15, STEPS)
    assert computed(cache, growing(0.0)) == [0, *range(2, 24, 2), 24]
    assert cache.computed == [0, *range(2, 24, 2), 24]


@pytest.mark.parametrize("change", [0.0, 0.01, 0.02, 0.031, 0.05, 0.1, 0.15, 0.2, 0.3, 1.0])
def test_never_more_than_two_skips_in_a_row_at_the_usual_threshold(change):
    """The fit's minimum is 0.052: whatever the film, a third skip cannot follow, and first and last are computed."""
    steps = computed(TeaCache(0.15, STEPS), growing(change))
    assert steps[0] == 0 and steps[-1] == STEPS - 1
    assert longest_skip(steps) <= 2
    if change == 0.031:
        assert longest_skip(steps) == 2


@pytest.mark.parametrize("kind", [TeaCache, FirstBlockCache])
@pytest.mark.parametrize("steps", [1, 2, 3, 25])
def test_first_and_last_steps_are_always_computed(kind, steps):
    """The last step makes the result; the first has nothing to go by. Also where they are the same."""
    assert computed(kind(1e9, steps), growing(0.0, steps)) == sorted({0, steps - 1})


def test_the_estimate_adds_up_from_every_step_not_from_the_last_computed():
    """Each change is measured against the step before, skipped or not: m_prev is updated every call."""
    inputs_ = [torch.full((1, 2, 2), value) for value in (1.0, 1.1, 1.1, 1.1, 1.1)]
    # p(0.1) = 0.129, then p(0) = 0.096: 0.129, 0.225, 0.321. Against step 0 it would be 0.258 at step 2 already.
    assert computed(TeaCache(0.24, 6), inputs_) == [0, 3]


def test_threshold_zero_computes_every_step():
    assert computed(TeaCache(0.0, STEPS), growing(0.031)) == list(range(STEPS))


def test_caches_of_two_guidance_branches_do_not_influence_each_other():
    """The original had one state for both: it compared the positive with the negative pass and counted twice as fast."""
    positive, negative = growing(0.031), growing(0.2)
    alone = [computed(TeaCache(0.15, STEPS), branch) for branch in (positive, negative)]
    caches = TeaCache(0.15, STEPS), TeaCache(0.15, STEPS)
    together: list[list[int]] = [[], []]
    for i, pair in enumerate(zip(positive, negative, strict=True)):
        for cache, tensor, steps in zip(caches, pair, together, strict=True):
            if cache.must_compute(tensor):
                steps.append(i)
    assert together == alone
    assert alone[0] != alone[1]


def test_the_first_block_is_compared_with_the_last_computed_step():
    """Changes too small each for itself add up: against step 0 they are 4, 8 and 12 percent."""
    inputs_ = [torch.full((1, 2, 2), value) for value in (1.0, 1.04, 1.08, 1.12, 1.16, 1.2, 1.24)]
    cache = FirstBlockCache(0.1, 9)
    assert computed(cache, inputs_) == cache.computed == [0, 3, 6]


@torch.inference_mode()
def test_the_first_block_is_heard_in_a_skipped_step(net):
    """A skipped step adds its own first block's change, not the last computed step's: another input gives another output."""
    given = inputs(LAYOUTS["forward"], 10, 6)
    job = net.prepare_job(given.text, given.pooled, given.image, 10.0, [0.9, 0.5])
    section, cache = section_of(net, given), Script([True, False], after_first_block=True)
    net.step(given.x, 0, job, section, cache)
    hidden = torch.cat([section.clean, net.x_embedder(given.x)], dim=1)
    wanted = []
    net.transformer_blocks[0].register_forward_hook(lambda block, given, made: wanted.append(made[0]))
    before = cache.residual.clone()
    seen = []
    skipped = net._through_blocks(hidden, 1, job, section, Seeing([False], cache.residual, seen))
    assert torch.equal(skipped, wanted[0] + before) and torch.equal(seen[0], wanted[0] - hidden)


class Script:
    """Stand in for a step cache with given answers."""

    def __init__(self, answers, after_first_block=False):
        self.answers = iter(answers)
        self.after_first_block = after_first_block
        self.residual = None

    def must_compute(self, modulated):
        return next(self.answers)

    def state(self):
        return {}

    def restore(self, state):
        assert state == {}


class Seeing(Script):
    """Note what the cache is shown after the first block."""

    def __init__(self, answers, residual, seen):
        super().__init__(answers, after_first_block=True)
        self.residual, self.seen = residual, seen

    def must_compute(self, seen):
        self.seen.append(seen)
        return super().must_compute(seen)


@pytest.mark.parametrize("after", [False, True])
def test_a_skipped_step_runs_no_block_and_adds_what_they_added_before(net, after):
    """With the same input and tables a skipped step equals the computed one and takes none of its time. With a first-block
    cache only that block runs, and its own change is added as it is."""
    given = inputs(LAYOUTS["forward"], 10, 6)
    job = net.prepare_job(given.text, given.pooled, given.image, 10.0, [0.9, 0.9, 0.5])
    section = section_of(net, given)
    calls = []
    for block in (*net.transformer_blocks, *net.single_transformer_blocks):
        block.register_forward_hook(lambda *_: calls.append(1))
    cache = Script([True, False, False], after)
    first, skipped = (net.step(given.x, i, job, section, cache) for i in (0, 1))
    assert len(calls) == len(net.transformer_blocks) + len(net.single_transformer_blocks) + after
    assert (skipped - first).abs().max() <= 1e-6
    # The head still belongs to its own step.
    assert (net.step(given.x, 2, job, section, cache) - first).abs().max() > 1e-4


@pytest.mark.parametrize("kind", [TeaCache, FirstBlockCache])
def test_a_cache_that_computes_everything_changes_nothing(net, kind):
    """A step cache with threshold 0 gives exactly the film without a cache."""
    given = inputs(LAYOUTS["one picture"], 10, 6)
    sigmas = [0.9, 0.6, 0.3]
    job = net.prepare_job(given.text, given.pooled, given.image, 10.0, sigmas)
    section, cache = section_of(net, given), kind(0.0, 3)
    for i in range(3):
        assert torch.equal(net.step(given.x, i, job, section, cache), net.step(given.x, i, job, section))
    assert cache.computed == [0, 1, 2]


def test_the_cache_sees_clean_and_noisy_tokens(net):
    """The whole sequence is measured, as where the coefficients come from."""
    given = inputs(LAYOUTS["reverse, last section"], 10, 6)
    seen = []

    class Spy(Script):
        def must_compute(self, modulated):
            seen.append(modulated)
            return True

    job = net.prepare_job(given.text, given.pooled, given.image, 10.0, [0.9])
    section = section_of(net, given)
    net.step(given.x, 0, job, section, Spy([]))
    assert seen[0].shape == (1, section.clean.shape[1] + 9 * 5 * 3, net.config.dim)
