"""Test schedule, noise, guidance, and the sampler against one that solves its equations at every step."""

from __future__ import annotations

import math

import pytest
import torch

from diffusers_helper.sampling import guide, noise_like, noised, schedule, shift_mu, unipc, unipc_table

# Spec/core 3.1, n = 25, s = 7.
SIGMAS_25 = (
    1, 0.99408, 0.98773, 0.98089, 0.97351, 0.96552, 0.95683, 0.94737, 0.93701, 0.92562, 0.91304, 0.89908, 0.88350, 0.86598,
    0.84615, 0.82353, 0.79747, 0.76712, 0.73134, 0.68852, 0.63636, 0.57143, 0.48837, 0.37838, 0.22581, 0,
)  # fmt: skip
# n = 1 to 4 have other orders than the rest; the shifts are those of small, middle and full pictures.
STEPS, SHIFTS = (1, 2, 3, 4, 25), (7.0, 3.16, 1.8)


def test_the_published_schedule():
    """The schedule of 25 steps at 640 is the published list, with which users' seeds were made."""
    sigmas = schedule(25, 13680)
    assert sigmas == pytest.approx(SIGMAS_25, abs=5.1e-6)
    assert sigmas[0] == 1.0 and sigmas[-1] == 0.0


@pytest.mark.parametrize(("side", "shift"), [((512, 512), 7.0), ((448, 448), 5.21), ((384, 384), 3.80), ((320, 304), 2.82)])
def test_small_pictures_are_shifted_less(side, shift):
    """The schedule for 9 latents has the reference's values."""
    tokens = 9 * side[0] * side[1] // 8 // 8 // 4
    assert math.exp(shift_mu(tokens)) == pytest.approx(shift, abs=6e-3)


def test_the_shift_ends_at_seven():
    """The shift is capped at seven, reached at 8798 tokens; without the cap large pictures would never see the low noise
    levels."""
    assert shift_mu(256) == pytest.approx(0.5) and shift_mu(4096) == pytest.approx(1.15)
    assert shift_mu(8797) < math.log(7.0)
    assert shift_mu(8798) == shift_mu(10**6) == math.log(7.0)


def test_a_given_shift_goes_before_the_automatic_one():
    for i, sigma in enumerate(schedule(10, 999999, shift=3.0)):
        t = 1 - i / 10
        assert sigma == pytest.approx(3 * t / (1 + 2 * t))


@pytest.mark.parametrize("steps", STEPS)
def test_strength_scales_the_whole_schedule(steps):
    """The image strength multiplies every sigma, instead of starting later in the same list."""
    full, weak = schedule(steps, 5000), schedule(steps, 5000, strength=0.8)
    assert len(full) == steps + 1
    assert weak == pytest.approx([0.8 * sigma for sigma in full])
    for row, scaled in zip(unipc_table(full), unipc_table(weak), strict=True):
        assert scaled.predict == pytest.approx(row.predict) and scaled.correct == pytest.approx(row.correct)


def direct_unipc(denoise, x, sigmas):
    """Sample by the published formulas: build R and b and solve at every step, in the tensors' precision."""
    n = len(sigmas) - 1
    order = min(3, n - 1)
    predictions = [denoise(x, 0)]
    for i in range(1, n):
        p = min(i, order)
        h = math.log(sigmas[i - 1] / sigmas[i])
        r = [math.log(sigmas[i - 1] / sigmas[i - 1 - j]) / h for j in range(1, p)] + [1.0]
        hh = -h
        phi = math.expm1(hh)
        big_b = hh
        psi = phi / hh - 1
        b = []
        for k in range(1, p + 1):
            b.append(math.factorial(k) * psi / big_b)
            psi = psi / hh - 1 / math.factorial(k + 1)
        system = torch.tensor([[r_j ** (k - 1) for r_j in r] for k in range(1, p + 1)], dtype=torch.float64)
        right = torch.tensor(b, dtype=torch.float64)
        newest = predictions[-1]
        differences = [(predictions[-1 - j] - newest) / r[j - 1] for j in range(1, p)]
        base = (sigmas[i] / sigmas[i - 1]) * x - phi * newest
        rho_p = {1: [], 2: [0.5]}.get(p)
        if rho_p is None:
            rho_p = torch.linalg.solve(system[:2, :2], right[:2]).tolist()
        predicted = base - big_b * sum((rho * d for rho, d in zip(rho_p, differences, strict=True)), torch.zeros_like(x))
        new = denoise(predicted, i)
        rho_c = [0.5] if p == 1 else torch.linalg.solve(system, right).tolist()
        corrections = [*differences, new - newest]
        x = base - big_b * sum(rho * d for rho, d in zip(rho_c, corrections, strict=True))
        predictions.append(new)
    return predictions


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", STEPS)
def test_the_table_equals_solving_at_every_step(steps, shift, dtype):
    """The table of the sampler's numbers, made once, equals solving at every step: a slip in a sign or an order bends every
    film."""
    sigmas = schedule(steps, 0, shift)
    x = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)

    def denoise(x, i):
        return torch.tanh(x) * (1 - sigmas[i]) + 0.3 * torch.sin(3 * x + sigmas[i])

    ours = [x0 for _, x0 in unipc(denoise, x, sigmas)]
    theirs = direct_unipc(denoise, x, sigmas)
    assert len(ours) == len(theirs) == steps
    tolerance = 1e-11 if dtype == torch.float64 else 2e-6
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == dtype and (one - other).abs().max() <= tolerance


