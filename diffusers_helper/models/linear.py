"""Define linear layers whose weights may be kept in 8 bits, with low-rank side branches beside them.

A branch never touches the weights: its strength can change between two passes, and without branches, or with all of them at
strength 0, a layer computes exactly what torch's does. Where tokens are many, a pass adds the branches to a copy of the layer's
weight, which is then smaller than the output that they would be added to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusers_helper.models.module_list import ModuleList
from diffusers_helper.models.narrow import LowRank, Product

# Storage by name: its dtype and the largest number it holds.
STORAGES = {"int8": (torch.int8, 127.0), "float8": (torch.float8_e4m3fn, 448.0)}


def quantise(weight: Tensor, storage: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantise a weight (out, in) to 8 bits; return it and the scale (out, 1) of each output channel, in `dtype`.

    The weight is about the quantised one times the scale. The scale is rounded to the dtype it is used in before anything is
    divided by it, so that its rounding adds no error. Symmetric, after "LLM.int8()" (Dettmers et al., 2022), section 2.1, by
    rows of the weight.
    """
    kept, largest = STORAGES[storage]
    wide = weight.float()
    scale = (wide.abs().amax(dim=1, keepdim=True) / largest).to(dtype)
    # A scale is 0 for a channel of zeros, or where it is too small for its dtype; 1 avoids dividing by 0.
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    ratio = wide / scale.float()
    if not kept.is_floating_point:
        ratio = ratio.round()
    return ratio.clamp(-largest, largest).to(kept), scale


class SideBranch(nn.Module):
    """Add an adapter's part to what a layer computes; the base of all kinds of branches.

    slot: number of the adapter that the branch belongs to. scale: the file's. factor: strength * scale as a tensor, whose value
    a compiled block takes as it comes, whereas it may be compiled for one value of a number.

    Factors of the product are buffers, but not of the state dict: they move with their layer and are counted with it, and a
    checkpoint keeps its names.
    """

    def __init__(self, slot: int, scale: float):
        super().__init__()
        self.slot, self.scale = slot, scale
        self.strength = 1.0

    @property
    def strength(self) -> float:
        """Return how strongly the branch acts: 1 as the file says, 0 not at all."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength = value
        with torch.inference_mode(False):
            self.factor = torch.tensor(value * self.scale, dtype=torch.float32)

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Return y (..., out) plus the branch's part for x (..., in), as a new tensor."""
        raise NotImplementedError

    def added_to(self, weight: Tensor) -> Tensor:
        """Return a weight (out, in) plus the branch's part, as a new tensor."""
        raise NotImplementedError

    def add_to_conv(self, y: Tensor, x: Tensor, conv: nn.Conv3d) -> Tensor:
        """Add the branch's part for x (1, channels, ...) to a convolution's y (1, out, ...), and return y."""
        raise NotImplementedError


class LowRankBranch(SideBranch):
    """Add strength * scale * up @ down @ x to a layer. up: (out, rank). down: (rank, in)."""

    up: Tensor
    down: Tensor

    def __init__(self, slot: int, up: Tensor, down: Tensor, scale: float):
        super().__init__(slot, scale)
        self.register_buffer("up", up.contiguous(), persistent=False)
        self.register_buffer("down", down.contiguous(), persistent=False)

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Return y (..., out) plus the branch's part for x (..., in), as a new tensor.

        Written into y, a slice of a compiled block's product, it would be copied with the whole product.
        """
        inner = F.linear(x, self.down.to(x.dtype)).flatten(0, -2)
        return torch.addmm(y.flatten(0, -2), inner, self.weighted_up(x.dtype).t()).view(*y.shape)

    def added_to(self, weight: Tensor) -> Tensor:
        """Return a weight (out, in) plus the branch's part."""
        return torch.addmm(weight, self.weighted_up(weight.dtype), self.down.to(weight.dtype))

    def weighted_up(self, dtype: torch.dtype) -> Tensor:
        """Return up times strength and scale, (out, rank)."""
        return self.up.to(dtype) * self.factor

    def add_to_conv(self, y: Tensor, x: Tensor, conv: nn.Conv3d) -> Tensor:
        """Add the branch's part for x (1, channels, ...) to a convolution's y (1, out, ...), and return y."""
        kernel = self.down.to(x.dtype).view(-1, *conv.weight.shape[1:])
        inner = F.conv3d(x, kernel, stride=conv.stride)
        return y.add_(F.conv3d(inner, self.up.to(x.dtype)[:, :, None, None, None]), alpha=self.strength * self.scale)


