"""Sample and decode the sections of any plan, from conditions to latents and pixels; nothing here reads files or encodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffusers_helper.models.linear import strengths
from diffusers_helper.models.step_cache import FirstBlockCache, StepCache, TeaCache
from diffusers_helper.models.transformer import Clean, JobTables, PackedTransformer
from diffusers_helper.sampling import guide, noise_like, noised, schedule, unipc
from diffusers_helper.vae.causal_cache import CausalCache
from diffusers_helper.vae.frames import frames_of
from diffusers_helper.vae.latents import SPATIAL, decode_after, decode_frames, rounded_on_host
from diffusers_helper.vae.vae_decode import TileCache
from eichi_utils.exchange.latent_files import LatentClip, interpolate, put_together
from eichi_utils.jobs.events import DecodeProgress, Event, Stage, Step, StopLevel
from eichi_utils.models.requirements import step_tokens
from eichi_utils.render.conditions import Conditions
from eichi_utils.render.history import History, OverlapBlend
from eichi_utils.render.previews import with_previews
from eichi_utils.requests.loras import Lora
from eichi_utils.requests.plan import Append, Plan, Ref, Section
from eichi_utils.requests.request import Request

if TYPE_CHECKING:
    from eichi_utils.jobs.queue import Stop
    from eichi_utils.models.pool import ModelPool

# Prompts whose tables are kept: one's are 56 MB at full size; a section needs at most two, its neighbours often the same.
KEPT_TABLES = 4


@dataclass(frozen=True)
class Decoded:
    """Hold a section in pixels and latents.

    final: frames that nothing changes any more, (1, 3, frames, H, W), as `finish` returned them. open: frames at the growing
    edge that the next section blends with its own, (1, 3, frames, H, W), in about -1..1. latents: the section's own, (1, 16, T,
    h, w). film: latents of the film so far, in the order of playing.
    """

    section: int
    latents: Tensor
    final: Tensor
    open: Tensor
    film: Tensor


@dataclass(frozen=True)
class FramesBatch:
    """Hold the next final frames (1, 3, frames, H, W) of the film that is joined to an earlier one, in the order of playing."""

    final: Tensor


@dataclass(frozen=True)
class Joined:
    """Hold the joined film's latents; it follows the last FramesBatch."""

    clip: LatentClip


def sample_film(
    request: Request,
    plan: Plan,
    conditions: Conditions,
    pool: ModelPool,
    stop: Stop,
    finish: Callable[[Tensor], Tensor] = rounded_on_host,
) -> Generator[Event | Decoded | FramesBatch | Joined, None, None]:
    """Sample and decode a plan's sections one after another, and then join the film to the one it appends.

    Yields events, one Decoded for each section, and what `append_film` yields. Ends early, after the current step, when told to
    stop NOW. finish: applied to frames as soon as they are final.
    """
    sampler = SectionSampler(request, plan, conditions)
    side = None if request.vae_tile is None else request.vae_tile // SPATIAL
    decoder = SectionDecoder(plan, finish, side)
    for number, section in enumerate(plan.sections):
        latents = yield from sampler.section(section, number, pool, stop)
        if latents is None:
            return
        added = sampler.grow(latents, plan.closing if number == len(plan.sections) - 1 else None)
        yield Stage(at=time.monotonic(), name="decode", section=number)
        frames = yield from decoder.section(sampler.history, added, number, pool, stop)
        if frames is None:
            return
        yield Decoded(number, latents, *frames, sampler.history.film)
    if plan.append and stop.level < StopLevel.SECTION:
        yield from append_film(sampler, plan.append, pool, stop, finish, side)


class SectionDecoder:
    """Decode the sections of one film in order.

    With `plan.vae_cache` each latent is decoded once, after those before it. Without, the neighbouring section is decoded again
    with each section, and its two versions are blended.
    finish: applied to frames as soon as they are final. side: a tile's side in latent cells, None for whole frames where they
    fit.
    """

    def __init__(self, plan: Plan, finish: Callable[[Tensor], Tensor], side: int | None):
        self._finish, self._side = finish, side
        self._known = CausalCache() if plan.vae_cache else TileCache()
        alone = plan.vae_cache or plan.output == "picture"
        self._blend = None if alone else OverlapBlend(plan.grows, plan.section_latents, finish)
        self._overlap = 0 if plan.vae_cache else plan.section_latents

    def section(
        self, history: History, added: int, number: int, pool: ModelPool, stop: Stop
    ) -> Generator[DecodeProgress, None, tuple[Tensor, Tensor] | None]:
        """Decode a film that grew by `added` latents in section `number`.

        Returns the final and the open frames, as in `Decoded`, or None when told to stop NOW.
        """
        latents = history.film if number == 0 else history.edge(added + self._overlap)
        final: list[Tensor] = []
        if self._blend:
            self._blend.begin(frames_of(latents.shape[2]))
        with decoding(pool, latents, self._known, self._side) as parts:
            for part in parts:
                if isinstance(part, DecodeProgress):
                    yield part
                elif self._blend:
                    self._blend.add(part)
                else:
                    final.append(self._finish(part))
                if stop.level >= StopLevel.NOW:
                    return None
        if self._blend:
            return self._blend.end()
        frames = torch.cat(final, dim=2)
        return frames, frames[:, :, :0]


