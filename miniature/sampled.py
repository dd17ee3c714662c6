"""Train the decoder on latents that the transformer itself has sampled: a pool of first sections with known first frames.

The first frame of a film is the user's own picture, and its latent is exact. Yet its pixels are wrong where the sampled latents
after it are too large, because the group norms of the decoder span all frames of a time tile. Latents that are damaged on
purpose (`vae.worn`) differ from what sampling makes. So the decoder is trained on sampled ones, as the program decodes them:
the start picture's own latent and the first four sampled ones, which are the film's first time tile.
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

# Shares of the kinds of scenes: the first frames of pans and zooms were worst.
SCENES = {"move": 1.0, "pan": 2.0, "zoom": 2.0}
# Chunks take these in turn: the layout of the first section (reverse or forward, as indices into FILM_TIMES), and its steps.
LAYOUTS, STEPS = (0, 4), (15, 15, 10, 10, 12, 12)
# Sampled latents in a time tile, frames for each latent, pixels along the side of a latent cell.
TILE, FRAMES, CELL = 4, 4, 8
# Scenes drawn for each one that is sampled. Half of the sampled ones are taken as they come, the others are those whose start
# latents have the largest values, as vivid or dark corners have.
DRAWN = 4
# Standard deviations beyond which a latent's value counts as large.
LOUD = 2.0
# Root mean square error of a sampled latent cell, in unit variance, at which its true pixels have the weight 1/e.
NEAR = 0.3
# Weight of the frames that the decoder made before this stage, where the true ones do not count; they are used only if
# their first frame lost fewer dB than BROKEN (`below`).
BEFORE, BROKEN = 0.3, 1.0
# Weights in the loss: the first frame, and all others together.
FIRST, OTHERS = 2.0, 0.3
# The chance to draw a section grows with the dB that its first frame lost, plus FLOOR; losses above MOST count as MOST.
FLOOR, MOST = 0.3, 15.0
# Clips encoded or decoded at a time, which bounds the memory.
PART = 32
# Limits of the time in which the pool is first filled: a share of the run's time, and seconds.
SHARE, LONGEST = 0.1, 40.0


@dataclass(frozen=True)
class Sizes:
    """Hold the sizes of the pool.

    pool: sections kept. chunk: sections made at a time. batch: sections of a training step. side: of their frames, in pixels.
    watched: sections of each sort that are only measured, never trained on.
    """

    pool: int = 3072
    chunk: int = 128
    batch: int = 4
    side: int = 128
    watched: int = 32


@dataclass(frozen=True)
class Sections:
    """Hold the first sections of B films as training data.

    latents: (B, 16, 5, h, w), unscaled; the first one is the start picture's own. target: (B, 3, 17, H, W) in -1..1, whose
    first frame is the true one. weight: (B, 1, 4, h, w), of the other frames' targets. alone: (B,) mean square error of the
    start picture's latent when the decoder before this stage decodes it alone. lost: (B,) dB by which the first frame is worse.
    """

    latents: Tensor
    target: Tensor
    weight: Tensor
    alone: Tensor
    lost: Tensor


def below(error: Tensor, alone: Tensor) -> Tensor:
    """Return by how many dB (0 to MOST) mean square errors are worse than those of pictures decoded alone, (B,)."""
    lost = 10 * torch.log10(error.clamp_min(1e-9) / alone.clamp_min(1e-9))
    return torch.nan_to_num(lost, MOST, MOST, 0.0).clamp(0, MOST)


def first_errors(made: Tensor, true: Tensor) -> Tensor:
    """Return the mean square errors (B,) of the first frames of clips (B, 3, T, H, W), or of pictures (B, 3, H, W)."""
    a, b = (x[:, :, 0] if x.ndim == 5 else x for x in (made, true))
    return (a.detach().float().clamp(-1, 1) - b.float()).square().flatten(1).mean(1)


class SampledPool:
    """Keep sampled first sections of training scenes on the device, and replace those that the decoder has learned.

    A section is drawn the more often, the worse its first frame was when the decoder last decoded it.
    """

    def __init__(self, session: Session, folder: Path, pictures: Tensor, sizes: Sizes):
        device, dtype, side = session.device, session.dtype, sizes.side
        self.session, self.pictures, self.sizes = session, pictures, sizes
        self.net = new_transformer()
        load_into(self.net, folder / "transformer" / WEIGHTS_FILE)
        self.net.to(device, dtype).requires_grad_(False)
        self.encoder = load_vae(folder, session)
        # The decoder before this stage, in the session's type: activations in training may exceed float16.
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
        # -1 marks places that are still empty.
        self.lost = torch.full((sizes.pool,), -1.0, device=device)
        self.rows = torch.zeros(sizes.batch, dtype=torch.long, device=device)
        self._drawn = 0
        # One chunk of each layout that is only measured, never trained on.
        aside = [self._made(self.before) for _ in LAYOUTS]
        self.watched = self._watched(aside)

    def fill(self) -> None:
        """Make sections until the pool is full or its time is over, at least one chunk, and log how good they are."""
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
        """Put a new chunk into empty places, or else in place of the sections that `decoder`, in training, decodes best."""
        new = self._made(decoder)
        rows = self.lost.argsort()[: len(new.lost)]
        for name, value in vars(new).items():
            store = getattr(self, name)
            store[rows] = value[: len(rows)].to(store.dtype)

    def draw(self) -> None:
        """Choose the sections of the next training step at random."""
        chances = torch.where(self.lost < 0, 0.0, self.lost + FLOOR)
        self.rows.copy_(torch.multinomial(chances, self.sizes.batch, replacement=True))

    def loss(self, decoder: AutoencoderKLHunyuanVideo) -> tuple[Tensor, Tensor]:
        """Return the loss of the sections that were drawn, and their first frames' errors along the opponent axes, (3,)."""
        z, target = self.latents[self.rows], self.target[self.rows]
        weight = _over_pixels(self.weight[self.rows])
        made = passes.decode(decoder, z)
        self.lost.index_copy_(0, self.rows, below(first_errors(made, target), self.alone[self.rows]))
        first, axes = passes.loss(made[:, :, 0], target[:, :, 0], z)
        others, _ = passes.loss(made[:, :, 1:] * weight, target[:, :, 1:] * weight, z)
        return FIRST * first + OTHERS * others, axes

    @torch.no_grad()
    def figures(self, decoder: AutoencoderKLHunyuanVideo) -> dict[str, float]:
        """Measure a decoder on sections that training never uses.

        Returns the PSNR in dB of their first frames, mean and worst, and by how much it is below that of the start picture
        decoded alone by the same decoder, mean and most. "plain" are scenes as they come, "hard" those whose first frames were
        worst with the decoder before this stage.
        """
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
        # The first half of a chunk holds scenes as they come.
        half = self.sizes.chunk // 2 or 1
        plain = torch.cat([torch.arange(half) + k * self.sizes.chunk for k in range(len(aside))])
        plain = plain[:: max(1, len(plain) // count)][:count].to(lost.device)
        hard = lost.argsort(descending=True)[:count]
        return {name: (latents[rows].clone(), true[rows].clone()) for name, rows in (("plain", plain), ("hard", hard))}

    @torch.no_grad()
    def _made(self, decoder: AutoencoderKLHunyuanVideo) -> Sections:
        """Sample the next chunk of sections. decoder: decodes the first frames that `lost` is measured on."""
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
        """Make the targets and weights of sampled sections, and measure their first frames.

        own: (B, 16, 1, h, w), unscaled latents of the start pictures. film: (B, 16, 4, h, w), sampled latents. The target is
        the true clip where a sampled latent is near the true one. Elsewhere the true pixels would teach the decoder the mean of
        many possible pictures, which is a blur; there the target is what the decoder made before this stage, unless its first
        frame was broken.
        """
        scale, dtype, side = self.encoder.config.scaling_factor, self.session.dtype, self.sizes.side
        true = render(chosen, self.pictures, torch.arange(1 + TILE * FRAMES), side, side)
        truth = passes.encode(self.encoder, true.to(self.encoder.dtype))[:, :, 1:].float() * scale
        square = (film - truth).square().mean(1, keepdim=True)
        # The error of a single cell is noisy, so it is averaged over 3x3 cells.
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
    """Repeat the value of each latent cell (B, 1, T, h, w) for all pixels of the cell, (B, 1, 4 T, 8 h, 8 w)."""
    return x.repeat_interleave(FRAMES, 2).repeat_interleave(CELL, 3).repeat_interleave(CELL, 4)


def _some(scene: Scenes, rows: Tensor) -> Scenes:
    return Scenes(**{name: value[rows] for name, value in vars(scene).items()})
