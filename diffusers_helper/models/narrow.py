"""Products of 8-bit floating-point numbers, for cards that have the units: half the time of 16 bits on Ada, Hopper, Blackwell.

A scale for every token of the input and for every output channel of the weight, so an outlier spoils only its own row.
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
    """What is added to a weight (out, in): up (out, ranks) @ down (ranks, in)."""

    down: Tensor
    up: Tensor


# product(x (..., in), weight (out, in) in float8, its scale (out, 1), bias (out,), largest, added) -> (..., out) in x's dtype.
# largest: None, or (..., 1), numbers that no absolute value of a token of x exceeds, and that one comes near.
# added: None, or a low-rank addition to the weight.
Product = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, LowRank | None], Tensor]
NARROW = torch.float8_e4m3fn
LARGEST = 448.0
# The outputs of a product are a multiple of twice this.
RANKS = 8
# Compute capability of the first cards with the units.
FIRST_CAPABILITY = (8, 9)
# Both paths multiply the same numbers; they differ by the order of additions and by 16-bit rounding of the result.
TOLERANCE = 1e-2


def narrowed(x: Tensor, largest: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x (tokens, in) -> in float8, and the scale of each token, (tokens, 1) float32; largest as in `Product`, (tokens, 1)."""
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
    """What the card's units compute, in float32, the addition in wide numbers: for tests and for the probe."""
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
    """Through `torch_compat.scaled_mm` with scales by row; the result in bfloat16 first, which that kernel wants."""
    q, scale = _tokens_narrowed(x, largest)
    y = _product(q, scale, weight, weight_scale, bias.bfloat16())
    if added is not None:
        y = torch.addmm(y, _through(added.down, q, scale), added.up.bfloat16().t())
    return y.to(x.dtype).view(*x.shape[:-1], -1)


def _through(down: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    """down (ranks, in) @ x, (tokens, ranks) bfloat16, of an x that is there in 8 bits alone: writing it in 16 besides costs a
    step more than everything else of an addition. down is the sum of two numbers of 8 bits, the second what the first lacks."""
    ranks = len(down)
    down = F.pad(down.float(), (0, 0, 0, -ranks % RANKS))
    coarse, coarse_scale = narrowed(down)
    fine, fine_scale = narrowed(down - coarse.float() * coarse_scale)
    made = _product(q, scale, torch.cat([coarse, fine]), torch.cat([coarse_scale, fine_scale]))
    return (made[:, : len(down)] + made[:, len(down) :])[:, :ranks]


def _product(q: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """q (tokens, in) and a weight (out, in), both in float8 with their scales -> (tokens, out), bfloat16."""
    other = weight_scale.float().t().contiguous()
    return scaled_mm(q, weight, scale, other, bias)


def _tokens_narrowed(x: Tensor, largest: Tensor | None) -> tuple[Tensor, Tensor]:
    return narrowed(x.flatten(0, -2), None if largest is None else largest.flatten(0, -2))


def choose_product(device: torch.device) -> Product | None:
    """`scaled` where a small call computes right on this card; None elsewhere: float8 weights are then widened for use."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        return None
    return scaled if probe(device, scaled) else None


def probe(device: torch.device, product: Product) -> bool:
    """Say whether a product computes on this device, and right: its own error or a difference from `emulated` is a No."""
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