class KroneckerBranch(SideBranch):
    """Add strength * scale * kron(left, right)[rows] @ x to a layer. left: (a, b). right: (c, d).

    For tokens the product is never made; it is made to be added to a weight or to serve as a convolution's kernel.
    """

    left: Tensor
    right: Tensor

    def __init__(self, slot: int, left: Tensor, right: Tensor, scale: float, rows: tuple[int, int]):
        super().__init__(slot, scale)
        self.rows = rows
        self.register_buffer("left", left.contiguous(), persistent=False)
        self.register_buffer("right", right.contiguous(), persistent=False)

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Return y (..., out) plus the part for x (..., in), which one factor after the other makes; a new tensor."""
        left, right = self.left.to(x.dtype), self.right.to(x.dtype)
        inner = F.linear(x.unflatten(-1, (left.shape[1], right.shape[1])), right)
        whole = torch.einsum("ab,...bc->...ac", left, inner).flatten(-2)
        return y + whole[..., self.rows[0] : self.rows[1]] * self.factor

    def added_to(self, weight: Tensor) -> Tensor:
        """Return a weight (out, in) plus the rows of the product, times strength and scale."""
        left, right = self.left.to(weight.dtype), self.right.to(weight.dtype)
        return weight + torch.kron(left, right)[self.rows[0] : self.rows[1]] * self.factor

    def add_to_conv(self, y: Tensor, x: Tensor, conv: nn.Conv3d) -> Tensor:
        """Add the part for x (1, channels, ...) to y (1, out, ...), with the product as a kernel, and return y."""
        kernel = torch.kron(self.left, self.right)[self.rows[0] : self.rows[1]].to(x.dtype)
        part = F.conv3d(x, kernel.view_as(conv.weight), stride=conv.stride)
        return y.add_(part, alpha=self.strength * self.scale)


class Linear(nn.Linear):
    """Compute a linear layer in the dtype of its input, with branches, and with a weight of 32, 16 or 8 bits.

    weight_scale: None, or for a weight of 8 bits the scale of every output channel, (out, 1).
    """

    weight_scale: Tensor | None

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        self.register_buffer("weight_scale", None)
        self.branches: ModuleList[SideBranch] = ModuleList()

    def narrows(self, product: Product | None) -> bool:
        """Return whether the layer's input is multiplied in 8 bits."""
        return narrows(self.weight, self.weight_scale, product)

    def forward(self, input: Tensor, product: Product | None = None, largest: Tensor | None = None) -> Tensor:
        """Return what the layer, branches included, makes of (..., in): (..., out).

        product: how a float8 weight is multiplied without being widened (`narrow.py`), or None: it is widened. largest: None,
        or bounds of the input's absolute values, as in `Product`.
        """
        if self.merges(input):
            return F.linear(input, self.with_branches_in(input.dtype), self.bias.to(input.dtype))
        return multiply(input, (self,), self.weight, self.bias, self.weight_scale, product, largest)[0]

    def merges(self, x: Tensor) -> bool:
        """Return whether branches are added to a copy of the weight rather than to what it makes of x (..., in).

        The former is a pass over in x out numbers, the latter one over tokens x (in + out). Weights of 8 bits are never merged:
        widened, they and a branch would be rounded once more, by about as much as 8 bits round.
        """
        if self.weight_scale is not None or not any(branch.strength for branch in self.branches):
            return False
        return x[..., 0].numel() * (self.in_features + self.out_features) > self.in_features * self.out_features

    def with_branches_in(self, dtype: torch.dtype) -> Tensor:
        """Return the weight in `dtype` plus what the branches add to it, (out, in)."""
        weight = self.weight.to(dtype)
        for branch in self.branches:
            if branch.strength:
                weight = branch.added_to(weight)
        return weight

    def with_branches(self, y: Tensor, x: Tensor, but: tuple[type, ...] = ()) -> Tensor:
        """Return y (..., out), which the weights made of x (..., in), plus what the branches add to it.

        but: kinds of branches to leave out.
        """
        for branch in self.branches:
            if branch.strength and not isinstance(branch, but):
                y = branch.add_to(y, x)
        return y

    def wide_weight(self, dtype: torch.dtype) -> Tensor:
        """Return the weight in `dtype`, (out, in); itself where it is kept in that dtype."""
        return widened(self.weight, self.weight_scale, dtype)


