"""Generate procedural video clips with captions and ground truth; every clip is a pure function of its seed.

A clip shows a picture of the bank through a camera that may pan or zoom, mostly with one shape in front that may move, grow or
turn. `scenes` draws what happens at random, `render` makes the pixels; both give the same values on every device.
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
# Frames of a section; the distances and factors below are for one section.
SECTION = 36
# Shares of the picture's side: a shape's way and a camera's pan.
MOVE, PAN = 0.3, 0.22
ZOOM, GROW = 1.35, 1.6
TURN = math.pi / 2
KIND_NAMES = tuple(KINDS)
SHAPE_NAMES, COLOUR_NAMES = tuple(SHAPES), tuple(COLOURS)
# Unit vectors (x, y) of the four directions, y down.
VECTORS = ((-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0))


@dataclass(frozen=True)
class Scenes:
    """Hold what happens in B clips; tensors are (B,) unless said otherwise.

    kind, direction, shape, colour, phrase: indices into the tables of `miniature.captions`. place: (B, 2) centre of the
    shape in 0..1 at the first frame. size: its radius as a share of the side. turn: its angle at the first frame, in radians.
    speed: factor on all distances. background: index into the bank. view: share of the bank's picture that the camera sees.
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
        """Return the caption of each scene."""
        columns = (self.kind, self.direction, self.shape, self.colour, self.phrase)
        return [
            caption(KIND_NAMES[k], d, SHAPE_NAMES[s], COLOUR_NAMES[c], p)
            for k, d, s, c, p in zip(*(column.tolist() for column in columns), strict=True)
        ]

    def turned_to(self, direction: int) -> Scenes:
        """Return the same scenes with another direction of motion, an index."""
        return replace(self, direction=torch.full_like(self.direction, direction))

    @property
    def distance(self) -> Tensor:
        """Return the share of the picture's side that moves and pans cover in one section, (B,)."""
        base = torch.where(self.kind == KIND_NAMES.index("pan"), PAN, MOVE)
        return base * self.speed


def scenes(
    seeds: Tensor, pictures: int, kinds: Mapping[str, float], phrases: int = 1, speeds: float = 0.1, simple: float = 0.3
) -> Scenes:
    """Draw one random scene for each seed.

    pictures: size of the bank. kinds: share of each kind. phrases: number of wordings used. speeds: spread of the speed
    around 1. simple: share of moving shapes that stand in front of a plain gradient. Pans and zooms never have such a
    background, because no motion would be visible in it.
    """
    weights = torch.tensor([kinds.get(name, 0.0) for name in KIND_NAMES], device=seeds.device)
    bounds = torch.cumsum(weights / weights.sum(), 0)
    kind = torch.searchsorted(bounds, uniform(seeds, 1)).clamp_max(len(KIND_NAMES) - 1)
    counts = torch.tensor(list(KINDS.values()), device=seeds.device)[kind]
    at_camera = torch.isin(kind, torch.tensor([KIND_NAMES.index("pan"), KIND_NAMES.index("zoom")], device=seeds.device))
    plain = int(PLAIN * pictures)
    place, before_plain = uniform(seeds, 10), (uniform(seeds, 15) < simple) & ~at_camera
    background = torch.where(before_plain, place * plain, plain + place * (pictures - plain)).long()
    # A zoom begins with a smaller view, so that zooming out for two sections does not leave the picture.
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
    """Render scenes to pixels (B, 3, T, height, width) in -1..1.

    frames: (T,) frame numbers; a section has 36. bank: the background pictures, (N, 3, S, S) uint8.
    """
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
    """Return the shape's offset (B, T, 2) in shares of the side, its scale (B, T) and its rotation (B, T) in radians.

    time: (1, T), in sections.
    """
    way = time * scene.speed[:, None]
    vectors = torch.tensor(VECTORS, device=time.device)[scene.direction]
    sign = torch.where(scene.direction == 0, 1.0, -1.0)[:, None]

    def of(name: str) -> Tensor:
        return (scene.kind == KIND_NAMES.index(name)).float()[:, None]

    offset = (of("move") * way * MOVE)[..., None] * vectors[:, None]
    return offset, GROW ** (of("grow") * sign * way), of("turn") * sign * way * TURN


def camera(scene: Scenes, time: Tensor) -> tuple[Tensor, Tensor]:
    """Return the camera's offset (B, T, 2), in shares of its view's side, and the scale of the view (B, T).

    The picture seems to move in the opposite direction. time: (1, T), in sections.
    """
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
    # The first view must not depend on the direction: the network could read the direction from it.
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
    """Return the shape's coverage of each pixel (B, T, H, W) in 0..1, and its colours (B, 3, T, H, W) in -1..1."""
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
