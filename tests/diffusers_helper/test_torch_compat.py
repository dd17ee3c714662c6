"""Test that private names of torch still exist and mean the same: here an upgrade that changes one shows."""

from __future__ import annotations

import pytest
import torch

from diffusers_helper import torch_compat
from diffusers_helper.models.narrow import narrowed


def test_products_of_eight_bits() -> None:
    """`torch._scaled_mm` multiplies with a scale for every row, on processors too."""
    assert hasattr(torch, "_scaled_mm"), "torch has no _scaled_mm any more: see torch_compat.scaled_mm for a public one"
    generator = torch.Generator().manual_seed(1)
    (q, scale), (weight, weight_scale) = (narrowed(torch.randn(rows, 32, generator=generator)) for rows in (16, 48))
    exact = (q.float() * scale) @ (weight.float() * weight_scale).t()
    try:
        made = torch_compat.scaled_mm(q, weight, scale, weight_scale.t().contiguous()).float()
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"not on this processor: {error}")
    assert torch.allclose(made, exact, rtol=1e-2, atol=1e-2)


def test_a_card_is_taken_in_pages() -> None:
    """`torch._C._accelerator_setAllocatorSettings` takes that word; without a card it changes nothing."""
    name = "_accelerator_setAllocatorSettings"
    assert hasattr(torch._C, name), f"torch._C has no {name} any more: gaps would take a quarter of a small card"
    torch_compat.allocate_in_pages()
