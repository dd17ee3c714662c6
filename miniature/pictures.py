"""Generate procedural pictures: gradients, textures, and "dead leaves", which have the statistics of photos.

Dead leaves are shapes of all sizes laid over one another until the background is covered. Like photos, and unlike
smooth noise, they have edges of every length, flat and textured regions side by side, and a 1/f spectrum.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from miniature.noise import between, choice, fractal, uniform

LEAVES = 120
# Shares of plain gradients and photo-like pictures in a bank; the rest are textures.
PLAIN, PHOTOS = 0.12, 0.63


def radius(angle: Tensor, corners: Tensor, inner: Tensor) -> Tensor:
    """Return the radius at an angle of a star with straight edges: 1 at each corner, `inner` half-way between two corners.

    With inner = cos(pi / corners) the star is a regular polygon, with 64 corners nearly a circle.
    """
    beta = math.pi / corners
    a = torch.remainder(angle, 2 * beta)
    a = torch.minimum(a, 2 * beta - a)
    return inner * torch.sin(beta) / (inner * torch.sin(beta - a) + torch.sin(a)).clamp_min(1e-4)


def hue(angle: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return RGB colours (..., 3) in about 0..1. angle: the hue in turns, 0 is red."""
    offsets = torch.tensor([0.0, 1 / 3, 2 / 3], device=angle.device)
    wheel = torch.cos(2 * math.pi * (angle[..., None] - offsets))
    return value[..., None] * (1 + saturation[..., None] * 0.6 * wheel)