def append_film(
    sampler: SectionSampler,
    append: Append,
    pool: ModelPool,
    stop: Stop,
    finish: Callable[[Tensor], Tensor],
    side: int | None,
) -> Iterator[Event | FramesBatch | Joined]:
    """Join the sampled film to the appended latents, with sampled or interpolated latents between, and decode the whole.

    Yields events, a FramesBatch for each decoded piece, and Joined at the end; ends early when told to stop NOW.
    The whole is decoded anew because the decoder looks back: a part that was decoded alone would begin with a jump.
    Raises ValueError if the conditions have no latents to append.
    """
    number = sampler.sections
    film, appended = sampler.history.film, sampler.conditions.append
    if appended is None:
        raise ValueError("nothing was read that could be appended")
    film = film[:, :, : film.shape[2] - append.trim]
    if append.bridge:
        history = History("front", sampler.height, sampler.width)
        history.grow(appended.latents)
        sampler.turn_to(history, {"film": film[:, :, -1:]})
        between = yield from sampler.section(append.bridge, number, pool, stop)
        if between is None:
            return
    else:
        between = interpolate(film[:, :, -1:], appended.latents[:, :, :1], append.between)
    own = {"file": "", "latents": film.shape[2], "trim_start": 0, "trim_end": append.trim}
    whole = put_together(LatentClip(film, (own,)), between, appended)
    yield Stage(at=time.monotonic(), name="decode", section=number)
    known = CausalCache() if sampler.vae_cache else None
    with decoding(pool, whole.latents, known, side) as parts:
        for part in parts:
            yield part if isinstance(part, DecodeProgress) else FramesBatch(finish(part))
            if stop.level >= StopLevel.NOW:
                return
    yield Joined(whole)


@contextmanager
def decoding(
    pool: ModelPool, latents: Tensor, known: TileCache | CausalCache | None, side: int | None
) -> Iterator[Iterator[Tensor | DecodeProgress]]:
    """Provide an iterator over the decoded frames of latents and a DecodeProgress at every hundredth of the work.

    known: what earlier calls for the same film have decoded; with a `CausalCache` each latent is decoded once, after those
    before it. side: a tile's side in latent cells, or None. The VAE is given back when the block is left.
    """
    with pool.vae(latents.numel()) as vae:
        if isinstance(known, CausalCache):
            decoded = decode_after(vae, latents, known, pool.room, side)
        else:
            decoded = decode_frames(vae, latents, known, pool.room, side)
        with closing(decoded) as parts:
            yield by_hundredths(parts)


def by_hundredths(parts: Iterator[Tensor | float]) -> Iterator[Tensor | DecodeProgress]:
    """Yield the frames on, and the shares of the work between them (0 to 1) as DecodeProgress, at most one for a hundredth."""
    told = 0.0
    for part in parts:
        if isinstance(part, Tensor):
            yield part
        elif part >= told + 0.01:
            told = part
            yield DecodeProgress(at=time.monotonic(), done=part)


