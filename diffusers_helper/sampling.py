"""Sample latents: the noise schedule, guidance and the UniPC sampler, as independent parts.

Formulas are those of FramePack's reference code and of UniPC (Zhao et al. 2023, arXiv 2302.04867).

The schedule is a list of sigmas from 1 to 0, a denoiser is any `denoise(x, step) -> x0`, and the sampler is a generator. Sigmas
are Python floats, so nothing in a step waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

# Time shift e^mu: mu rises linearly through 0.5 at 256 tokens and 1.15 at 4096, and is ln 7 at most.
MU_AT = ((256, 0.5), (4096, 1.15))
MAX_SHIFT = 7.0


def shift_mu(tokens: int) -> float:
    """Return mu, the logarithm of the schedule's time shift, for this number of noisy tokens."""
    (low, mu_low), (high, mu_high) = MU_AT
    return min(mu_low + (mu_high - mu_low) / (high - low) * (tokens - low), math.log(MAX_SHIFT))


def schedule(steps: int, tokens: int, shift: float | None = None, strength: float = 1.0) -> list[float]:
    """Return the noise schedule: steps + 1 sigmas that fall from `strength` to 0.

    tokens: T h w / 4 for latents of T frames and h x w cells. shift: the time shift to use instead of the automatic e^mu.
    """
    factor = shift if shift is not None else math.exp(shift_mu(tokens))
    times = [1.0 - i / steps for i in range(steps + 1)]
    return [strength * factor * t / (1.0 + (factor - 1.0) * t) for t in times]


def noise_like(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return standard normal noise of this shape, float32, on the generator's device.

    A CPU generator gives the same film on every card.
    """
    return torch.randn(tuple(shape), generator=generator, device=generator.device, dtype=torch.float32)


def noised(initial: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Return the latents that sampling begins with at noise level sigma.

    They mix 1 - sigma of the initial latents with sigma of the noise, so the picture shines through.
    """
    return initial * (1.0 - sigma) + noise * sigma


def guide(positive: Tensor, negative: Tensor, scale: float, rescale: float) -> Tensor:
    """Combine a positive and a negative velocity by real (classifier-free) guidance with rescaled contrast.

    scale: 1 is the positive velocity alone. rescale: share, 0 to 1, of the result whose standard deviation is brought back to
    the positive velocity's.
    """
    velocity = negative + scale * (positive - negative)
    if rescale <= 0.0:
        return velocity
    dims = tuple(range(1, velocity.ndim))
    ratio = positive.std(dim=dims, keepdim=True) / velocity.std(dim=dims, keepdim=True)
    return rescale * velocity * ratio + (1.0 - rescale) * velocity


@dataclass(frozen=True)
class UniPCRow:
    """Hold the coefficients of one sampler step: the weights of x and of the clean predictions m, newest first.

    predict: for m[i-1], m[i-2], ...; correct: likewise, and correct_new for m[i] itself.
    """

    x: float
    predict: tuple[float, ...]
    correct: tuple[float, ...]
    correct_new: float


def unipc_table(sigmas: Sequence[float], order: int = 3) -> list[UniPCRow]:
    """Return the coefficients of every step from the second on.

    UniPC with data prediction, variant "bh1", and lambda = -ln sigma. Everything but the predictions depends on sigmas only, so
    it is solved here once, in float64.
    """
    steps = len(sigmas) - 1
    rows = []
    for i in range(1, steps):
        p = min(i, order, steps - 1)
        h = math.log(sigmas[i - 1] / sigmas[i])
        r = [math.log(sigmas[i - 1] / sigmas[i - 1 - j]) / h for j in range(1, p)] + [1.0]
        phi = math.expm1(-h)
        scale = -h
        psi, right = phi / -h - 1.0, []
        for k in range(1, p + 1):
            right.append(math.factorial(k) * psi / scale)
            psi = psi / -h - 1.0 / math.factorial(k + 1)
        powers = numpy.array([[r_j ** (k - 1) for r_j in r] for k in range(1, p + 1)])
        rho_correct = [0.5] if p == 1 else numpy.linalg.solve(powers, right).tolist()
        if p == 1:
            rho_predict = []
        elif p == 2:
            rho_predict = [0.5]
        else:
            rho_predict = numpy.linalg.solve(powers[:-1, :-1], right[:-1]).tolist()
        predict = _row(phi, scale, r, rho_predict)
        correct = _row(phi, scale, r, rho_correct[:-1])
        correct[0] += scale * rho_correct[-1]
        rows.append(UniPCRow(sigmas[i] / sigmas[i - 1], tuple(predict), tuple(correct), -scale * rho_correct[-1]))
    return rows


def _row(phi: float, scale: float, r: Sequence[float], rho: Sequence[float]) -> list[float]:
    """Return the weights of m[i-1], m[i-2], ... in -phi m[i-1] - scale sum_j rho_j (m[i-1-j] - m[i-1]) / r_j."""
    weights = [-phi] + [0.0] * len(rho)
    for j, rho_j in enumerate(rho):
        weights[0] += scale * rho_j / r[j]
        weights[j + 1] -= scale * rho_j / r[j]
    return weights


def unipc(denoise: Callable[[Tensor, int], Tensor], x: Tensor, sigmas: Sequence[float]) -> Iterator[tuple[int, Tensor]]:
    """Yield (step, x0) after each of the len(sigmas) - 1 steps; the last x0 is the result.

    Each step calls the network once. x: the noisy latents that sampling begins with.
    """
    clean = [denoise(x, 0)]
    yield 0, clean[0]
    for i, row in enumerate(unipc_table(sigmas), start=1):
        predicted = _combine(row.x, x, row.predict, clean)
        new = denoise(predicted, i)
        x = _combine(row.x, x, row.correct, clean) + row.correct_new * new
        clean = [new, *clean[:2]]
        yield i, new


def _combine(weight: float, x: Tensor, weights: Sequence[float], clean: Sequence[Tensor]) -> Tensor:
    result = weight * x
    for w, m in zip(weights, clean, strict=False):
        result = result + w * m
    return result
