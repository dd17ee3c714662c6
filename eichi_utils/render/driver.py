"""Carry out any plan: a generator of events that turns a request into files and never asks for the mode."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diffusers_helper.interrupt import Interrupted
from eichi_utils.exchange.metadata import png_info
from eichi_utils.exchange.video import write_png
from eichi_utils.files.paths import existing
from eichi_utils.jobs.events import Event, Finished, Notice, Saved, Stage, Started, StopLevel, Stopped
from eichi_utils.models.disk_space import disk_free, made_bytes
from eichi_utils.models.hub import Place
from eichi_utils.models.lora_fit import remarks
from eichi_utils.models.requirements import ExecutionChoice, Requirements, figures
from eichi_utils.problems import UserError
from eichi_utils.render.conditions import Conditions, Pictures, fit_pictures, profile_problems
from eichi_utils.render.encoding import encode_conditions
from eichi_utils.render.film_files import FilmFiles
from eichi_utils.render.joined_film import JoinedFilm
from eichi_utils.render.section_loop import Decoded, FramesBatch, Joined, sample_film
from eichi_utils.requests.append import whole_frames
from eichi_utils.requests.plan import Plan
from eichi_utils.requests.request import Request

if TYPE_CHECKING:
    from eichi_utils.files.paths import Outputs
    from eichi_utils.jobs.queue import Stop
    from eichi_utils.models.pool import ModelPool


def run(request: Request, plan: Plan, pool: ModelPool, outputs: Outputs, stop: Stop) -> Generator[Event, None, None]:
    """Run a whole job and yield its events, of which the last is Finished or Stopped.

    request: its seed must be drawn already (not -1). pool: lends the networks. outputs: names the files. stop: how soon to end.
    At every event the files written so far are complete; they record the precision that was chosen for "auto".
    Errors are raised, those that the user can correct as UserError.
    """
    job = JobRun(request, plan, pool, outputs, stop)
    with pool.interruptible(job.tick):
        yield from job.events()


class JobRun:
    """Hold one job while it runs. `events` is the whole course in order; every other method is a step of it."""

    def __init__(self, request: Request, plan: Plan, pool: ModelPool, outputs: Outputs, stop: Stop):
        self.request, self.plan, self.pool, self.outputs, self.stop = request, plan, pool, outputs, stop
        self._began = time.monotonic()
        # Frames of the result that are on the disk, the start picture's file, and what writes the others, the result's first.
        self._frames = 0
        self._start: list[str] = []
        self._writers: tuple[JoinedFilm | FilmFiles, ...] = ()

    def tick(self) -> None:
        """Raise Interrupted if the job was told to stop NOW."""
        if self.stop.level >= StopLevel.NOW:
            raise Interrupted

    def events(self) -> Iterator[Event]:
        """Carry out the request from the checks to the last file, and yield what happens."""
        yield Stage(at=self._began, name="check")
        needed = self._requirements()
        notices = [*self._lora_notices(), *self._picture_notices()]
        pictures = fit_pictures(self.plan, self.request.size)
        self.outputs.prepare(made_bytes(self.request, self.plan, pictures.height, pictures.width))
        yield self._started(pictures)
        yield from [*notices, *self._notices(needed)]
        with suppress(Interrupted):
            yield from self._download(needed.missing)
            # Before the download only the published model's figures were known; the files themselves decide.
            self._decide(self.pool.requirements(self.request, self.plan) if needed.missing else needed)
            conditions = yield from self._encode(pictures)
            yield self._write_start(pictures)
            yield from self._write_film(conditions)
        yield self._ending()

    def _requirements(self) -> Requirements:
        """Check the request's fields, the model's files and this machine, and return what the job needs.

        Nothing is downloaded or loaded before. Raises UserError.
        """
        if problems := self.request.check():
            raise UserError(problems)
        return self.pool.requirements(self.request, self.plan)

    def _lora_notices(self) -> Iterator[Notice]:
        """Yield notices about what is left out of the LoRA files."""
        for remark in remarks(self.request.loras, self.pool.files, self.plan.checkpoint):
            yield _notice(remark.key, **remark.values)

    def _picture_notices(self) -> Iterator[Notice]:
        """Yield notices about pictures whose colour profiles cannot be used."""
        for problem in profile_problems(self.plan):
            yield _notice("picture_profile", **problem.values)

    def _started(self, pictures: Pictures) -> Started:
        return Started(
            at=time.monotonic(),
            sections=self.plan.parts,
            steps=self.request.steps,
            frames=result_frames(self.plan),
            width=pictures.width,
            height=pictures.height,
            seed=self.request.seed,
        )

    def _notices(self, needed: Requirements) -> Iterator[Notice]:
        """Yield notices about what the user may not expect of this request, and about the memory and disk it needs."""
        if self.request.merge_loras and len({section.lora_strengths for section in self.plan.sections}) > 1:
            yield _notice("lora_merged_again")
        for name in self.request.idle():
            yield _notice("no_effect", name=name)
        if self.pool.files.shares_transformer(self.plan.checkpoint):
            yield _notice("transformer_shared", folder=str(self.pool.files.models))
        yield _needs(needed.choice, self.pool, figures(needed, disk_free(self.outputs.folder)))

    def _download(self, missing: Sequence[Place]) -> Iterator[Notice]:
        """Download the model's missing components; raises Interrupted when told to stop NOW."""
        for place in missing:
            yield _notice("downloading", repository=place.repository, folder=place.folder)
            if not self.pool.files.download(place, lambda: self.stop.level < StopLevel.NOW):
                raise Interrupted

    def _decide(self, needed: Requirements) -> None:
        """Fix how the job runs: the pool keeps networks, and files record the precision, as was chosen."""
        self.pool.follow_choice(needed.choice)
        self.request = replace(self.request, precision=needed.choice.precision)

    def _encode(self, pictures: Pictures) -> Generator[Event, None, Conditions]:
        """Encode prompts and pictures to the conditions that are sampled from."""
        conditions: Conditions | None = None
        # A generator that is left early is closed here, so that it gives back the networks it was lent.
        with closing(encode_conditions(self.request, self.plan, pictures, self.pool)) as events:
            for event in events:
                self.tick()
                if isinstance(event, Conditions):
                    conditions = event
                else:
                    yield event
        if conditions is None:
            raise RuntimeError("encoding ended without a result")
        return conditions

    def _write_start(self, pictures: Pictures) -> Saved:
        """Write the start picture, scaled and cropped to the film's size, as the job's first file."""
        path = self.outputs.path(".png" if self.plan.output == "film" else "_input.png")
        write_png(path, pictures.start, png_info(self.request))
        self._start = [str(path)]
        return Saved(at=time.monotonic(), path=str(path), kind="start")

    def _write_film(self, conditions: Conditions) -> Iterator[Event]:
        """Sample, decode and write the sections one after another, then the film with the appended one."""
        film, joined = FilmFiles(self.request, self.plan, self.outputs), JoinedFilm(self.request, self.outputs)
        self._writers = joined, film
        with film.writer, joined.stream:
            yield from _with_rest_of(film, self._written(conditions, film, joined))
            yield from self._counted(film.rest())

    def _written(self, conditions: Conditions, film: FilmFiles, joined: JoinedFilm) -> Iterator[Event]:
        """Write the frames as they are decoded, until all are or the job is told to stop; yield the events."""
        with (
            suppress(Interrupted),
            closing(sample_film(self.request, self.plan, conditions, self.pool, self.stop)) as events,
        ):
            for event in events:
                if isinstance(event, Decoded):
                    yield Stage(at=time.monotonic(), name="save", section=event.section)
                    yield from self._counted(film.save(event))
                elif isinstance(event, FramesBatch):
                    joined.add(event)
                elif isinstance(event, Joined):
                    yield Stage(at=time.monotonic(), name="save", section=len(self.plan.sections))
                    yield from self._counted(joined.save(event))
                else:
                    yield event
                if self.stop.level >= (StopLevel.SECTION if isinstance(event, Decoded) else StopLevel.NOW):
                    return

    def _counted(self, saved: Iterator[Saved]) -> Iterator[Saved]:
        """Yield the events on, and remember how many frames of the result are on the disk."""
        for event in saved:
            self._frames = event.frames or self._frames
            yield event

    def _ending(self) -> Finished | Stopped:
        """Return Finished if all frames of the result are on the disk, else Stopped."""
        files = existing([*(file for writer in self._writers for file in writer.files), *self._start])
        at, frames = time.monotonic(), self._frames
        done: dict[str, Any] = {"at": at, "files": files, "frames": frames, "took": at - self._began}
        return Finished(**done) if frames >= result_frames(self.plan) else Stopped(**done, level=self.stop.level)


def result_frames(plan: Plan) -> int:
    """Return how many frames a job's result has: those of the film with the appended one, or 1 for a picture."""
    return whole_frames(plan) if plan.output == "film" else 1


def _notice(key: str, **values: Any) -> Notice:
    return Notice(at=time.monotonic(), key=key, values=values)


def _needs(choice: ExecutionChoice, pool: ModelPool, values: Mapping[str, Any]) -> Notice:
    """Return the notice of what memory and disk the job needs and has, worded by how the precision was chosen."""
    if pool.card is None:
        return _notice("processor", **values)
    if not choice.chosen:
        return _notice("precision_asked", **values)
    return _notice("precision_narrow", **values) if choice.instead else _notice("precision_wide", **values)


def _with_rest_of(film: FilmFiles, events: Iterator[Event]) -> Iterator[Event]:
    """Yield the events on; if they end in an error, write the rest of the film first, as when a run is stopped.

    Hours of work may precede the error.
    """
    broken = True
    try:
        yield from events
        broken = False
    except GeneratorExit:
        # The caller closed the generator: no further events may be yielded.
        broken = False
        raise
    finally:
        if broken:
            with suppress(OSError, UserError):
                yield from film.rest()
