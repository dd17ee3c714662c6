"""What the transformer itself samples, as lessons for the decoder: a pool of first sections whose first frame is known.

The first frame of a film is the user's own picture, and its latent is exact. Yet it breaks where sampling made what follows
too loud: the group norms of the decoder span all frames of a time tile. Latents that are worn on purpose are not what sampling
does, so the decoder is shown the real ones, as the program decodes them: the start picture's own latent and the first four
sampled ones, which are the film's first time tile.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor

from miniature import vae as passes
from miniature.captions import COLOURS, KINDS, SHAPES, caption
from miniature.clips import HELD_OUT, Scenes, render, scenes
from miniature.networks import caption_bank, image_tokens, load_text, load_vision, new_transformer
from miniature.probe import sampled
from miniature.train_transformer import WEIGHTS_FILE, load_vae
from miniature.training import Session, load_into

# Pans and zooms lost most of their first frames.
SCENES = {"move": 1.0, "pan": 2.0, "zoom": 2.0}
# Reverse and forward first sections, by their place in FILM_TIMES, in turn; and the steps they take.
LAYOUTS, STEPS = (0, 4), (15, 15, 10, 10, 12, 12)
# Sampled latents of a time tile, frames that a latent becomes, pixels of a cell's side.
TILE, FRAMES, CELL = 4, 4, 8
# Scenes drawn for each that is sampled. Half are as they come, half those whose start is loudest: vivid or dark corners.
DRAWN = 4
LOUD = 2.0
# Root mean square distance from the truth, in unit variance, at which a cell of a sampled latent counts for 1/e.
NEAR = 0.3
# Weight of what the decoder made before, where the truth does not count, and dB that its first frame may be below its own.
BEFORE, BROKEN = 0.3, 1.0
# Weights of the first frame, and of all others together.
FIRST, OTHERS = 2.0, 0.3
# dB that are added to what a first frame lost for the chance that it is drawn, and the most that counts.
FLOOR, MOST = 0.3, 15.0
# Clips encoded or decoded at a time, which bounds the memory.
PART = 32
# Share of the run's time, and seconds, in which the pool is first filled.
SHARE, LONGEST = 0.1, 40.0


@dataclass(frozen=True)
class Sizes:
    """pool: sections kept. chunk: of them made at a time. batch: of a training step. side: of their frames, in pixels.
    watched: sections that are only looked at, of each sort."""

    pool: int = 3072
    chunk: int = 128
    batch: int = 4
    side: int = 128
    watched: int = 32


@dataclass(frozen=True)
class Sections:
    """B first sections.

    latents: (B, 16, 5, h, w), unscaled, the start picture's own in front. target: (B, 3, 17, H, W) in -1..1, the first frame
    that of the truth. weight: (B, 1, 4, h, w) of the other frames' target. alone: (B,) mean square error of the start picture's
    latent decoded alone by the decoder before this stage. lost: (B,) dB that the first frame is below that.
    """

    latents: Tensor
    target: Tensor
    weight: Tensor
    alone: Tensor
    lost: Tensor


def below(error: Tensor, alone: Tensor) -> Tensor:
    """dB that mean square errors are below those of pictures alone, 0 to MOST."""
    lost = 10 * torch.log10(error.clamp_min(1e-9) / alone.clamp_min(1e-9))
    return torch.nan_to_num(lost, MOST, MOST, 0.0).clamp(0, MOST)


def first_errors(made: Tensor, true: Tensor) -> Tensor:
    """Mean square errors (B,) of the first frames of clips, or of pictures."""
    a, b = (x[:, :, 0] if x.ndim == 5 else x for x in (made, true))
    return (a.detach().float().clamp(-1, 1) - b.float()).square().flatten(1).mean(1)


class SampledPool:
    """First sections of training scenes on the device, renewed where the decoder has learned them.

    Those whose first frame is worst with the decoder as it was when they were last seen are drawn most often.
    """

    def __init__(self, session: Session, folder: Path, pictures: Tensor, sizes: Sizes):
        device, dtype, side = session.device, session.dtype, sizes.side
        self.session, self.pictures, self.sizes = session, pictures, sizes
        self.net = new_transformer()
        load_into(self.net, folder / "transformer" / WEIGHTS_FILE)
        self.net.to(device, dtype).requires_grad_(False)
        self.encoder = load_vae(folder, session)
        # The decoder before this stage; what runs through one in training may be more than float16 holds.
        self.before = copy.deepcopy(self.encoder).to(dtype)
        self.siglip = load_vision(folder, device)
        said = [
            caption(kind, direction, shape, colour)
            for kind in SCENES
            for direction, shape, colour in product(range(KINDS[kind]), SHAPES, COLOURS)
        ]
        self.captions = caption_bank(load_text(folder, device), list(dict.fromkeys(said)), device, dtype)
        cells = side // CELL
        self.latents = torch.zeros(sizes.pool, passes.LATENTS, 1 + TILE, cells, cells, device=device, dtype=dtype)
        self.target = torch.zeros(sizes.pool, 3, 1 + TILE * FRAMES, side, side, device=device, dtype=dtype)
        self.weight = torch.zeros(sizes.pool, 1, TILE, cells, cells, device=device, dtype=dtype)
        self.alone = torch.ones(sizes.pool, device=device)
        # Places that are still empty have less than nothing.
        self.lost = torch.full((sizes.pool,), -1.0, device=device)
        self.rows = torch.zeros(sizes.batch, dtype=torch.long, device=device)
        self._drawn = 0
        # In both layouts; training never sees them.
        aside = [self._made(self.before) for _ in LAYOUTS]
        self.watched = self._watched(aside)

    def fill(self) -> None:
        """Make sections until the pool is full or the time for it is over, at least one chunk."""
        began, made = time.monotonic(), 0
        limit = min(SHARE * self.session.seconds, LONGEST)
        while made == 0 or (made < self.sizes.pool and time.monotonic() - began < limit):
            self.renew(self.before)
            made += self.sizes.chunk
        lost = self.lost[self.lost >= 0]
        self.session.log(
            sampled=len(lost),
            seconds=round(time.monotonic() - began, 1),
            lost=lost.mean().item(),
            worst=lost.max().item(),
            broken=(lost > BROKEN).float().mean().item(),
        )

    def renew(self, decoder: AutoencoderKLHunyuanVideo) -> None:
        """A new chunk in empty places, or else in those of what `decoder`, which is in training, does best by now."""
        new = self._made(decoder)
        rows = self.lost.argsort()[: len(new.lost)]
        for name, value in vars(new).items():
            store = getattr(self, name)
            store[rows] = value[: len(rows)].to(store.dtype)

    def draw(self) -> None:
        """Choose the sections of the next step."""
        chances = torch.where(self.lost < 0, 0.0, self.lost + FLOOR)
        self.rows.copy_(torch.multinomial(chances, self.sizes.batch, replacement=True))

    def loss(self, decoder: AutoencoderKLHunyuanVideo) -> tuple[Tensor, Tensor]:
        """Of the sections that were drawn; and the errors of their first frames along the opponent axes."""
        z, target = self.latents[self.rows], self.target[self.rows]
        weight = _over_pixels(self.weight[self.rows])
        made = passes.decode(decoder, z)
        self.lost.index_copy_(0, self.rows, below(first_errors(made, target), self.alone[self.rows]))
        first, axes = passes.loss(made[:, :, 0], target[:, :, 0], z)
        others, _ = passes.loss(made[:, :, 1:] * weight, target[:, :, 1:] * weight, z)
        return FIRST * first + OTHERS * others, axes

    @torch.no_grad()
    def figures(self, decoder: AutoencoderKLHunyuanVideo) -> dict[str, float]:
        """PSNR of the first frames of sections that training never sees, mean and worst, and how much that is below the start
        picture decoded alone by the same decoder: of scenes as they come, and of those whose first frames the decoder before
        this stage made worst."""
        figures = {}
        dtype = decoder.post_quant_conv.weight.dtype
        for name, (latents, true) in self.watched.items():
            errors, alone = [], []
            for z, x in zip(latents.split(PART), true.split(PART), strict=True):
                z = z.to(dtype)
                errors.append(first_errors(passes.decode(decoder, z), x))
                alone.append(first_errors(passes.decode(decoder, z[:, :, 0]), x))
            film, own = (10 * torch.log10(4 / torch.cat(e).clamp_min(1e-12)) for e in (errors, alone))
            gap = own - film
            for key, value in (("", film.mean()), ("_worst", film.min()), ("_below", gap.mean()), ("_below_most", gap.max())):
                figures[f"{name}_first{key}"] = value.item()
        return figures

    def _watched(self, aside: list[Sections]) -> dict[str, tuple[Tensor, Tensor]]:
        latents, true, lost = (
            torch.cat(parts) for parts in zip(*((each.latents, each.target[:, :, 0], each.lost) for each in aside), strict=True)
        )
        count = min(self.sizes.watched, len(lost))
        # The first half of a chunk is of scenes as they come.
        half = self.sizes.chunk // 2 or 1
        plain = torch.cat([torch.arange(half) + k * self.sizes.chunk for k in range(len(aside))])
        plain = plain[:: max(1, len(plain) // count)][:count].to(lost.device)
        hard = lost.argsort(descending=True)[:count]
        return {name: (latents[rows].clone(), true[rows].clone()) for name, rows in (("plain", plain), ("hard", hard))}

    @torch.no_grad()
    def _made(self, decoder: AutoencoderKLHunyuanVideo) -> Sections:
        """The next chunk. decoder: by which the first frames are judged."""
        number, chunk, side = self._drawn, self.sizes.chunk, self.sizes.side
        self._drawn += 1
        scale, dtype = self.encoder.config.scaling_factor, self.session.dtype
        exact = self.encoder.dtype
        drawn = scenes(self.session.seeds(number, DRAWN * chunk, HELD_OUT), len(self.pictures), SCENES)
        starts = render(drawn, self.pictures, torch.zeros(1), side, side)[:, :, 0]
        own = torch.cat([passes.encode(self.encoder, part.to(exact)) for part in starts.split(PART)])
        loud = ((own.float() * scale).abs() - LOUD).clamp_min(0).flatten(1).mean(1)
        plain = chunk // 2
        rest = plain + loud[plain:].argsort(descending=True)[: chunk - plain]
        rows = torch.cat([torch.arange(plain, device=rest.device), rest])
        chosen, starts, own = _some(drawn, rows), starts[rows], own[rows][:, :, None]
        film = sampled(
            self.net,
            self.captions,
            chosen.captions(),
            (own.float() * scale).to(dtype),
            image_tokens(self.siglip, starts).to(dtype),
            LAYOUTS[number % len(LAYOUTS)],
            STEPS[number % len(STEPS)],
            noise_seed=1 + number,
        )[:, :, :TILE]
        parts = [
            self._judged(decoder, _some(chosen, part), own[part], film[part])
            for part in torch.arange(chunk, device=rows.device).split(PART)
        ]
        return Sections(*(torch.cat(values) for values in zip(*(vars(part).values() for part in parts), strict=True)))

    def _judged(self, decoder: AutoencoderKLHunyuanVideo, chosen: Scenes, own: Tensor, film: Tensor) -> Sections:
        """Targets: the truth where what was sampled is near it. Further away it would teach the decoder the mean of all that
        may have been meant, which is a blur; there it stays with what the decoder made before, unless that broke."""
        scale, dtype, side = self.encoder.config.scaling_factor, self.session.dtype, self.sizes.side
        true = render(chosen, self.pictures, torch.arange(1 + TILE * FRAMES), side, side)
        truth = passes.encode(self.encoder, true.to(self.encoder.dtype))[:, :, 1:].float() * scale
        square = (film - truth).square().mean(1, keepdim=True)
        # A cell's own error is as uneven as noise.
        square = F.avg_pool3d(F.pad(square, (1, 1, 1, 1, 0, 0), mode="replicate"), (1, 3, 3), 1)
        near = torch.exp(-square / NEAR**2)
        latents = torch.cat([own.float(), film / scale], dim=2)
        before = passes.decode(self.before, latents.to(dtype)).float().clamp(-1, 1)
        alone = first_errors(passes.decode(self.before, own[:, :, 0].to(dtype)), true)
        lost = below(first_errors(before, true), alone)
        whole = BEFORE * (lost < BROKEN).float().view(-1, 1, 1, 1, 1) * (1 - near)
        share = _over_pixels(near / (near + whole).clamp_min(1e-6))
        target = torch.cat([true[:, :, :1], torch.lerp(before[:, :, 1:], true[:, :, 1:], share)], dim=2)
        if decoder is not self.before:
            made = passes.decode(decoder, latents.to(decoder.post_quant_conv.weight.dtype))
            lost = below(first_errors(made, true), alone)
        return Sections(latents, target.to(self.session.dtype), near + whole, alone, lost)


def _over_pixels(x: Tensor) -> Tensor:
    """A number for each cell of sampled latents (B, 1, T, h, w), for each of the pixels that the cell becomes."""
    return x.repeat_interleave(FRAMES, 2).repeat_interleave(CELL, 3).repeat_interleave(CELL, 4)


def _some(scene: Scenes, rows: Tensor) -> Scenes:
    return Scenes(**{name: value[rows] for name, value in vars(scene).items()})
