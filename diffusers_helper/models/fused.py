"""Multiply one input with several linear layers in one product, over weights that lie one after the other.

Layers keep their names, weights and branches: only where the weights lie is different, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from diffusers_helper.memory import slabs
from diffusers_helper.models.linear import Linear, multiply
from diffusers_helper.models.narrow import Product

KINDS = ("weight", "bias", "weight_scale")


class Fused(NamedTuple):
    """Hold views over the weights of several layers.

    weight: (sum of out, in). bias: (sum of out,). scale: (sum of out, 1), or None.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor | None


def contiguous(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield rows of names: the tensors that must follow each other so that layers of these names can be fused."""
    return (tuple(f"{name}.{kind}" for name in names) for kind in KINDS)


def present(rows: Sequence[Sequence[str]], tensors: Mapping[str, Tensor]) -> list[list[Tensor]]:
    """Return the tensors of each row whose tensors are all there: weights of 16 bits have no scales."""
    return [[tensors[name] for name in row] for row in rows if all(name in tensors for name in row)]


def fuse(layers: Sequence[Linear]) -> Fused | None:
    """Return one view over the weights of all layers; None where these do not follow each other."""
    scales = [layer.weight_scale for layer in layers if layer.weight_scale is not None]
    if scales and len(scales) < len(layers):
        return None
    rows = [[layer.weight for layer in layers], [layer.bias for layer in layers], *([scales] if scales else [])]
    views = [view for view in map(slabs.fused, rows) if view is not None]
    if len(views) < len(rows):
        return None
    # As parameters, because a compiler takes their sizes as fixed; sizes that vary would cost speed.
    weight, bias, *scale = (nn.Parameter(view, requires_grad=False) for view in views)
    return Fused(weight, bias, scale[0] if scale else None)


def project(x: Tensor, layers: Sequence[Linear], fused: Fused | None, product: Product | None = None) -> list[Tensor]:
    """Return what each layer makes of x (..., in).

    The results are slices of one product where there is a view, else products of their own. product: as in `Linear.forward`.
    """
    if fused is None or any(layer.merges(x) for layer in layers):
        return [layer(x, product) for layer in layers]
    return multiply(x, layers, *fused, product)
