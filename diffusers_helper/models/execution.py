"""Describe what a transformer runs with besides its weights: one value, handed in, that nobody changes."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from diffusers_helper.memory.weight_groups import InPlace, Weights
from diffusers_helper.models.attention import Kernel, sdpa
from diffusers_helper.models.compiled import EAGER, Passes
from diffusers_helper.models.narrow import Product


@dataclass(frozen=True)
class Execution:
    """Hold what a transformer runs with besides its weights.

    attend: the attention kernel. passes: how blocks are run. product: how float8 weights are multiplied without being widened,
    None where they are widened. weights: who brings the weights to where they are computed with, as a card too small for them
    needs. branches: what tells the side branches, which are beside the weights, from others; empty without any. float32_head:
    whether the last linear layer is computed in float32, as the reference does on 16-bit weights.
    """

    attend: Kernel = sdpa
    passes: Passes = EAGER
    product: Product | None = None
    weights: Weights = InPlace()
    branches: tuple[Hashable, ...] = ()
    float32_head: bool = True
