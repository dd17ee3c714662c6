"""Make rotary position tables over (time, height, width), and their averaged forms for 2x and 4x context."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def rope_field(
    times: Sequence[int], height: int, width: int, axes: Sequence[int], theta: float, device: torch.device
) -> Tensor:
    """Return cos and sin for every cell of a patch grid: (2, sum(axes), T, height, width), float32.

    times: the T positions in time. height, width: cells, whose positions count from 0. axes: head dimensions given to each of
    the three axes; every frequency serves an interleaved pair of dimensions.
    """
    grids = [
        torch.as_tensor(list(times), dtype=torch.float32, device=device).view(-1, 1, 1),
        torch.arange(height, dtype=torch.float32, device=device).view(1, -1, 1),
        torch.arange(width, dtype=torch.float32, device=device).view(1, 1, -1),
    ]
    shape = (len(times), height, width)
    angles = []
    for dim, position in zip(axes, grids, strict=True):
        frequencies = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim))
        angle = frequencies.view(-1, 1, 1, 1) * position
        angles.append(angle.expand(-1, *shape).repeat_interleave(2, dim=0))
    angle = torch.cat(angles)
    return torch.stack([angle.cos(), angle.sin()])


def pooled(field: Tensor, factor: int) -> Tensor:
    """Return the field of tokens that cover `factor`**3 cells each.

    cos and sin themselves are averaged, so their norm drops below 1.
    """
    return F.avg_pool3d(pad_to_multiple(field, (factor,) * 3), kernel_size=factor)


def pad_to_multiple(x: Tensor, multiples: Sequence[int]) -> Tensor:
    """Pad the last three dimensions at their ends to whole multiples, by repeating the edges."""
    pads = []
    for size, multiple in zip(reversed(x.shape[-3:]), reversed(multiples), strict=True):
        pads += [0, -size % multiple]
    return F.pad(x, pads, mode="replicate")


def as_tokens(field: Tensor) -> Tensor:
    """Rearrange a field (2, D, T, H, W) as a table (2, T*H*W, 1, D) for `rotate`, ready to broadcast over heads.

    It holds cos, and sin with the sign with which the pair's other dimension is added.
    """
    cos, sin = rearrange(field, "cs d t h w -> cs (t h w) 1 d")
    return torch.stack([cos, torch.stack([-sin[..., ::2], sin[..., 1::2]], dim=-1).flatten(-2)])


def with_still(table: Tensor, count: int) -> Tensor:
    """Return the table extended by `count` tokens that do not turn: (2, ..., tokens + count, 1, D)."""
    still = torch.zeros_like(table[..., :1, :, :]).expand(*table.shape[:-3], count, *table.shape[-2:]).clone()
    still[0] = 1
    return torch.cat([table, still], dim=-3)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate interleaved pairs of x (batch, tokens, heads, D) by the table (2, tokens, 1, D), in float32; the dtype is kept."""
    cos, sin = table
    wide = x.float()
    # Both dimensions of a pair are computed alike: a compiler then fuses this and the norm before it to one pass over memory.
    others = wide.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (wide * cos + others * sin).to(x.dtype)
