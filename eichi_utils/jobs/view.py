"""Fold a job's events into a view, so that an observer who comes late and sees only the newest view has missed nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from diffusers_helper.vae.frames import FPS
from eichi_utils.jobs.events import (
    STAGES,
    DecodeProgress,
    Ended,
    Event,
    Failed,
    Finished,
    Notice,
    Saved,
    Stage,
    Started,
    Step,
    StopLevel,
    Stopped,
)
from eichi_utils.problems import Problem

# Assumed shares of time, which only the progress bar uses; the time left is measured. Everything before the first step, of the
# whole job; sampling, of a section; and decoding, of the rest of a section (decoding and saving).
PREPARATION = 0.04
SAMPLING = 0.85
DECODING = 0.95


@dataclass(frozen=True)
class View:
    """Hold what an observer sees of a job after some of its events.

    stage: name of the current one, "" before the first and after the end. section: the current one, from 0, of `sections`.
    made: sections that are in the result on the disk. step: finished steps of the current section, of `steps`. share: done part
    of the current stage, 0 to 1, if its events tell. all_steps, computed_steps: steps of the whole job so far, and those that
    the step cache did not replace. fraction: done part of the whole job, 0 to 1; it never falls. frames: of the result on the
    disk. started, now, sampling_since, section_since: times as events' `at` of the job's start, its newest event, its first
    sampling and the current section's. preview: an animated WebP. film, picture: path of the result, or "". files: what exists,
    the result first. stopping: the level at which the job was told to stop.
    """

    state: Literal["waiting", "running", "finished", "stopped", "failed"] = "waiting"
    stage: str = ""
    sections: int = 0
    section: int = 0
    made: int = 0
    steps: int = 0
    step: int = 0
    share: float = 0.0
    all_steps: int = 0
    computed_steps: int = 0
    fraction: float = 0.0
    frames: int = 0
    width: int = 0
    height: int = 0
    seed: int = -1
    started: float = 0.0
    now: float = 0.0
    sampling_since: float | None = None
    section_since: float | None = None
    preview: bytes | None = None
    film: str = ""
    picture: str = ""
    files: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()
    problems: tuple[Problem, ...] = ()
    stopping: StopLevel = StopLevel.NONE

    @property
    def ended(self) -> bool:
        """Tell whether the job has finished, was stopped or has failed."""
        return self.state in ("finished", "stopped", "failed")

    @property
    def elapsed(self) -> float:
        """Return the seconds from the job's start to its newest event."""
        return self.now - self.started

    @property
    def seconds_left(self) -> float | None:
        """Estimate the seconds from the newest event to the end: by whole sections once there are any, by steps before.

        None before the first step, while the first section is decoded, and after the end.
        """
        if self.ended or self.sampling_since is None:
            return None
        if self.section and self.section_since is not None:
            pace = (self.section_since - self.sampling_since) / self.section
            return max(0.0, pace * (self.sections - self.section) - (self.now - self.section_since))
        if self.stage != "sample" or not self.step:
            return None
        pace = (self.now - self.sampling_since) / self.step
        return pace * self.steps / SAMPLING * self.sections - (self.now - self.sampling_since)

    @property
    def film_seconds(self) -> float:
        """Return the playing time in seconds of the result that is on the disk."""
        return self.frames / FPS

    def after(self, event: Event) -> View:
        """Return the view after one more event."""
        view = replace(self, now=event.at)
        match event:
            case Started():
                view = replace(
                    view,
                    state="running",
                    started=self.started or event.at,
                    sections=event.sections,
                    steps=event.steps,
                    width=event.width,
                    height=event.height,
                    seed=event.seed,
                )
            case Stage():
                view = view._at_stage(event)
            case Step():
                view = replace(
                    view,
                    section=event.section,
                    step=event.step + 1,
                    all_steps=self.all_steps + 1,
                    computed_steps=self.computed_steps + event.computed,
                    preview=event.preview or self.preview,
                )
            case DecodeProgress():
                view = replace(view, share=event.done)
            case Saved():
                view = view._with_file(event)
            case Notice():
                view = replace(view, notices=(*self.notices, event))
            case Ended():
                view = view._ended(event)
        return replace(view, fraction=max(self.fraction, view._fraction()))

    def _at_stage(self, event: Stage) -> View:
        section = self.section if event.section is None else event.section
        if event.name != "sample":
            return replace(self, stage=event.name, section=section, share=0.0)
        since = event.at if self.sampling_since is None else self.sampling_since
        return replace(self, stage="sample", section=section, step=0, share=0.0, sampling_since=since, section_since=event.at)

    def _with_file(self, event: Saved) -> View:
        film = event.path if event.kind in ("so_far", "film", "joined") else self.film
        picture = event.path if event.kind == "picture" else self.picture
        others = tuple(path for path in self.files if path not in (event.replaces, event.path))
        made = self.made
        if event.kind in ("so_far", "film", "joined", "picture") and event.section is not None:
            made = max(made, event.section + 1)
        files = (event.path, *others) if event.kind in ("so_far", "film", "joined", "picture") else (*others, event.path)
        return replace(self, film=film, picture=picture, made=made, frames=event.frames or self.frames, files=files)

    def _ended(self, event: Ended) -> View:
        states = {Finished: "finished", Stopped: "stopped", Failed: "failed"}
        problems = event.problems if isinstance(event, Failed) else ()
        ended = replace(self, state=states[type(event)], stage="", files=event.files, problems=problems, preview=None)
        return replace(ended, started=self.started or event.at)

    def _fraction(self) -> float:
        if self.ended:
            return 1.0 if self.state == "finished" else 0.0
        if not self.sections or self.sampling_since is None:
            before = STAGES[: STAGES.index("sample")]
            return PREPARATION * before.index(self.stage) / len(before) if self.stage in before else 0.0
        if self.stage == "sample":
            within = SAMPLING * self.step / self.steps
        else:
            decoded = self.share if self.stage == "decode" else 1.0
            within = SAMPLING + (1.0 - SAMPLING) * DECODING * decoded
        return PREPARATION + (1.0 - PREPARATION) * (self.section + within) / self.sections
