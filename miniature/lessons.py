"""Define the curriculum of the transformer's training, and keep the pool of encoded clips that its batches are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy
import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor
from transformers import SiglipVisionModel

from miniature import vae as passes
from miniature.captions import TAILS, everyday_captions, with_tail
from miniature.clips import HELD_OUT, KIND_NAMES, SECTION, Scenes, render, scenes
from miniature.networks import CaptionBank, image_tokens
from miniature.noise import choice, uniform
from miniature.training import Session


@dataclass(frozen=True)
class Lesson:
    """Describe the clips and steps of one part of the curriculum.

    kinds, phrases, speeds, simple: as in `clips.scenes`. sections: length of the clips. single: share of steps that
    train the one-frame mode. shift: range of the time shift of the noise schedule; a high shift means much noise, where only
    the caption tells the direction of motion. height, width: of the clips, in pixels. tails, everyday, empty: shares of camera
    captions with an ending, of zooms in with an everyday prompt, of all clips without a prompt. share: of the steps, among
    lessons that run at the same time. pool: number of clips kept. early: 1 draws all sections of a clip equally often, a
    larger number draws the first ones more often.
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
    tails: float = 0.0
    everyday: float = 0.0
    empty: float = 0.0
    share: float = 1.0
    pool: int = 1536
    early: float = 1.5

    def batch(self, full: int) -> int:
        """Return the number of clips in a step: `full` at 128x128 pixels, fewer of larger ones, at least 1."""
        return max(1, round(full * 128 * 128 / (self.height * self.width)))


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
FOURTH = replace(
    THIRD,
    kinds={"move": 0.34, "pan": 0.24, "zoom": 0.26, "grow": 0.07, "turn": 0.05, "still": 0.04},
    sections=4,
    single=0.1,
    shift=(1.3, 4.5),
    tails=0.25,
    everyday=0.3,
    empty=0.03,
    share=0.55,
    pool=1024,
)
SMALLER = replace(FOURTH, sections=2, pool=384)
SIZES = (
    FOURTH,
    replace(SMALLER, height=160, width=160, share=0.17),
    replace(SMALLER, height=96, width=176, share=0.09),
    replace(SMALLER, height=176, width=96, share=0.09),
    replace(SMALLER, height=192, width=192, share=0.1),
)
# Lessons for what was weakest after SIZES: zooms, and the last sections of long films.
WEAKEST = tuple(
    replace(lesson, kinds={"move": 0.32, "pan": 0.2, "zoom": 0.34, "grow": 0.06, "turn": 0.04, "still": 0.04}, early=1.0)
    for lesson in SIZES
)
# For each stage: (share of the run at which the lessons end, lessons). Lessons whose clips have equal sizes share a pool.
STAGES = {
    "a": ((0.25, (FIRST,)), (0.6, (SECOND,)), (1.0, (THIRD,))),
    "b": ((1.0, SIZES),),
    "c": ((1.0, WEAKEST),),
}


class Pool:
    """Keep P encoded clips of S sections on the device, and replace the oldest ones in turn.

    latents: (P, 16, 1 + 9 S, h, w), the first of which is the first frame encoded alone. ends: (P, 16, S, h, w), the last
    frame of each section encoded alone. image: (P, 16, 64), tokens of the first frame. lengths: (P,) number of the caption's
    tokens. row: (P,) row of the caption among the captions with as many tokens. chunk: clips encoded at a time.
    """

    def __init__(
        self,
        session: Session,
        vae: AutoencoderKLHunyuanVideo,
        siglip: SiglipVisionModel,
        pictures: Tensor,
        captions: CaptionBank,
        lesson: Lesson,
        chunk: int,
    ):
        size = lesson.pool // chunk * chunk
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
        """Replace the oldest chunk of clips by new ones of the lesson."""
        seeds = self.session.seeds(self._drawn + 1, self.chunk, HELD_OUT)
        self._drawn += 1
        chosen = scenes(seeds, len(self.pictures), lesson.kinds, lesson.phrases, lesson.speeds, lesson.simple)
        rows = slice(self._at, self._at + self.chunk)
        places = [self.captions.place[caption] for caption in said(chosen, lesson)]
        made = encoded(self.vae, self.siglip, chosen, self.pictures, lesson)
        for store, new in zip((self.latents, self.ends, self.image), made, strict=True):
            store[rows] = new.to(store.dtype)
        self.row[rows] = torch.tensor([row for _, row in places]).to(self.row)
        self.lengths[rows] = [length for length, _ in places]
        self._at = (self._at + self.chunk) % self.size

    def draw(self, random: numpy.random.Generator, count: int) -> tuple[int, Tensor]:
        """Draw a caption length and `count` clips whose captions have it; returns the length and the clips' rows, (count,).

        Frequent lengths are drawn more often. Rare ones (fewer than 8 clips) are left out: batches would hold copies.
        """
        lengths, common = numpy.unique(self.lengths, return_counts=True)
        weights = numpy.where(common >= min(8, common.max()), common, 0)
        length = int(random.choice(lengths, p=weights / weights.sum()))
        rows = random.choice(numpy.flatnonzero(self.lengths == length), count)
        return length, torch.from_numpy(rows)


def said(chosen: Scenes, lesson: Lesson) -> list[str]:
    """Return a caption for each scene; some are empty, everyday prompts or have an ending, as often as the lesson says."""
    columns = (chosen.kind, chosen.direction, uniform(chosen.seeds, 70, 2), choice(chosen.seeds, 71, 1 << 20))
    captions, everyday = chosen.captions(), everyday_captions()
    for i, (kind, direction, (first, second), number) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        name = KIND_NAMES[kind]
        if first < lesson.empty:
            captions[i] = ""
        elif (name, direction) == ("zoom", 0) and second < lesson.everyday:
            captions[i] = everyday[number % len(everyday)]
        elif name in ("pan", "zoom") and second > 1 - lesson.tails:
            captions[i] = with_tail(captions[i], number % len(TAILS))
    return captions


@torch.no_grad()
def encoded(
    vae: AutoencoderKLHunyuanVideo, siglip: SiglipVisionModel, chosen: Scenes, pictures: Tensor, lesson: Lesson
) -> tuple[Tensor, Tensor, Tensor]:
    """Render and encode scenes of S sections.

    Returns the latents (B, 16, 1 + 9 S, h, w) and the sections' last frames (B, 16, S, h, w), both times the VAE's scaling
    factor, and the image tokens of the first frames (B, 16, 64).
    """
    frames = torch.arange(SECTION * lesson.sections + 1)
    pixels = render(chosen, pictures, frames, lesson.height, lesson.width)
    scale = vae.config.scaling_factor
    exact = pixels.to(vae.dtype)
    latents = passes.encode(vae, exact) * scale
    alone = exact[:, :, ::SECTION]
    single = passes.encode(vae, alone.transpose(1, 2).flatten(0, 1)).unflatten(0, alone.shape[0:3:2]).transpose(1, 2) * scale
    latents[:, :, :1] = single[:, :, :1]
    return latents, single[:, :, 1:], image_tokens(siglip, pixels[:, :, 0])
