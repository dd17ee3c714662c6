"""Turn a file's tensors into updates of a network's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_utils.formats import STABILISED_FLAG, Layout, Part
from lora_utils.peft import config_of
from lora_utils.scales import scale_of


@dataclass(frozen=True)
class LowRank:
    """Hold the update W[layer] += scale * up @ down.

    up: (rows, rank). down: (rank, columns). A convolution kernel's sides count as columns.
    """

    layer: str
    up: Tensor
    down: Tensor
    scale: float

    def delta(self) -> Tensor:
        """Return scale * up @ down, (rows, columns) float32."""
        return self.scale * (self.up.float() @ self.down.float())


@dataclass(frozen=True)
class Kronecker:
    """Hold the update W[layer] += scale * rows [first, end) of the Kronecker product of left (a, b) and right (c, d)."""

    layer: str
    left: Tensor
    right: Tensor
    scale: float
    rows: tuple[int, int]

    def delta(self) -> Tensor:
        """Return what is added to the weight, (rows, columns) float32."""
        first, end = self.rows
        return self.scale * torch.kron(self.left.float(), self.right.float())[first:end]


@dataclass(frozen=True)
class Hadamard:
    """Hold the update W[layer] += scale * (up_1 @ down_1) * (up_2 @ down_2), multiplied element by element.

    up: (rows, rank). down: (rank, columns). It could be written as one product of rank rank_1 * rank_2, which is larger than
    the weight from rank 40 on; see https://arxiv.org/abs/2108.06098, section 2.
    """

    layer: str
    up_1: Tensor
    down_1: Tensor
    up_2: Tensor
    down_2: Tensor
    scale: float

    def delta(self) -> Tensor:
        """Return what is added to the weight, (rows, columns) float32."""
        return (self.up_1.float() @ self.down_1.float()).mul_(self.up_2.float() @ self.down_2.float()).mul_(self.scale)


Update = LowRank | Kronecker | Hadamard


def updates(layout: Layout, tensor: Callable[[str], Tensor], metadata: Mapping[str, str] | None = None) -> Iterator[Update]:
    """Yield every update of a file, made when it is asked for.

    tensor: returns a key's tensor; called once for each. metadata: the file's, which may hold PEFT's alpha. Raises LoraError,
    as `scales.check_alphas` does, for an alpha that is not understood.
    """
    said = config_of(metadata or {})
    stabilised = STABILISED_FLAG in layout.flags and bool(tensor(STABILISED_FLAG).item())
    for entry in layout.entries:
        factors = {role: tensor(key) for role, key in entry.keys.items()}
        alpha = factors.pop("alpha", None)
        scale = scale_of(entry, None if alpha is None else float(alpha.item()), said, stabilised)
        if entry.kind == "LoKr":
            left, right = (_whole(factors, name) for name in ("lokr_w1", "lokr_w2"))
            if entry.swapped:
                # Only the head's layer is swapped; its product is small enough to be made.
                whole = torch.kron(left.float(), right.float())
                left, right = torch.ones(1, 1), whole.roll(len(whole) // 2, dims=0)
            yield from [Kronecker(part.layer, left, right, scale, part.rows) for part in entry.parts]
            continue
        if entry.kind == "LoHa":
            up_1, down_1, up_2, down_2 = (factors[f"hada_w{name}"].flatten(1) for name in ("1_a", "1_b", "2_a", "2_b"))
            up_1, up_2 = (up.roll(len(up) // 2, dims=0) if entry.swapped else up for up in (up_1, up_2))
            yield from [
                Hadamard(part.layer, _rows(up_1, part), down_1, _rows(up_2, part), down_2, scale) for part in entry.parts
            ]
            continue
        up, down = factors["up"].flatten(1), factors["down"].flatten(1)
        if entry.swapped:
            up = up.roll(len(up) // 2, dims=0)
        yield from [LowRank(part.layer, _rows(up, part), down, scale) for part in entry.parts]


def merged(weight: Tensor, additions: list[tuple[Update, float]]) -> Tensor:
    """Return weight + sum of strength * delta, computed in float32, in the weight's shape and dtype.

    An 8-bit float weight without a scale would lose most of what is added, so the result is bfloat16 then.
    """
    whole = weight.float()
    for update, strength in additions:
        if strength:
            whole = whole + (strength * update.delta()).to(whole.device).view_as(whole)
    return whole.to(torch.bfloat16 if weight.dtype.itemsize == 1 else weight.dtype)


def _rows(up: Tensor, part: Part) -> Tensor:
    first, end = part.rows
    return up[first:end]


def _whole(factors: Mapping[str, Tensor], name: str) -> Tensor:
    if name in factors:
        return factors[name].flatten(1)
    return factors[f"{name}_a"].float() @ factors[f"{name}_b"].flatten(1).float()
