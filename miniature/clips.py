"""Endless procedural clips with captions and ground truth, as a pure function of their seeds.

A clip is a picture of the bank seen by a camera that may pan or zoom, and mostly one shape in front that may move, grow or
turn. `scenes` draws what happens, `render` makes the pixels; both are deterministic, on any device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from miniature.captions import COLOURS, KINDS, SHAPES, caption
from miniature.noise import between, choice, uniform
from miniature.pictures import PLAIN, hue, radius

# Seeds from here on are for evaluation and never trained on.
HELD_OUT = 1 << 30
# Frames of a section, over which the distances below are covered.
SECTION = 36
# Share of the picture's side that a shape moves or the camera pans in a section.
MOVE, PAN = 0.3, 0.22
ZOOM, GROW = 1.35, 1.6
TURN = math.pi / 2
KIND_NAMES = tuple(KINDS)
SHAPE_NAMES, COLOUR_NAMES = tuple(SHAPES), tuple(COLOURS)
# Unit vectors (x, y) of the four directions, y down.
VECTORS = ((-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0))


@dataclass(frozen=True)
class Scenes:
    """What happens in B clips; tensors (B,) unless said.

    kind, direction, shape, colour, phrase: indices into the language. place: (B, 2) centre of the shape in 0..1 at the first
    frame. size: its radius as a share of the side. speed: factor on all distances. view: share of the bank's picture seen.
    """

    seeds: Tensor
    kind: Tensor
    direction: Tensor
    shape: Tensor
    colour: Tensor
    phrase: Tensor
    place: Tensor
    size: Tensor
    turn: Tensor
    speed: Tensor
    background: Tensor
    view: Tensor

    def __len__(self) -> int:
        return len(self.seeds)

    def captions(self) -> list[str]:
        """Return a caption for each scene."""
        columns = (self.kind, self.direction, self.shape, self.colour, self.phrase)
        return [
            caption(KIND_NAMES[k], d, SHAPE_NAMES[s], COLOUR_NAMES[c], p)
            for k, d, s, c, p in zip(*(column.tolist() for column in columns), strict=True)
        ]

    def turned_to(self, direction: int) -> Scenes:
        """The same scenes with another direction."""
        return replace(self, direction=torch.full_like(self.direction, direction))

    @property
    def distance(self) -> Tensor:
        """Share of the side that moves and pans cover in one section."""
        base = torch.where(self.kind == KIND_NAMES.index("pan"), PAN, MOVE)
        return base * self.speed


def scenes(
    seeds: Tensor, pictures: int, kinds: Mapping[str, float], phrases: int = 1, speeds: float = 0.1, simple: float = 0.3
) -> Scenes:
    """Draw scenes.

    pictures: size of the bank. kinds: share of each kind. phrases: wordings used. speeds: spread around 1.
    simple: share of shapes that stand before a plain gradient. A camera never looks at one: nothing would be seen to move.
    """
    weights = torch.tensor([kinds.get(name, 0.0) for name in KIND_NAMES], device=seeds.device)
    bounds = torch.cumsum(weights / weights.sum(), 0)
    kind = torch.searchsorted(bounds, uniform(seeds, 1)).clamp_max(len(KIND_NAMES) - 1)
    counts = torch.tensor(list(KINDS.values()), device=seeds.device)[kind]
    at_camera = torch.isin(kind, torch.tensor([KIND_NAMES.index("pan"), KIND_NAMES.index("zoom")], device=seeds.device))
    plain = int(PLAIN * pictures)
    place, before_plain = uniform(seeds, 10), (uniform(seeds, 15) < simple) & ~at_camera
    background = torch.where(before_plain, place * plain, plain + place * (pictures - plain)).long()
    # A zoom begins closer, so that zooming out for two sections stays on the picture.
    view = between(seeds, 11, 0.5, 0.72) * torch.where(kind == KIND_NAMES.index("zoom"), 0.75, 1.0)
    return Scenes(
        seeds=seeds,
        kind=kind,
        direction=torch.minimum((uniform(seeds, 2) * counts).long(), counts - 1),
        shape=choice(seeds, 3, len(SHAPES)),
        colour=choice(seeds, 4, len(COLOURS)),
        phrase=choice(seeds, 5, phrases),
        place=between(seeds, 6, 0.32, 0.68, 2),
        size=between(seeds, 7, 0.12, 0.2),
        turn=between(seeds, 8, 0, 2 * math.pi),
        speed=between(seeds, 9, 1 - speeds, 1 + speeds),
        background=background.clamp_max(pictures - 1),
        view=view,
    )


def render(scene: Scenes, bank: Tensor, frames: Tensor, height: int, width: int) -> Tensor:
    """(B, 3, T, height, width) in -1..1. frames: (T,) frame numbers, of which 36 make a section; bank: (N, 3, S, S) uint8."""
    time = frames.to(bank.device).float()[None] / SECTION
    picture = _background(scene, bank, time, height, width)
    names = [KIND_NAMES.index(name) for name in ("move", "grow", "turn", "still")]
    has_shape = torch.isin(scene.kind, torch.tensor(names, device=bank.device))
    if not bool(has_shape.any()):
        return picture
    alpha, colour = _shape(scene, time, height, width)
    alpha = alpha * has_shape[:, None, None, None].float()
    return torch.lerp(picture, colour, alpha[:, None])


def motion(scene: Scenes, time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Offset of the shape (B, T, 2) in shares of the side, growth (B, T) and turn (B, T) at `time` (1, T) sections."""
    way = time * scene.speed[:, None]
    vectors = torch.tensor(VECTORS, device=time.device)[scene.direction]
    sign = torch.where(scene.direction == 0, 1.0, -1.0)[:, None]

    def of(name: str) -> Tensor:
        return (scene.kind == KIND_NAMES.index(name)).float()[:, None]

    offset = (of("move") * way * MOVE)[..., None] * vectors[:, None]
    return offset, GROW ** (of("grow") * sign * way), of("turn") * sign * way * TURN


