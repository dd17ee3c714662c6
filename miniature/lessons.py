"""The transformer's curriculum, and the pool of encoded clips it draws from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy
import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor
from transformers import SiglipVisionModel

from miniature import vae as passes
from miniature.clips import HELD_OUT, SECTION, Scenes, render, scenes
from miniature.networks import CaptionBank, image_tokens
from miniature.training import Session


@dataclass(frozen=True)
class Lesson:
    """What clips are made of.

    kinds, phrases, speeds, simple: as in `clips.scenes`. sections: length of the clips. single: share of steps for the
    one-frame mode. shift: range of the time shift of the noise levels; where it is high, so is the noise, and only the
    caption can tell where things go.
    """

    kinds: Mapping[str, float]
    phrases: int = 1
    speeds: float = 0.1
    simple: float = 0.6
    sections: int = 1
    single: float = 0.05
    shift: tuple[float, float] = (1.5, 8.0)
    height: int = 128
    width: int = 128


FIRST = Lesson({"move": 0.7, "pan": 0.15, "zoom": 0.15})
SECOND = Lesson({"move": 0.45, "pan": 0.22, "zoom": 0.18, "grow": 0.08, "turn": 0.05, "still": 0.02}, simple=0.3)
THIRD = Lesson(
    {"move": 0.4, "pan": 0.24, "zoom": 0.18, "grow": 0.08, "turn": 0.06, "still": 0.04},
    phrases=4,
    speeds=0.15,
    simple=0.25,
    sections=2,
    single=0.08,
    shift=(1.4, 6.0),
)
# (share of the run at which it ends, lesson); lessons of equal sections share a pool.
STAGES = {
    "a": ((0.25, FIRST), (0.6, SECOND), (1.0, THIRD)),
    "b": ((1.0, THIRD),),
}


class Pool:
    """Clips as latents, replaced in a ring, on the device.

    latents: (P, 16, 1 + 9 S, h, w), the first one that of the first frame alone. ends: (P, 16, S, h, w), the last frames of
    the sections, each encoded alone. image: (P, 16, 64). row: (P,) of the caption among those of its length, `lengths`.
    """

    def __init__(
        self,
        session: Session,
        vae: AutoencoderKLHunyuanVideo,
        siglip: SiglipVisionModel,
        pictures: Tensor,
        captions: CaptionBank,
        lesson: Lesson,
        size: int,
        chunk: int,
    ):
        self.session, self.vae, self.siglip, self.pictures, self.captions = session, vae, siglip, pictures, captions
        self.size, self.chunk, self._at, self._drawn = size, chunk, 0, 0
        h, w, s = lesson.height // 8, lesson.width // 8, lesson.sections
        device, dtype = session.device, session.dtype
        self.latents = torch.zeros(size, 16, 1 + 9 * s, h, w, device=device, dtype=dtype)
        self.ends = torch.zeros(size, 16, s, h, w, device=device, dtype=dtype)
        self.image = torch.zeros(size, 16, 64, device=device, dtype=dtype)
        self.row = torch.zeros(size, dtype=torch.long, device=device)
        self.lengths = numpy.zeros(size, dtype=int)
        for _ in range(size // chunk):
            self.refresh(lesson)

    def refresh(self, lesson: Lesson) -> None:
        """Replace the oldest chunk."""
        seeds = self.session.seeds(self._drawn + 1, self.chunk, HELD_OUT)
        self._drawn += 1
        chosen = scenes(seeds, len(self.pictures), lesson.kinds, lesson.phrases, lesson.speeds, lesson.simple)
        rows = slice(self._at, self._at + self.chunk)
        places = [self.captions.place[caption] for caption in chosen.captions()]
        made = encoded(self.vae, self.siglip, chosen, self.pictures, lesson)
        for store, new in zip((self.latents, self.ends, self.image), made, strict=True):
            store[rows] = new.to(store.dtype)
        self.row[rows] = torch.tensor([row for _, row in places]).to(self.row)
        self.lengths[rows] = [length for length, _ in places]
        self._at = (self._at + self.chunk) % self.size

    def draw(self, random: numpy.random.Generator, count: int) -> tuple[int, Tensor]:
        """A caption length, by how common it is, and `count` rows with it."""
        length = int(self.lengths[random.integers(self.size)])
        rows = random.choice(numpy.flatnonzero(self.lengths == length), count)
        return length, torch.from_numpy(rows)


@torch.no_grad()
def encoded(
    vae: AutoencoderKLHunyuanVideo, siglip: SiglipVisionModel, chosen: Scenes, pictures: Tensor, lesson: Lesson
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (B, 16, 1 + 9 S, h, w) and ends (B, 16, S, h, w), both scaled as in the program, and image tokens."""
    frames = torch.arange(SECTION * lesson.sections + 1)
    pixels = render(chosen, pictures, frames, lesson.height, lesson.width)
    scale = vae.config.scaling_factor
    exact = pixels.to(vae.dtype)
    latents = passes.encode(vae, exact) * scale
    alone = exact[:, :, ::SECTION]
    single = passes.encode(vae, alone.transpose(1, 2).flatten(0, 1)).unflatten(0, alone.shape[0:3:2]).transpose(1, 2) * scale
    latents[:, :, :1] = single[:, :, :1]
    return latents, single[:, :, 1:], image_tokens(siglip, pixels[:, :, 0])