class SectionSampler:
    """Sample the sections of one film in order.

    The noise of all sections comes from one generator on the CPU, so that a seed means the same film on every card.
    """

    def __init__(self, request: Request, plan: Plan, conditions: Conditions):
        self.request, self.conditions, self.sections = request, conditions, len(plan.sections)
        self._checkpoint, self.vae_cache = plan.checkpoint, plan.vae_cache
        self.height, self.width = next(iter(conditions.latents.values())).shape[-2:]
        self.generator = torch.Generator("cpu").manual_seed(request.seed)
        self.history = History(plan.grows, self.height, self.width)
        if plan.opening:
            opening = self.history.read(plan.opening, conditions.latents, conditions.masks)
            self.history.grow(opening, shown=plan.opening_shown)
        self._kept: dict[tuple, JobTables] = {}

    def grow(self, latents: Tensor, closing: Ref | None) -> int:
        """Join a section's latents to the growing edge, and the closing latent if there is one; return how many were joined."""
        self.history.grow(latents)
        if closing is None:
            return latents.shape[2]
        self.history.grow(self.history.read(closing, self.conditions.latents, self.conditions.masks))
        return latents.shape[2] + 1

    def turn_to(self, history: History, pictures: Mapping[str, Tensor]) -> None:
        """Replace the history that sections look at, and add pictures (latents by name) that they may refer to."""
        self.history = history
        self.conditions = replace(self.conditions, latents={**self.conditions.latents, **pictures})

    def section(self, section: Section, number: int, pool: ModelPool, stop: Stop) -> Generator[Event, None, Tensor | None]:
        """Sample section `number` and yield its Stage and Step events.

        Returns the latents (1, 16, T, h, w) on the CPU, or None when told to stop NOW.
        """
        yield Stage(at=time.monotonic(), name="sample", section=number)
        request, matrix = self.request, pool.files.describe().preview
        loras = section_loras(request, section)
        tokens = step_tokens(section, self.height, self.width)
        with pool.transformer(self._checkpoint, request.precision, loras, request.merge_loras, tokens) as net:
            caches = step_cache(request), step_cache(request)
            done = None
            with closing(with_previews(self.sample(net, section, caches), matrix, net.device, pool.card)) as steps:
                for done in steps:
                    computed = caches[0] is None or done.step in caches[0].computed
                    yield Step(at=time.monotonic(), section=number, step=done.step, preview=done.preview, computed=computed)
                    if stop.level >= StopLevel.NOW:
                        return None
        return None if done is None else done.latents.cpu()

    def sample(
        self, net: PackedTransformer, section: Section, caches: tuple[StepCache | None, StepCache | None]
    ) -> Iterator[tuple[int, Tensor]]:
        """Sample a section and yield (step, x0) after each step.

        x0: the estimate of the clean latents, (1, 16, T, h, w) float32 on the network's device; the last one is the section.
        caches: step caches for the pass with the prompt and the one with the negative prompt; each serves this section only.
        """
        request = self.request
        tokens = len(section.frames) * self.height * self.width // 4
        sigmas = schedule(request.steps, tokens, request.shift, section.strength)
        noise = noise_like((1, net.config.in_channels, len(section.frames), self.height, self.width), self.generator)
        if section.strength < 1.0:
            noise = noised(self.conditions.latents[section.initial], noise, sigmas[0])
        around = net.prepare_section(
            section.frames,
            self.height,
            self.width,
            self._clean(*section.clean),
            self._clean(section.clean_2x) if section.clean_2x else None,
            self._clean(section.clean_4x) if section.clean_4x else None,
        )
        levels = tuple(sigmas[:-1])
        positive = self._tables(net, section, section.prompt, levels)
        negative = self._tables(net, section, None, levels) if self.conditions.negative else None

        def denoise(x: Tensor, step: int) -> Tensor:
            velocity = net.step(x, step, positive, around, caches[0])
            if negative is not None:
                other = net.step(x, step, negative, around, caches[1])
                velocity = guide(velocity, other, request.cfg_scale, request.guidance_rescale)
            # The reference implementation subtracts from x as the network saw it, rounded to its dtype.
            return x.to(net.dtype).float() - sigmas[step] * velocity

        yield from unipc(denoise, noise.to(net.device), sigmas)

    def _clean(self, *refs: Ref) -> Clean:
        read = [self.history.read(ref, self.conditions.latents, self.conditions.masks) for ref in refs]
        return Clean(torch.cat(read, dim=2), [time for ref in refs for time in ref.at])

    def _tables(self, net: PackedTransformer, section: Section, prompt: str | None, levels: tuple[float, ...]) -> JobTables:
        """Return a prompt's tables, kept for the same noise levels, LoRA and strengths, which change the tables too."""
        key = prompt, levels, section.lora_strengths, net.execution.branches, strengths(net)
        tables = self._kept.pop(key, None) or self._make_tables(net, prompt, levels)
        # Inserting at the end keeps the dictionary in the order of use.
        self._kept[key] = tables
        if len(self._kept) > KEPT_TABLES:
            del self._kept[next(iter(self._kept))]
        return tables

    def _make_tables(self, net: PackedTransformer, prompt: str | None, levels: tuple[float, ...]) -> JobTables:
        """Make the tables of a prompt of the plan, or of the negative prompt (None)."""
        embedding = self.conditions.negative if prompt is None else self.conditions.prompts[prompt]
        if embedding is None:
            raise ValueError("there is no negative prompt")
        image, guidance = self.conditions.image, self.request.guidance_scale
        return net.prepare_job(embedding.tokens, embedding.pooled, image, guidance, levels)


def section_loras(request: Request, section: Section) -> tuple[Lora, ...]:
    """Return the request's LoRA with the strengths that the section has for them."""
    if section.lora_strengths is None:
        return request.loras
    return tuple(replace(lora, strength=strength) for lora, strength in zip(request.loras, section.lora_strengths, strict=True))


def step_cache(request: Request) -> StepCache | None:
    """Return a new step cache of the request's kind, or None if every step is to be computed."""
    if request.step_cache == "none":
        return None
    kind = {"teacache": TeaCache, "first_block": FirstBlockCache}[request.step_cache]
    return kind(request.cache_threshold, request.steps)
