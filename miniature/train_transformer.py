"""Train the transformer by flow matching: one network for all kinds of sections, on a curriculum of clips."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor

from diffusers_helper.models.compiled import EAGER, Passes, compiled
from diffusers_helper.models.transformer import PackedTransformer
from miniature import vae as passes
from miniature.batched import FILM_TIMES, HISTORY, LONGEST, Inputs, rope_table, single_times, velocity
from miniature.captions import trained_captions
from miniature.clips import HELD_OUT
from miniature.lessons import STAGES, Lesson, Pool
from miniature.networks import TRANSFORMER, by_muon, caption_bank, load_text, load_vision, new_transformer
from miniature.noise import mixed
from miniature.optimizer import FlatParameters, Optimizer
from miniature.pictures import bank
from miniature.probe import probe
from miniature.training import LOOK, Session, Stepper, cosine, load_into, save_half

Shape = tuple[int, int, int]
# Golden ratio: the fractional parts of its multiples are spread evenly over 0..1.
GOLDEN = 0.61803
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
# Share of the films that have an end picture.
END_SHARE = 0.35
# Largest noise level that is mixed into sampled history latents.
HISTORY_NOISE = 0.25


class Course:
    """Compute the losses of film sections and single pictures over a pool of clips.

    Every tensor that they read keeps its address, as replayed CUDA graphs need.
    """

    def __init__(self, net: PackedTransformer, pool: Pool, lesson: Lesson, batch: int, passes: Passes):
        self.net, self.pool, self.batch, self.passes = net, pool, batch, passes
        self.sections, self.early = lesson.sections, lesson.early
        device = pool.latents.device
        h, w = pool.latents.shape[-2:]
        self.films = torch.stack([rope_table(times, h, w, net.config, device) for times in FILM_TIMES])
        # In the memory layout of `films`: with another one the blocks would be compiled again.
        self.single = rope_table(single_times(), h, w, net.config, device)[:, None].repeat(1, batch, 1, 1, 1)
        self.rows = torch.zeros(batch, dtype=torch.long, device=device)
        self.shift = torch.zeros(2, device=device)

    def set(self, rows: Tensor, lesson: Lesson) -> None:
        """Copy the next batch to where the captured passes read it. rows: (batch,) places of the clips in the pool."""
        self.rows.copy_(rows)
        self.shift.copy_(torch.tensor([math.log(value) for value in lesson.shift]))

    def film(self, length: int) -> tuple[Tensor, Tensor]:
        """Return the loss of one section of each clip, and the mean losses of reverse and of forward sections, (2,).

        length: number of tokens of all captions in the batch.
        """
        pool, rows, b, s = self.pool, self.rows, self.batch, self.sections
        latents, ends = pool.latents[rows], pool.ends[rows]
        device = rows.device
        chance = torch.rand(5, b, device=device)
        # The first sections are drawn more often: every film has them.
        reverse, number = chance[3] < 0.5, (s * chance[4] ** self.early).long().clamp_max(s - 1)
        # For some samples the film ends with this section, although the clip goes on.
        cut = reverse & (chance[0] < 0.5)
        with_end = (chance[1] < END_SHARE).to(latents.dtype).view(b, 1, 1, 1, 1)
        zeros = torch.zeros_like(latents[:, :, :1]).expand(-1, -1, HISTORY, -1, -1)
        line = torch.cat([zeros, latents, ends[:, :, -1:] * with_end, zeros], dim=2).transpose(1, 2)
        own_end = ends.transpose(1, 2)[torch.arange(b, device=device), number][:, None] * with_end
        first = HISTORY + 1 + 9 * number
        steps = torch.arange(16, device=device)
        near = torch.where(reverse, first + 9, first - 1)[:, None]
        two = torch.where(reverse, first + 10, first - 3)[:, None] + steps[:2]
        four = torch.where(reverse, first + 12, first - 19)[:, None] + steps
        where = torch.cat([four, two, near], dim=1)
        history = _taken(line, where)
        alone = torch.cat([torch.zeros_like(history[:, 1:]), own_end], dim=1)
        history = torch.where(cut.view(b, 1, 1, 1, 1), alone, history)
        # Only sampled history gets noise: the user's own pictures are exact.
        sampled = (where > HISTORY) & (where < HISTORY + 1 + 9 * s) & ~cut[:, None]
        level = sampled * (chance[2] < 0.6)[:, None] * torch.rand(b, 1, device=device) * HISTORY_NOISE
        history = history + level.view(b, -1, 1, 1, 1).to(history.dtype) * torch.randn_like(history)
        history = history.transpose(1, 2)
        target = _taken(line, first[:, None] + torch.arange(9, device=device)).transpose(1, 2)
        clean = torch.cat([latents[:, :, :1], history[:, :, 18:]], dim=2)
        rope = self.films[torch.where(reverse, number, LONGEST)].transpose(0, 1).contiguous()
        errors = self._errors(target, clean, history[:, :, 16:18], history[:, :, :16], rope, length)
        parts = torch.stack([reverse, ~reverse]).float()
        figures = (errors * parts).sum(1) / parts.sum(1).clamp_min(1)
        return errors.mean(), figures.detach()

    def picture(self, length: int) -> tuple[Tensor, Tensor]:
        """Return the loss of the one-frame mode, whose target is the first section's last frame, and the same twice, (2,)."""
        pool, rows = self.pool, self.rows
        start = pool.latents[rows][:, :, :1]
        clean = torch.cat([start, torch.zeros_like(start)], dim=2)
        zeros = torch.zeros_like(start).expand(-1, -1, 16, -1, -1)
        loss = self._errors(pool.ends[rows][:, :, :1], clean, zeros[:, :, :2], zeros, self.single, length).mean()
        return loss, loss.detach().expand(2)

    def _errors(self, target: Tensor, clean: Tensor, two: Tensor, four: Tensor, rope: Tensor, length: int) -> Tensor:
        """Return the mean square error of the predicted velocity for each sample, (B,), at random noise levels."""
        b, device = len(target), target.device
        factor = torch.exp(self.shift[0] + torch.rand(b, device=device) * (self.shift[1] - self.shift[0]))
        time = torch.rand(b, device=device)
        sigma = factor * time / (1 + (factor - 1) * time)
        noise = torch.randn(target.shape, device=device)
        level = sigma.view(b, 1, 1, 1, 1)
        noisy = target * (1 - level) + noise * level
        bank, row = self.pool.captions, self.pool.row[self.rows]
        inputs = Inputs(
            noisy=noisy.to(target.dtype),
            clean=clean,
            two=two,
            four=four,
            rope=rope,
            sigma=sigma,
            guidance=torch.rand(b, device=device) * 14000 + 1000,
            text=bank.tokens[length][row],
            pooled=bank.pooled[length][row],
            image=self.pool.image[self.rows],
        )
        return (velocity(self.net, inputs, self.passes) - (noise - target)).square().flatten(1).mean(1)


