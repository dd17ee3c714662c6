"""Measure what a frame shows: where the red circle is, how far the picture was shifted, how much it was enlarged.

Frames are (3, H, W) in -1..1. Places and distances are shares of the picture's side, x to the right and y down.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_ZOOM, ZOOM_STEPS = 1.6, 41


def place(frame: Tensor) -> Tensor:
    """Return the centre (x, y) of the clearly red pixels. Raises AssertionError if there are none."""
    red = (frame[0] - (frame[1] + frame[2]) / 2 - 0.6).clamp_min(0)
    if red.sum() < 1:
        raise AssertionError("nothing red is to be seen")
    height, width = red.shape
    x = (red.sum(0) * (torch.arange(width) + 0.5)).sum() / width
    y = (red.sum(1) * (torch.arange(height) + 0.5)).sum() / height
    return torch.stack([x, y]) / red.sum()


def shift(first: Tensor, last: Tensor) -> Tensor:
    """Return how far (x, y) the picture moved between two frames, by phase correlation."""
    height, width = first.shape[-2:]
    window = torch.hann_window(height)[:, None] * torch.hann_window(width)
    one, other = (torch.fft.fft2((frame.mean(0) - frame.mean()) * window) for frame in (first, last))
    cross = other * one.conj()
    peak = int(torch.fft.ifft2(cross / cross.abs().clamp_min(1e-6)).real.argmax())
    y, x = divmod(peak, width)
    return torch.tensor([_signed(x, width), _signed(y, height)])


def _signed(cell: int, cells: int) -> float:
    return (cell if cell < cells / 2 else cell - cells) / cells


def magnification(first: Tensor, last: Tensor) -> float:
    """Return how many times larger the middle of the first frame is in the last one: the best fit from 1 / 1.6 to 1.6."""
    errors = {}
    for exponent in torch.linspace(-1, 1, ZOOM_STEPS):
        factor = LARGEST_ZOOM ** exponent.item()
        grid = F.affine_grid(torch.tensor([[[1 / factor, 0, 0], [0, 1 / factor, 0]]]), [1, 1, *first.shape[-2:]], False)
        scaled = F.grid_sample(first[None], grid, align_corners=False)[0]
        inside = (grid.abs() < 1).all(-1)[0]
        errors[factor] = (scaled - last)[:, inside].square().mean().item()
    return min(errors, key=errors.get)