def narrows(weight: Tensor, scale: Tensor | None, product: Product | None) -> bool:
    """Return whether the input of a layer with this weight is multiplied in 8 bits.

    It is where there is a product for it and the weight is float8 with a scale.
    """
    return product is not None and weight.dtype == torch.float8_e4m3fn and scale is not None


def multiply(
    x: Tensor,
    layers: Sequence[Linear],
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    product: Product | None = None,
    largest: Tensor | None = None,
) -> list[Tensor]:
    """Return what each layer, branches included, makes of x (..., in), as slices of one product.

    weight (sum of out, in), of any storage, bias (sum of out,) and scale as in `Linear`: of all layers, one after the other.
    product, largest: as in `Linear.forward`.
    """
    in_product: tuple[type, ...] = ()
    if product is not None and scale is not None and narrows(weight, scale, product):
        whole, in_product = product(x, weight, scale, bias, largest, low_rank(layers, x.dtype)), (LowRankBranch,)
    else:
        whole = F.linear(x, widened(weight, scale, x.dtype), bias.to(x.dtype))
    parts = whole.split([layer.out_features for layer in layers], dim=-1)
    return [layer.with_branches(part, x, in_product) for layer, part in zip(layers, parts, strict=True)]


def low_rank(layers: Sequence[Linear], dtype: torch.dtype) -> LowRank | None:
    """Return the low-rank branches of layers that see one input as a single one over all their outputs.

    None where no such branch acts.
    """
    found = [[b for b in layer.branches if b.strength and isinstance(b, LowRankBranch)] for layer in layers]
    together = [branch for branches in found for branch in branches]
    if not together:
        return None
    ups = []
    for layer, branches in zip(layers, found, strict=True):
        none = layer.bias.new_empty(layer.out_features, 0, dtype=dtype)
        ups.append(torch.cat([none, *(branch.weighted_up(dtype) for branch in branches)], dim=1))
    return LowRank(torch.cat([branch.down.to(dtype) for branch in together]), torch.block_diag(*ups))


def widened(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Convert a weight of any storage to `dtype`. scale: of each output channel, (out, 1), for weights of 8 bits."""
    if scale is None:
        return weight.to(dtype)
    if weight.dtype == torch.int8:
        # One pass over the weight: integers are widened to the scale's dtype as they are multiplied.
        return (weight * scale).to(dtype)
    return weight.to(dtype) * scale.to(dtype)


class PatchConv(nn.Conv3d):
    """Convolve patches: a convolution whose stride is its kernel size, with branches."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int, int]):
        super().__init__(in_channels, out_channels, kernel_size, stride=kernel_size)
        self.branches: ModuleList[SideBranch] = ModuleList()

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (1, channels, T, h, w), and add what the branches make of it."""
        y = super().forward(input)
        for branch in self.branches:
            if branch.strength:
                y = branch.add_to_conv(y, input, self)
        return y


def layers(net: nn.Module) -> dict[str, Linear | PatchConv]:
    """Return every layer that can have branches, by name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, (Linear, PatchConv))}


def branches(net: nn.Module) -> Iterator[SideBranch]:
    """Yield every side branch of a network, in the order of its layers."""
    return (module for module in net.modules() if isinstance(module, SideBranch))


def remove_branches(net: nn.Module) -> None:
    """Remove all side branches: the network is as before the first was added."""
    for layer in layers(net).values():
        layer.branches = ModuleList()


def set_strengths(net: nn.Module, strengths: Sequence[float]) -> None:
    """Set the strength of each slot's branches, from the next pass on. strengths: by slot."""
    for branch in branches(net):
        branch.strength = strengths[branch.slot]


def strengths(net: nn.Module) -> tuple[tuple[int, float], ...]:
    """Return (slot, strength) of all slots that have branches, in order.

    A result depends on them besides the input.
    """
    return tuple(sorted({(branch.slot, branch.strength) for branch in branches(net)}))
