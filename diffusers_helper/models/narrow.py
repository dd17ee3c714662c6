"""Multiply 8-bit floating-point numbers on cards that have units for it: half the time of 16 bits on Ada, Hopper, Blackwell.

Every token of the input and every output channel of the weight has a scale, so an outlier spoils only its own row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusers_helper.models.attention import kernel_errors
from diffusers_helper.torch_compat import scaled_mm


class LowRank(NamedTuple):
    """Hold what is added to a weight (out, in): up (out, ranks) @ down (ranks, in)."""

    down: Tensor
    up: Tensor


# product(x (..., in), weight (out, in) in float8, its scale (out, 1), bias (out,), largest, added) -> (..., out) in x's dtype.
# largest: None, or (..., 1), for each token of x a number that none of its absolute values exceeds and the largest comes near.
# added: None, or a low-rank addition to the weight.
Product = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, LowRank | None], Tensor]
NARROW = torch.float8_e4m3fn
LARGEST = 448.0
# Ranks are padded to a multiple of this: a product has twice as many outputs, and they must be a multiple of 16.
RANKS = 8
# Compute capability of the first cards with such units.
FIRST_CAPABILITY = (8, 9)
# Both paths multiply the same numbers; they differ by the order of additions and by 16-bit rounding of the result.
TOLERANCE = 1e-2


def narrowed(x: Tensor, largest: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Quantise x (tokens, in) to float8; return it and the scale of each token, (tokens, 1) float32.

    largest: as in `Product`, (tokens, 1).
    """
    wide = x.float()
    if largest is None:
        largest = wide.abs().amax(dim=1, keepdim=True)
    scale = (largest.float() / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    return (wide * (1.0 / scale)).clamp(-LARGEST, LARGEST).to(NARROW), scale


def emulated(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    largest: Tensor | None = None,
    added: LowRank | None = None,
) -> Tensor:
    """Compute a `Product` as the card's units do, but in float32, with the low-rank addition in wide numbers.

    It serves tests and the probe.
    """
    q, scale = _tokens_narrowed(x, largest)
    y = (q.float() @ weight.float().t()) * scale * weight_scale.float().t() + bias.float()
    if added is not None:
        y = y + ((q.float() * scale) @ added.down.float().t()) @ added.up.float().t()
    return y.to(x.dtype).view(*x.shape[:-1], -1)


def scaled(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    largest: Tensor | None = None,
    added: LowRank | None = None,
) -> Tensor:
    """Compute a `Product` through `torch_compat.scaled_mm` with scales by row.

    The result is bfloat16 first, which that kernel wants, and then converted to x's dtype.
    """
    q, scale = _tokens_narrowed(x, largest)
    y = _product(q, scale, weight, weight_scale, bias.bfloat16())
    if added is not None:
        y = torch.addmm(y, _through(added.down, q, scale), added.up.bfloat16().t())
    return y.to(x.dtype).view(*x.shape[:-1], -1)


def _through(down: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    """Return x @ down^T, (tokens, ranks) bfloat16, for down (ranks, in) and an x that is there in 8 bits alone.

    Writing x in 16 bits besides would cost a step more than everything else of an addition. down is written as the sum of two
    float8 matrices, the second of which holds what the first lacks.
    """
    ranks = len(down)
    down = F.pad(down.float(), (0, 0, 0, -ranks % RANKS))
    coarse, coarse_scale = narrowed(down)
    fine, fine_scale = narrowed(down - coarse.float() * coarse_scale)
    made = _product(q, scale, torch.cat([coarse, fine]), torch.cat([coarse_scale, fine_scale]))
    return (made[:, : len(down)] + made[:, len(down) :])[:, :ranks]


def _product(q: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply q (tokens, in) and a weight (out, in), both in float8 with their scales: (tokens, out) bfloat16."""
    other = weight_scale.float().t().contiguous()
    return scaled_mm(q, weight, scale, other, bias)


def _tokens_narrowed(x: Tensor, largest: Tensor | None) -> tuple[Tensor, Tensor]:
    return narrowed(x.flatten(0, -2), None if largest is None else largest.flatten(0, -2))


def choose_product(device: torch.device) -> Product | None:
    """Return `scaled` where a small call computes right on this card, else None.

    float8 weights are then widened for use.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        return None
    return scaled if probe(device, scaled) else None


def probe(device: torch.device, product: Product) -> bool:
    """Return whether a product computes on this device, and right.

    It does not if it raises an error of its own or differs from `emulated`.
    """
    generator = torch.Generator().manual_seed(0)
    x, wide = (torch.randn(rows, 128, generator=generator).to(device) for rows in (48, 64))
    weight, scale = narrowed(wide)
    bias = torch.ones(64, dtype=torch.bfloat16, device=device)
    added = LowRank(*(torch.randn(shape, generator=generator).to(device, torch.bfloat16) for shape in ((3, 128), (64, 3))))
    given = x.bfloat16(), weight, scale, bias, None, added
    try:
        made = product(*given).float()
    except kernel_errors():
        return False
    exact = emulated(*given).float()
    return bool((made - exact).norm() <= TOLERANCE * exact.norm())
