"""Random numbers as a pure function of a seed, the same on every device, and fields of noise made from them.

A generator's numbers depend on the order of the draws and on the device. A hash of (seed, channel, position) does not, so
that any clip can be made again alone from its seed, and training and evaluation draw from seeds that never meet.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MASK = 0xFFFFFFFF
# Two odd constants with well-mixed bits.
FIRST, SECOND = 0x85EBCA6B, 0xC2B2AE35


def mixed(h: Tensor) -> Tensor:
    """Scramble 32-bit integers held in int64."""
    h = ((h ^ (h >> 16)) * FIRST) & MASK
    h = ((h ^ (h >> 13)) * SECOND) & MASK
    return h ^ (h >> 16)


def uniform(seeds: Tensor, channel: int, *shape: int) -> Tensor:
    """seeds: (B,) int64 -> (B, *shape) float32 in [0, 1); every channel is an independent stream."""
    count = 1
    for size in shape:
        count *= size
    place = torch.arange(count, device=seeds.device, dtype=torch.int64)
    start = mixed((seeds ^ ((channel * FIRST) & MASK)) & MASK)
    h = mixed((start[:, None] + mixed((place + 1) & MASK)[None]) & MASK)
    # 24 bits are what float32 holds exactly.
    return ((h >> 8).float() / float(1 << 24)).view(-1, *shape)


def between(seeds: Tensor, channel: int, low: float, high: float, *shape: int) -> Tensor:
    """Uniform in [low, high)."""
    return low + (high - low) * uniform(seeds, channel, *shape)


def choice(seeds: Tensor, channel: int, count: int) -> Tensor:
    """(B,) integers below count."""
    return (uniform(seeds, channel) * count).long().clamp_max(count - 1)


def fractal(seeds: Tensor, channel: int, size: int, fields: int, octaves: tuple[int, ...], decay: float) -> Tensor:
    """(B, fields, size, size) of about zero mean and unit variance: cubic noise on grids of `octaves` cells, summed.

    Each octave has `decay` times the amplitude of the one before.
    """
    total = torch.zeros(len(seeds), fields, size, size, device=seeds.device)
    amplitude, power = 1.0, 0.0
    for number, cells in enumerate(octaves):
        grid = uniform(seeds, channel * 64 + number, fields, cells, cells) * 3.4641 - 1.7321
        if cells != size:
            grid = F.interpolate(grid, size=(size, size), mode="bicubic", align_corners=True)
        total += amplitude * grid
        power += amplitude**2
        amplitude *= decay
    return total / power**0.5
