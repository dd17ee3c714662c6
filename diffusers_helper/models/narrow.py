"""Products of 8-bit floating-point numbers, for cards that have the units: half the time of 16 bits on Ada, Hopper, Blackwell.

A scale for every token of the input and for every output channel of the weight, so an outlier spoils only its own row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffusers_helper.models.attention import kernel_errors

# product(x (..., in), weight (out, in) in float8, its scale (out, 1), bias (out,), largest) -> (..., out) in the dtype of x.
# largest: None, or (..., 1), numbers that no absolute value of a token of x exceeds, and that one comes near.
Product = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]
NARROW = torch.float8_e4m3fn
LARGEST = 448.0
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


def emulated(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, largest: Tensor | None = None) -> Tensor:
    """What the card's units compute, in float32: for tests and for the probe."""
    q, scale = _tokens_narrowed(x, largest)
    y = (q.float() @ weight.float().t()) * scale * weight_scale.float().t() + bias.float()
    return y.to(x.dtype).view(*x.shape[:-1], -1)


def scaled(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, largest: Tensor | None = None) -> Tensor:
    """Through `torch._scaled_mm` with scales by row; the result in bfloat16 first, which that kernel wants."""
    q, scale = _tokens_narrowed(x, largest)
    other = weight_scale.float().t().contiguous()
    y = torch._scaled_mm(
        q, weight.t(), scale_a=scale, scale_b=other, bias=bias.bfloat16(), out_dtype=torch.bfloat16, use_fast_accum=True
    )
    return y.to(x.dtype).view(*x.shape[:-1], -1)


def _tokens_narrowed(x: Tensor, largest: Tensor | None) -> tuple[Tensor, Tensor]:
    return narrowed(x.flatten(0, -2), None if largest is None else largest.flatten(0, -2))


def choose_product(device: torch.device) -> Product | None:
    """`scaled` where a small call computes right on this card; None elsewhere: float8 weights are then widened for use."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        return None
    return scaled if probe(device, scaled) else None


def probe(device: torch.device, product: Product) -> bool:
    generator = torch.Generator().manual_seed(0)
    x, wide = (torch.randn(rows, 128, generator=generator).to(device) for rows in (48, 64))
    weight, scale = narrowed(wide)
    bias = torch.ones(64, dtype=torch.bfloat16, device=device)
    given = x.bfloat16(), weight, scale, bias, None
    try:
        made = product(*given).float()
    except kernel_errors():
        return False
    exact = emulated(*given).float()
    return bool((made - exact).norm() <= TOLERANCE * exact.norm())