def camera(scene: Scenes, time: Tensor) -> tuple[Tensor, Tensor]:
    """Offset (B, T, 2) of the view in shares of its side, and its scale (B, T); the picture goes the other way."""
    way = time * scene.speed[:, None]
    vectors = torch.tensor(VECTORS, device=time.device)[scene.direction]
    pan = (scene.kind == KIND_NAMES.index("pan")).float()[:, None]
    zoom = (scene.kind == KIND_NAMES.index("zoom")).float()[:, None]
    sign = torch.where(scene.direction == 0, -1.0, 1.0)[:, None]
    return (pan * way * PAN)[..., None] * vectors[:, None], ZOOM ** (zoom * sign * way)


def _background(scene: Scenes, bank: Tensor, time: Tensor, height: int, width: int) -> Tensor:
    b = len(scene)
    moving = torch.isin(scene.kind, torch.tensor([KIND_NAMES.index("pan"), KIND_NAMES.index("zoom")], device=bank.device))
    steps = time if bool(moving.any()) else time[:, :1] * 0
    offset, scale = camera(scene, steps)
    t = steps.shape[1]
    # The start does not depend on the direction, or it would give the direction away.
    spare = 1 - scene.view[:, None]
    centre = between(scene.seeds, 13, -0.35, 0.35, 2) * spare
    small = min(height, width)
    aspect = torch.tensor([width / small, height / small], device=bank.device)
    half = scene.view[:, None, None] * scale[..., None] * aspect
    middle = 2 * (centre[:, None] + offset * scene.view[:, None, None])
    theta = torch.zeros(b, t, 2, 3, device=bank.device)
    theta[..., 0, 0], theta[..., 1, 1] = half[..., 0], half[..., 1]
    theta[..., 0, 2], theta[..., 1, 2] = middle[..., 0], middle[..., 1]
    grid = F.affine_grid(theta.flatten(0, 1), (b * t, 3, height, width), align_corners=False)
    source = bank[scene.background].float() / 127.5 - 1
    source = source[:, None].expand(-1, t, -1, -1, -1).flatten(0, 1)
    seen = F.grid_sample(source, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return seen.unflatten(0, (b, t)).transpose(1, 2).expand(-1, -1, time.shape[1], -1, -1)


def _shape(scene: Scenes, time: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Coverage (B, T, H, W) in 0..1 and colours (B, 3, T, H, W) in -1..1."""
    device = time.device
    small = min(height, width)
    offset, growth, turned = motion(scene, time)
    shift = torch.tensor([(width / small - 1) / 2, (height / small - 1) / 2], device=device)
    centre = scene.place[:, None] + shift + offset
    ys = ((torch.arange(height, device=device) + 0.5) / small).view(1, 1, -1, 1)
    xs = ((torch.arange(width, device=device) + 0.5) / small).view(1, 1, 1, -1)
    dx, dy = xs - centre[..., 0, None, None], ys - centre[..., 1, None, None]
    corners, inner = _outlines(device)
    corners, inner = corners[scene.shape].view(-1, 1, 1, 1), inner[scene.shape].view(-1, 1, 1, 1)
    size = (scene.size[:, None] * growth)[..., None, None]
    angle = torch.atan2(dy, dx) - (scene.turn[:, None] + turned)[..., None, None]
    reach = torch.sqrt(dx * dx + dy * dy)
    alpha = ((size * radius(angle, corners, inner) - reach) * small + 0.5).clamp(0, 1)
    wheel = torch.tensor(list(COLOURS.values()), device=device)[scene.colour]
    colour = hue(wheel[:, 0], wheel[:, 1], wheel[:, 2] * between(scene.seeds, 14, 0.9, 1.05))
    light = 1 - 0.25 * (dy / size).clamp(-1, 1)
    return alpha, (colour[:, :, None, None, None] * light[:, None]).clamp(0, 1) * 2 - 1


def _outlines(device: torch.device) -> tuple[Tensor, Tensor]:
    corners = torch.tensor([float(n) for n, _ in SHAPES.values()], device=device)
    inner = [math.cos(math.pi / n) if q is None else q for n, q in SHAPES.values()]
    return corners, torch.tensor(inner, device=device)