def test_first_rows_of_the_table():
    """The first rows of the table are those of spec/core 3.3, computed with the original."""
    rows = unipc_table(schedule(25, 0, 7.0))
    assert len(rows) == 24
    expected = [
        (0.994083, (0.005917,), (0.002950,), 0.002967),
        (0.993609, (0.009853, -0.003463), (0.004342, -0.000597), 0.002646),
        (0.993077, (0.014039, -0.010745, 0.003630), (0.005709, -0.001734, 0.000390), 0.002558),
    ]
    for row, (x, predict, correct, new) in zip(rows, expected, strict=False):
        assert row.x == pytest.approx(x, abs=6e-7)
        assert row.predict == pytest.approx(predict, abs=6e-7)
        assert row.correct == pytest.approx(correct, abs=6e-7)
        assert row.correct_new == pytest.approx(new, abs=6e-7)


@pytest.mark.parametrize("steps", STEPS)
def test_a_clean_prediction_that_never_changes_is_the_result(steps):
    """The weights of a row sum to one: at the solution the sampler stays where it is."""
    target = torch.full((1, 2), 3.0, dtype=torch.float64)
    *_, (_, result) = unipc(lambda x, i: target, torch.randn(1, 2, dtype=torch.float64), schedule(steps, 0, 7.0))
    assert torch.equal(result, target)
    for row in unipc_table(schedule(steps, 0, 7.0)):
        assert row.x + sum(row.predict) == pytest.approx(1.0, abs=1e-12)
        assert row.x + sum(row.correct) + row.correct_new == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("steps", STEPS)
def test_one_network_call_a_step_and_none_before_it_is_wanted(steps):
    """Stopping a film stops the calls: a step at full size takes seconds."""
    calls = []

    def denoise(x, i):
        calls.append(i)
        return 0.5 * x

    sampler = unipc(denoise, torch.ones(1, 2), schedule(steps, 0, 7.0))
    assert calls == []
    for number, (i, _) in enumerate(sampler):
        assert i == number and calls == list(range(number + 1))
    assert calls == list(range(steps))


def test_a_stopped_sampler_calls_no_more():
    calls = []

    def denoise(x, i):
        calls.append(i)
        return 0.5 * x

    sampler = unipc(denoise, torch.ones(1, 2), schedule(25, 0, 7.0))
    next(sampler), next(sampler)
    sampler.close()
    assert calls == [0, 1] and list(sampler) == []


def test_the_noise_given_to_the_sampler_is_left_as_it_was():
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    list(unipc(lambda x, i: torch.tanh(x), x, schedule(6, 0, 7.0)))
    assert torch.equal(x, before)


def test_noise_comes_in_order_from_the_generator():
    """Noise comes from one generator per job, so that a seed gives the same film, section by section, whatever else draws
    numbers."""
    generator = torch.Generator().manual_seed(31337)
    first = noise_like((1, 16, 9, 4, 6), generator)
    torch.rand(100)
    second = noise_like((1, 16, 5, 4, 6), generator)
    again = torch.Generator().manual_seed(31337)
    assert first.dtype == torch.float32 and not torch.equal(first[:, :, :5], second)
    assert torch.equal(first, torch.randn(1, 16, 9, 4, 6, generator=again))
    assert torch.equal(second, torch.randn(1, 16, 5, 4, 6, generator=again))


def test_noised_is_the_straight_line_between_picture_and_noise():
    """Spec/core 3.4: at 1 only noise, at 0 only the picture."""
    picture, noise = torch.tensor([2.0, -4.0]), torch.tensor([1.0, 1.0])
    assert torch.equal(noised(picture, noise, 1.0), noise)
    assert torch.equal(noised(picture, noise, 0.0), picture)
    assert torch.equal(noised(picture, noise, 0.25), torch.tensor([1.75, -2.75]))


def velocities():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 4, 5, 6, generator=generator) * (i + 1) for i in range(2)]


def test_guidance_goes_beyond_the_positive_pass():
    """v_n + cfg (v_p - v_n): 1 is the positive pass, 0 the negative one."""
    positive, negative = velocities()
    assert (guide(positive, negative, 1.0, 0.0) - positive).abs().max() <= 1e-6
    assert torch.equal(guide(positive, negative, 0.0, 0.0), negative)
    assert (guide(positive, negative, 3.0, 0.0) - (3 * positive - 2 * negative)).abs().max() <= 1e-5


@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_rescaling_brings_the_contrast_back(rescale):
    """phi v std(v_p) / std(v) + (1 - phi) v, each batch entry by itself."""
    positive, negative = velocities()
    plain = guide(positive, negative, 4.0, 0.0)
    result = guide(positive, negative, 4.0, rescale)
    for i in range(2):
        ratio = positive[i].std() / plain[i].std()
        assert (result[i] - (rescale * ratio + 1 - rescale) * plain[i]).abs().max() <= 1e-5
        if rescale == 1.0:
            assert result[i].std().item() == pytest.approx(positive[i].std().item(), rel=1e-5)
