"""Choose how blocks are run: as written, which is the exact path, or as fused kernels where this machine can make them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusers_helper.models.attention import Kernel, kernel_errors
from diffusers_helper.models.blocks import DualBlock, SingleBlock
from diffusers_helper.models.fused import Fused
from diffusers_helper.models.narrow import Product


def dual(
    block: DualBlock,
    x: Tensor,
    text: Tensor,
    tables: tuple[Tensor, Tensor],
    rope: Tensor,
    attend: Kernel,
    fused: tuple[Fused | None, ...] = (None, None),
    product: Product | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a dual block; a function, because a compiler can be given one. Arguments as those of `DualBlock.forward`."""
    return block(x, text, tables, rope, attend, fused, product)


def single(
    block: SingleBlock,
    x: Tensor,
    table: Tensor,
    rope: Tensor,
    attend: Kernel,
    fused: tuple[Fused | None, ...] = (None,),
    product: Product | None = None,
) -> Tensor:
    """Run a single block; a function for the same reason as `dual`. Arguments as those of `SingleBlock.forward`."""
    return block(x, table, rope, attend, fused, product)


@dataclass(frozen=True)
class Passes:
    """Hold the forward passes of the two kinds of blocks. reason: why they are not compiled; empty where they are."""

    dual: Callable[..., tuple[Tensor, Tensor]]
    single: Callable[..., Tensor]
    reason: str


EAGER = Passes(dual, single, "not asked for")


def compiled() -> Passes:
    """Return passes that are compiled into fused kernels at the first step.

    They are functions of the block, so that one compilation serves all blocks and sizes.
    """
    return Passes(torch.compile(dual, dynamic=True), torch.compile(single, dynamic=True), "")


def choose_passes(device: torch.device, wanted: str = "auto") -> Passes:
    """Choose compiled passes on a card for which a small function really compiles and computes right, else eager ones.

    Eager passes come with the reason. wanted: "auto", or "off" for eager passes without a trial.
    """
    reason = EAGER.reason if wanted == "off" else obstacle(device)
    return Passes(dual, single, reason) if reason else compiled()


def obstacle(device: torch.device) -> str:
    """Return why nothing is compiled for this device; empty if nothing stands in the way."""
    if device.type != "cuda":
        return f"needs a CUDA device, this is {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "needs triton, which is not installed"
    return probe(device)


def probe(device: torch.device) -> str:
    """Compile and run a small function; return what went wrong, or "".

    Compilers, headers and drivers may be absent, each in its own way.
    """
    x = torch.arange(64, dtype=torch.float32, device=device)
    try:
        error = (torch.compile(probed)(x) - probed(x)).abs().max().item()
    except kernel_errors() as failure:
        return f"{type(failure).__name__}: {(str(failure).strip().splitlines() or [''])[0]}"[:200]
    return "" if error <= 1e-5 else f"wrong result: off by {error:.2g}"


def probed(x: Tensor) -> Tensor:
    """Compute something elementwise on x (n,), to try a small compiled kernel with."""
    return torch.sin(x) * 2 + x
