"""Private names of torch, each with its reason and the versions it was seen in (2.11 and 2.13). Nothing else may use any."""

from __future__ import annotations

import sys

import torch
from torch import Tensor


def scaled_mm(q: Tensor, weight: Tensor, scale: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return q (tokens, in) @ weight (out, in)^T as (tokens, out) in bfloat16, both in float8, by the card's own units.

    scale: of each token, (tokens, 1) float32. weight_scale: of each output, (1, out) float32. The public way,
    `torch.nn.functional.scaled_mm`, is not there in 2.11.
    """
    return torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage] (that is what this module is for)
        q, weight.t(), scale_a=scale, scale_b=weight_scale, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def allocate_in_pages() -> None:
    """Have torch take a card's memory in pages instead of blocks.

    A gap between two weights is otherwise of no use to a larger tensor, and on a card of 8 GiB a quarter of it was gaps. The
    public way is an environment variable, which has to be set before torch is imported. torch has it on Linux alone.
    """
    if sys.platform == "linux":
        torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