def _taken(line: Tensor, where: Tensor) -> Tensor:
    """Return the items (B, n, ...) of `line` (B, T, ...) at the indices `where` (B, n)."""
    return line[torch.arange(len(line), device=line.device)[:, None], where]


def train(
    folder: Path,
    session: Session,
    resume: bool,
    peak: float,
    last: float = 0.01,
    stage: str = "a",
    pictures: int = 2048,
    detail: int = 256,
    batch: int = 64,
    chunk: int = 16,
    reuse: int = 24,
    probes: int = 16,
) -> None:
    """Train the transformer and write `transformer/` below `folder`, which has the VAE and the encoders.

    resume: begin with the saved weights. peak, last: highest learning rate, and its share that is left at the end. pictures,
    detail: number and side of the background pictures. batch: clips of a step at 128x128. chunk: clips encoded at a time.
    reuse: steps for each new chunk. probes: scenes of each kind in a probe.
    """
    device = session.device
    weights = folder / "transformer" / WEIGHTS_FILE
    torch.manual_seed(0)
    net = new_transformer()
    if resume:
        load_into(net, weights)
    net.to(device)
    flat = FlatParameters(net, session.dtype)
    optimizer = Optimizer(flat, by_muon, ema=0.999)
    stepper = Stepper(session, flat, optimizer)
    torch.manual_seed(session.rank + 1)
    random = numpy.random.default_rng(session.rank + 1)
    vae = load_vae(folder, session)
    captions = caption_bank(load_text(folder, device), trained_captions(), device, session.dtype)
    siglip = load_vision(folder, device)
    source = bank(mixed(session.seeds(int(resume) + 7, pictures, HELD_OUT)) % HELD_OUT, detail)
    session.log(pictures=len(source), lengths=sorted(captions.tokens), parameters=sum(p.numel() for p in net.parameters()))

    def watch(lesson: Lesson) -> None:
        flat.compute.copy_(optimizer.ema)
        if session.rank == 0:
            session.log(**probe(net, vae, siglip, captions, source, lesson, probes, session.dtype))
            _save(flat.state(optimizer.ema), folder)
        flat.compute.copy_(flat.master)

    passes = compiled() if session.graphs else EAGER
    lessons: tuple[Lesson, ...] = ()
    pools: dict[Shape, Pool] = {}
    courses: dict[Shape, Course] = {}
    sums, counts = torch.zeros(3, device=device), Counter[Shape]()
    while session.running():
        chosen = next((each for until, each in STAGES[stage] if session.progress < until), STAGES[stage][-1][1])
        if chosen is not lessons:
            if lessons:
                watch(lessons[0])
            if {_shape(lesson) for lesson in chosen} != set(pools):
                stepper.clear()
                pools.clear()
                courses.clear()
                for lesson in chosen:
                    pool = Pool(session, vae, siglip, source, captions, lesson, chunk)
                    pools[_shape(lesson)] = pool
                    courses[_shape(lesson)] = Course(net, pool, lesson, lesson.batch(batch), passes)
            lessons = chosen
            counts.clear()
            session.log(shapes=[_shape(lesson) for lesson in lessons])
        optimizer.rate.fill_(cosine(session.progress, peak, last))
        # All ranks take the same kind of step: a rank with a shorter one would wait for the others.
        lesson = min(lessons, key=lambda lesson: (counts[_shape(lesson)] + 1) / lesson.share)
        shape = _shape(lesson)
        single = (counts[shape] * GOLDEN) % 1 < lesson.single
        counts[shape] += 1
        pool, course = pools[shape], courses[shape]
        length, rows = pool.draw(random, course.batch)
        course.set(rows, lesson)
        name = f"{shape}/{'picture' if single else 'film'}/{length}"
        if not stepper.has(name):
            stepper.add(name, _bound(course.picture if single else course.film, length))
        loss, figures = stepper.run(name)
        if not single:
            sums += torch.cat([torch.stack([loss, torch.ones_like(loss)]), figures[:1]])
        if counts[shape] % reuse == 0:
            pool.refresh(lesson)
        if session.steps % (10 * LOOK) == 0 or (device.type == "cpu" and session.steps % 5 == 0):
            total, number, reverse = sums.tolist()
            mean = {"loss": total / max(1, number), "reverse": reverse / max(1, number)}
            session.log(**mean, rate=optimizer.rate.item(), skipped=int(optimizer.skipped))
            sums.zero_()
            if session.steps % (100 * LOOK) == 0 and session.rank == 0:
                _save(flat.state(optimizer.ema), folder)
    if lessons:
        watch(lessons[0])


def _shape(lesson: Lesson) -> Shape:
    return lesson.sections, lesson.height, lesson.width


def _bound(function: Callable[[int], tuple[Tensor, Tensor]], length: int) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: function(length)


def load_vae(folder: Path, session: Session) -> AutoencoderKLHunyuanVideo:
    """Load the VAE for use without training.

    It is in float16 on a card, which keeps three bits more of the latents than bfloat16, and in float32 on a CPU.
    """
    vae = AutoencoderKLHunyuanVideo(**passes.VAE_CONFIG)
    load_into(vae, folder / "vae" / WEIGHTS_FILE)
    dtype = torch.float16 if session.device.type == "cuda" else torch.float32
    return vae.to(session.device, dtype).eval().requires_grad_(False)


def _save(state: dict[str, Tensor], folder: Path) -> None:
    save_half(state, folder / "transformer" / WEIGHTS_FILE, torch.bfloat16)
    (folder / "transformer" / "config.json").write_text(json.dumps(TRANSFORMER, indent=2) + "\n")
