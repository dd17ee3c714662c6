"""Provide what decoding does to tensors between convolutions: normalising, borders, merged kernel taps, cross-fades."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A module of diffusers' decoder, whose classes declare no types for their parts.
Layer = Any

# Added to a variance before its inverse root is taken, because it may be 0; group norm adds a hundred times as much.
STATISTICS_EPS = 1e-8

NormSilu = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float], None]


def norm_silu(place: Tensor, frame: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None:
    """Write SiLU of the normalised frame to `place`, both (1, C, H, W); the other tensors are (C,), float32."""
    place.copy_(F.silu(F.batch_norm(frame, mean, variance, weight, bias, eps=eps), inplace=True))


def statistics(norm: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what group norm needs of x (1, C, T, H, W): mean and variance, weight and bias, (C,) each, float32.

    Mean and variance are those of each channel's group over all frames.
    """
    moments = [moments_of(x[:, :, t]) for t in range(x.shape[2])]
    variances, means = (torch.stack(part, dim=1).view(norm.num_groups, -1) for part in zip(*moments, strict=True))
    # The variance of all is the mean of the parts' plus that of their means: channels and frames are parts of equal size.
    variance = variances.mean(1) + means.var(1, correction=0)
    each = norm.num_channels // norm.num_groups
    mean, variance = (part.repeat_interleave(each) for part in (means.mean(1), variance))
    return mean, variance, norm.weight.float(), norm.bias.float()


def moments_of(frame: Tensor) -> tuple[Tensor, Tensor]:
    """Return variance and mean of each channel of a frame (1, C, H, W): (C,) each, float32."""
    if not frame.is_cuda:
        return torch.var_mean(frame[0].float(), dim=(1, 2), correction=0)
    # It reads 16 bits and adds in 32, four times as fast as `var_mean` where channels lie last.
    mean, inverse_deviation = torch.batch_norm_stats(frame, STATISTICS_EPS)
    return inverse_deviation**-2 - STATISTICS_EPS, mean


def repeat_edges(x: Tensor, edge: int) -> None:
    """Fill a border of `edge` (0 or 1) cells around (..., H, W) with the cells beside it."""
    if edge:
        x[..., 0, :], x[..., -1, :] = x[..., 1, :], x[..., -2, :]
        x[..., 0], x[..., -1] = x[..., 1], x[..., -2]


def two_of(room: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Return two tensors (1, channels, T, H, W) in the memory of one that has at least twice the channels.

    Frame t of both lies in the memory of frame t of `room`, in the same memory format and without gaps.
    """
    if room.is_contiguous():
        return room[:, :channels], room[:, channels : 2 * channels]
    height, width = room.shape[3:]
    frames, size = room.permute(0, 2, 3, 4, 1).flatten(2), height * width * channels
    parts = (frames[:, :, begin : begin + size].unflatten(2, (height, width, channels)) for begin in (0, size))
    first, second = (part.permute(0, 4, 1, 2, 3) for part in parts)
    return first, second


def first_taps(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Merge three taps over a doubled axis into two over the single one, for the first of a cell's two copies.

    It sees the cell before once and its own twice.
    """
    return a, b + c


def second_taps(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Merge three taps over a doubled axis into two over the single one, for the second of a cell's two copies.

    It sees its own cell twice and the cell after once.
    """
    return a + b, c


def with_taps(weight: Tensor, case: tuple) -> Tensor:
    """Return a kernel (out, in, 3, 3, 3) with some of its axes merged to two taps.

    case: for each of the three axes `first_taps` or `second_taps`, or None to leave it.
    """
    for dim, merge in enumerate(case, start=2):
        if merge is not None:
            weight = torch.stack(merge(*weight.unbind(dim)), dim=dim)
    return weight


def faded(first: Tensor, second: Tensor, extent: int, dim: int) -> Tensor:
    """Return `second`, its beginning faded linearly from the end of `first`.

    extent: length of the fade along `dim`, in frames, rows or columns; the tensors' own length is the most.
    """
    extent = min(first.shape[dim], second.shape[dim], extent)
    shape = [1] * second.ndim
    shape[dim] = extent
    share = (torch.arange(extent, device=second.device) / max(1, extent)).to(second.dtype).view(shape)
    start = first.narrow(dim, first.shape[dim] - extent, extent) * (1 - share) + second.narrow(dim, 0, extent) * share
    return torch.cat([start, second.narrow(dim, extent, second.shape[dim] - extent)], dim=dim)
