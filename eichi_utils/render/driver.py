"""One driver for every plan: a generator of events that turns a request into files and never asks for the mode."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from diffusers_helper.encoders.text import encode_prompt
from diffusers_helper.encoders.vision import encode_image
from diffusers_helper.interrupt import Interrupted
from diffusers_helper.vae.latents import encode_picture
from eichi_utils.exchange.latent_files import read_latents, trim
from eichi_utils.exchange.metadata import png_info
from eichi_utils.exchange.video import write_png
from eichi_utils.files.paths import existing
from eichi_utils.jobs.events import Event, Finished, Notice, Saved, Stage, Started, StopLevel, Stopped
from eichi_utils.models.disk_space import disk_free, made_bytes
from eichi_utils.models.lora_fit import remarks
from eichi_utils.models.requirements import ExecutionChoice, figures
from eichi_utils.problems import UserError
from eichi_utils.render.condition_cache import Encoded
from eichi_utils.render.conditions import Conditions, Pictures, encode_mask, fit_pictures, pixels_of, profile_problems
from eichi_utils.render.film_files import Film
from eichi_utils.render.joined_film import JoinedFilm
from eichi_utils.render.section_loop import Decoded, Joined, Stretch, sample_film
from eichi_utils.requests.append import whole_frames
from eichi_utils.requests.plan import Plan
from eichi_utils.requests.request import Request

if TYPE_CHECKING:
    from eichi_utils.files.paths import Outputs
    from eichi_utils.jobs.queue import Stop
    from eichi_utils.models.pool import ModelPool


def run(request: Request, plan: Plan, pool: ModelPool, outputs: Outputs, stop: Stop) -> Generator[Event, None, None]:
    """Do the whole job. Ends with Finished or Stopped; whatever goes wrong is raised, a user's mistake as UserError.

    The request's seed must be drawn (not -1). Files so far are complete at every event, and carry the precision that was
    chosen for "auto".
    """

    def tick() -> None:
        if stop.level >= StopLevel.NOW:
            raise Interrupted

    with pool.broken_off_by(tick):
        yield from _run(request, plan, pool, outputs, stop)


def _run(request: Request, plan: Plan, pool: ModelPool, outputs: Outputs, stop: Stop) -> Iterator[Event]:
    began = time.monotonic()
    yield Stage(at=began, name="check")
    problems = request.check() + pool.files.problems(request)
    if problems:
        raise UserError(problems)
    missing = pool.missing(plan.checkpoint)
    if not missing:
        pool.check(plan.checkpoint)
    # Before hours of downloading too; the published sizes are known.
    needed = pool.requirements(request, plan)
    said = remarks(request.loras, pool.files, plan.checkpoint)
    notices = [Notice(at=time.monotonic(), key=remark.key, values=remark.values) for remark in said]
    pictures = fit_pictures(plan, request.size)
    notices += [Notice(at=time.monotonic(), key="picture_profile", values=said.values) for said in profile_problems(plan)]
    total = result_frames(plan)
    outputs.prepare(made_bytes(request, plan, pictures.height, pictures.width))
    yield _started(request, plan, pictures, total)

    files: list[str] = []
    frames = 0

    def stopped() -> Stopped:
        return Stopped(
            at=time.monotonic(), files=existing(files), frames=frames, took=time.monotonic() - began, level=stop.level
        )

    yield from notices
    if request.merge_loras and len({section.lora_strengths for section in plan.sections}) > 1:
        yield Notice(at=time.monotonic(), key="lora_merged_again")
    for name in request.idle():
        yield Notice(at=time.monotonic(), key="no_effect", values={"name": name})
    if pool.files.shares_transformer(plan.checkpoint):
        yield Notice(at=time.monotonic(), key="transformer_shared", values={"folder": str(pool.files.models)})
    yield _needs(needed.choice, pool, figures(needed, disk_free(outputs.folder)))
    for place in missing:
        yield Notice(at=time.monotonic(), key="downloading", values={"repository": place.repository, "folder": place.folder})
        if not pool.files.download(place, lambda: stop.level < StopLevel.NOW):
            yield stopped()
            return
    if missing:
        pool.check(plan.checkpoint)
        needed = pool.requirements(request, plan)
    pool.obey(needed.choice)
    request = replace(request, precision=needed.choice.precision)

    conditions = None
    # Generators are closed where they are left: what they have on loan stays with nobody.
    with suppress(Interrupted), closing(prepare(request, plan, pictures, pool)) as events:
        for event in events:
            if stop.level >= StopLevel.NOW:
                break
            if isinstance(event, Conditions):
                conditions = event
            else:
                yield event
    if conditions is None:
        yield stopped()
        return
    start = outputs.path(".png" if plan.output == "film" else "_input.png")
    write_png(start, pictures.start, png_info(request))
    files.append(str(start))
    yield Saved(at=time.monotonic(), path=str(start), kind="start")

    film, joined, broken = Film(request, plan, outputs), JoinedFilm(request, outputs), True
    with film.writer, joined.stream:
        try:
            with suppress(Interrupted), closing(sample_film(request, plan, conditions, pool, stop)) as events:
                for event in events:
                    if isinstance(event, Decoded):
                        yield Stage(at=time.monotonic(), name="save", section=event.section)
                        for saved in film.save(event):
                            files[:-1] = film.files
                            frames = saved.frames or frames
                            yield saved
                    elif isinstance(event, Stretch):
                        joined.add(event)
                    elif isinstance(event, Joined):
                        yield Stage(at=time.monotonic(), name="save", section=len(plan.sections))
                        for saved in joined.save(event):
                            files[:-1] = [*joined.files, *film.files]
                            frames = saved.frames or frames
                            yield saved
                    else:
                        yield event
                    if stop.level >= StopLevel.NOW or (isinstance(event, Decoded) and stop.level >= StopLevel.SECTION):
                        break
            broken = False
        except GeneratorExit:
            # Nobody waits for anything any more.
            broken = False
            raise
        finally:
            # Hours of work may lie before an error; what is finished is kept as when the run is stopped.
            if broken:
                with suppress(OSError, UserError):
                    yield from film.rest()
        for saved in film.rest():
            files[:-1] = [*joined.files, *film.files]
            yield saved
    if frames < total:
        yield stopped()
    else:
        yield Finished(at=time.monotonic(), files=existing(files), frames=frames, took=time.monotonic() - began)


def result_frames(plan: Plan) -> int:
    """Frames of what the job is for: the film with what is appended to it, or one picture."""
    return whole_frames(plan) if plan.output == "film" else 1


def _started(request: Request, plan: Plan, pictures: Pictures, frames: int) -> Started:
    return Started(
        at=time.monotonic(),
        sections=plan.parts,
        steps=request.steps,
        frames=frames,
        width=pictures.width,
        height=pictures.height,
        seed=request.seed,
    )


def _needs(way: ExecutionChoice, pool: ModelPool, values: Mapping[str, Any]) -> Notice:
    """What is needed and what there is, before anything is loaded."""
    at = time.monotonic()
    if pool.card is None:
        return Notice(at=at, key="processor", values=values)
    if not way.chosen:
        return Notice(at=at, key="precision_asked", values=values)
    if way.instead:
        return Notice(at=at, key="precision_narrow", values=values)
    return Notice(at=at, key="precision_wide", values=values)


def prepare(request: Request, plan: Plan, pictures: Pictures, pool: ModelPool) -> Iterator[Event | Conditions]:
    """Encode prompts and pictures, as far as nobody did before; the last thing yielded is the Conditions."""
    kept, again = Encoded(pool), pool.room.again
    yield Stage(at=time.monotonic(), name="text")
    texts = list(dict.fromkeys((*plan.prompts, *([request.negative_prompt] if request.cfg_scale != 1.0 else ()))))
    found = {text: kept.prompt(text) for text in texts}
    if missing := [text for text in texts if found[text] is None]:
        with pool.text() as encoders:
            for text in missing:
                found[text] = kept.keep_prompt(text, again(partial(encode_prompt, encoders, text)))
                yield Stage(at=time.monotonic(), name="text")
    for embedding in found.values():
        if embedding.read < embedding.written:
            values = {"read": embedding.read, "written": embedding.written}
            yield Notice(at=time.monotonic(), key="prompt_cut", values=values)
    yield Stage(at=time.monotonic(), name="vision")
    image = kept.image(pictures.start)
    if image is None:
        with pool.vision() as encoder:
            image = kept.keep_image(pictures.start, again(partial(encode_image, encoder, pictures.start)))
    yield Stage(at=time.monotonic(), name="encode")
    latents = {name: kept.latents(picture) for name, picture in pictures.by_name.items()}
    if missing := [name for name, encoded in latents.items() if encoded is None]:
        with pool.vae(pictures.height * pictures.width) as vae:
            for name in missing:
                picture = pictures.by_name[name]
                latents[name] = kept.keep_latents(picture, again(partial(encode_picture, vae, pixels_of(picture))))
    append = None
    if plan.append:
        info, appended = read_latents(plan.append.file)
        append = trim(info, appended, plan.append.skip_start, plan.append.skip_end)
    masks = {name: encode_mask(mask) for name, mask in pictures.masks.items()}
    yield Stage(at=time.monotonic(), name="load")
    prompts = {prompt: found[prompt] for prompt in plan.prompts}
    negative = found[request.negative_prompt] if request.cfg_scale != 1.0 else None
    yield Conditions(prompts=prompts, image=image, latents=latents, masks=masks, negative=negative, append=append)