def plane(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the coordinates y and x of a square picture's pixels in -1..1, each (size, size)."""
    line = (torch.arange(size, device=device) + 0.5) / size * 2 - 1
    return torch.meshgrid(line, line, indexing="ij")


def gradients(seeds: Tensor, size: int) -> Tensor:
    """Return linear gradients between two colours, (B, 3, size, size) in -1..1."""
    y, x = plane(size, seeds.device)
    turn = between(seeds, 1, 0, 2 * math.pi)[:, None, None]
    along = (torch.cos(turn) * x + torch.sin(turn) * y)[:, None] * 0.5 + 0.5
    colours = hue(uniform(seeds, 2, 2), between(seeds, 3, 0, 0.9, 2), between(seeds, 4, 0.12, 0.95, 2))
    mix = colours[:, 0, :, None, None] * (1 - along) + colours[:, 1, :, None, None] * along
    return mix.clamp(0, 1) * 2 - 1


def textures(seeds: Tensor, size: int) -> Tensor:
    """Return coloured fractal noise that looks like clouds, stone or cloth, (B, 3, size, size) in -1..1."""
    fields = fractal(seeds, 5, size, 3, (3, 6, 12, 24, 48, 96, 192), 0.7)
    ridged = choice(seeds, 6, 3)[:, None, None, None] == 0
    fields = torch.where(ridged, 1.2 - 2.0 * fields.abs(), fields)
    mixing = between(seeds, 7, -1, 1, 3, 3)
    mixing = mixing / mixing.norm(dim=-1, keepdim=True)
    grey = uniform(seeds, 8)[:, None, None] < 0.7
    mixing = torch.where(grey, 0.35 * mixing + torch.tensor([1.0, 0, 0], device=seeds.device), mixing)
    base = hue(uniform(seeds, 9), between(seeds, 10, 0, 0.8), between(seeds, 11, 0.25, 0.75))
    strength = between(seeds, 12, 0.06, 0.26)[:, None, None, None]
    picture = base[:, :, None, None] + strength * torch.einsum("brf,bfhw->brhw", mixing, fields)
    return picture.clamp(0, 1) * 2 - 1


def photo_like(seeds: Tensor, size: int) -> Tensor:
    """Return dead-leaves pictures with textures, shading, haze and different sharpness, (B, 3, size, size) in -1..1."""
    b, device = len(seeds), seeds.device
    y, x = plane(size, device)
    fine = size - size % 2
    # Noise stretched along either axis looks like fur, grass, bark or water.
    wide, tall = (fractal(seeds, channel, size, 1, (16, 32, 64, fine), 0.9) for channel in (22, 23))
    wide = F.interpolate(wide[:, :, :, : size // 6], (size, size), mode="bilinear")
    tall = F.interpolate(tall[:, :, : size // 6], (size, size), mode="bilinear")
    noise = torch.cat([fractal(seeds, 21, size, 2, (8, 16, 32, 64, 128, fine), 0.8), wide, tall], dim=1)
    hues = uniform(seeds, 24)[:, None] + torch.cumsum(between(seeds, 25, -0.22, 0.22, 4), 1)
    palette = hue(hues, between(seeds, 26, 0.05, 0.65, 4), between(seeds, 27, 0.1, 0.95, 4))
    u = {name: uniform(seeds, 30 + k, LEAVES) for k, name in enumerate(LEAF)}
    smallest = between(seeds, 28, 0.03, 0.14)[:, None]
    # Sizes between the smallest and 0.9 with a density of size ** -3, which looks the same at every scale.
    sizes = (smallest**-2 - u["size"] * (smallest**-2 - 0.9**-2)) ** -0.5
    picture = palette[:, 0, :, None, None] + 0.12 * noise[:, :1]
    horizon = (uniform(seeds, 29) < 0.4)[:, None, None, None]
    picture = torch.where(horizon, palette[:, 1, :, None, None] * (0.75 + 0.25 * y), picture)
    rows = torch.arange(b, device=device)
    for k in range(LEAVES):
        v = {name: value[:, k, None, None] for name, value in u.items()}
        # In a picture with a sky no leaf has its centre in the upper part.
        top = torch.where(horizon[:, 0], -0.1, -1.2)
        dx, dy = x - (v["x"] * 2.4 - 1.2), y - (top + v["y"] * (1.2 - top))
        turn = 2 * math.pi * v["turn"]
        a, c = dx * torch.cos(turn) + dy * torch.sin(turn), dy * torch.cos(turn) - dx * torch.sin(turn)
        c = c * (1 + 5 * v["long"] ** 2)
        corners = torch.tensor([3.0, 4.0, 5.0, 64.0], device=device)[(v["corners"] * 4).long()]
        inner = torch.cos(math.pi / corners) * torch.where(v["star"] < 0.1, 0.6, 1.0)
        distance = sizes[:, k, None, None] * radius(torch.atan2(c, a), corners, inner) - torch.sqrt(a * a + c * c)
        sharp = size / 2 * (0.12 + 0.88 * v["sharp"] ** 0.5)
        alpha = (distance * sharp + 0.5).clamp(0, 1)[:, None]
        colour = palette[rows, (u["colour"][:, k] * 4).long()][:, :, None, None] * (0.55 + 0.8 * v["bright"])[:, None]
        field = noise[rows, (u["field"][:, k] * 4).long()][:, None]
        shade = 1 + 0.6 * (a * (v["shade"] - 0.5) / sizes[:, k, None, None])[:, None].clamp(-1, 1)
        leaf = colour * shade + (0.26 * v["rough"] ** 1.5)[:, None] * field
        picture = picture + alpha * (leaf - picture)
    light = 1 + (between(seeds, 50, -0.35, 0.35)[:, None, None] * x + between(seeds, 51, -0.35, 0.35)[:, None, None] * y)
    picture = picture * light[:, None]
    soft = F.avg_pool2d(F.pad(picture, (1, 1, 1, 1), mode="replicate"), 3, 1)
    picture = torch.lerp(soft, picture, between(seeds, 52, 0, 1)[:, None, None, None])
    grey = picture.mean(1, keepdim=True)
    picture = torch.lerp(grey, picture, between(seeds, 53, 0.3, 1.15)[:, None, None, None])
    picture = picture.clamp(0, 1) ** between(seeds, 54, 0.7, 1.4)[:, None, None, None]
    return picture * 2 - 1


def streaked(seeds: Tensor, pictures: Tensor) -> Tensor:
    """Return pictures with the motion blur of a moving camera, along rows or, for a quarter of them, columns.

    pictures: (B, 3, S, S) uint8; the result is of the same kind.
    """
    made = torch.empty_like(pictures)
    upright = uniform(seeds, 60) < 0.25
    reach = (2 ** between(seeds, 61, 4.5, 7)).long()
    contrast = between(seeds, 62, 0.04, 0.3)
    for i in range(len(pictures)):
        x = pictures[i].float() / 127.5 - 1
        x = x.transpose(1, 2) if upright[i] else x
        length = min(int(reach[i]), x.shape[2] // 2 - 1)
        x = F.avg_pool2d(F.pad(x[None], (length, length, 0, 0), mode="reflect"), (1, 2 * length + 1), 1)[0]
        mean = x.mean((1, 2), keepdim=True)
        # Averaging takes contrast away, so some is given back.
        x = mean + (x - mean) * (contrast[i] / (x - mean).std().clamp_min(0.01)).clamp(1.0, 6.0)
        x = x.transpose(1, 2) if upright[i] else x
        made[i] = (x * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    return made


LEAF = (
    "x", "y", "turn", "long", "corners", "star", "size", "colour", "bright", "field", "rough", "shade", "sharp",
)  # fmt: skip


def bank(seeds: Tensor, size: int, batch: int = 64) -> Tensor:
    """Return a picture for each seed, (B, 3, size, size) uint8: first gradients, then photo-like pictures, then textures.

    batch: pictures made at a time, which bounds the memory.
    """
    made = torch.empty(len(seeds), 3, size, size, dtype=torch.uint8, device=seeds.device)
    first, second = int(PLAIN * len(seeds)), int((PLAIN + PHOTOS) * len(seeds))
    for make, part in ((gradients, range(first)), (photo_like, range(first, second)), (textures, range(second, len(seeds)))):
        for begin in range(part.start, part.stop, batch):
            rows = slice(begin, min(begin + batch, part.stop))
            made[rows] = (make(seeds[rows], size) * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    return made
