"""Wrap the private names of torch, each with its reason and the versions it was seen in (2.11 and 2.13).

Nothing else may use any.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor


def scaled_mm(q: Tensor, weight: Tensor, scale: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply two float8 matrices on the card's own units: q (tokens, in) @ weight (out, in)^T -> (tokens, out) bfloat16.

    scale: one for each token, (tokens, 1) float32. weight_scale: one for each output channel, (1, out) float32. The public
    function, `torch.nn.functional.scaled_mm`, does not exist in torch 2.11.
    """
    return torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage] (that is what this module is for)
        q, weight.t(), scale_a=scale, scale_b=weight_scale, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def allocate_in_pages() -> None:
    """Make torch take a card's memory in pages instead of blocks.

    Otherwise a gap between two weights is of no use to a larger tensor: on a card of 8 GiB a quarter of the memory was gaps.
    The public way is an environment variable, which has to be set before torch is imported. torch supports this on Linux alone.
    """
    if sys.platform == "linux":
        torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
