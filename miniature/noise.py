"""Make random numbers and fields of noise as a pure function of a seed, the same on every device.

The numbers of a random generator depend on the order of the draws and on the device. A hash of (seed, channel, position) does
not: any clip can be made again from its seed alone, and training and evaluation use seeds that never overlap.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MASK = 0xFFFFFFFF
# Odd multipliers of the MurmurHash3 finalizer.
FIRST, SECOND = 0x85EBCA6B, 0xC2B2AE35


def mixed(h: Tensor) -> Tensor:
    """Mix the bits of 32-bit integers, which are held in int64, so that near integers become unrelated ones."""
    h = ((h ^ (h >> 16)) * FIRST) & MASK
    h = ((h ^ (h >> 13)) * SECOND) & MASK
    return h ^ (h >> 16)


def uniform(seeds: Tensor, channel: int, *shape: int) -> Tensor:
    """Return random numbers (B, *shape) in float32, uniform in [0, 1), for seeds (B,) in int64.

    Every channel is an independent stream of numbers.
    """
    count = 1
    for size in shape:
        count *= size
    place = torch.arange(count, device=seeds.device, dtype=torch.int64)
    start = mixed((seeds ^ ((channel * FIRST) & MASK)) & MASK)
    h = mixed((start[:, None] + mixed((place + 1) & MASK)[None]) & MASK)
    # float32 holds integers of 24 bits exactly.
    return ((h >> 8).float() / float(1 << 24)).view(-1, *shape)


def between(seeds: Tensor, channel: int, low: float, high: float, *shape: int) -> Tensor:
    """Return random numbers (B, *shape), uniform in [low, high)."""
    return low + (high - low) * uniform(seeds, channel, *shape)


def choice(seeds: Tensor, channel: int, count: int) -> Tensor:
    """Return random integers (B,) from 0 to count - 1."""
    return (uniform(seeds, channel) * count).long().clamp_max(count - 1)


def fractal(seeds: Tensor, channel: int, size: int, fields: int, octaves: tuple[int, ...], decay: float) -> Tensor:
    """Return fractal noise (B, fields, size, size) of about zero mean and unit variance.

    It is the sum of random grids of `octaves` cells a side, each scaled to the full size by cubic interpolation. Each octave
    has `decay` times the amplitude of the one before.
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
