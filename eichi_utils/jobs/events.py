"""What a running job reports: plain data, in order. `at` is the time of `time.monotonic()`:
seconds that no change of the clock touches, in which a computer that sleeps counts on Windows and not elsewhere."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eichi_utils.problems import Problem

# In the order of a run; "sample", "decode" and "save" repeat for every section.
STAGES = ("start", "check", "text", "vision", "encode", "load", "sample", "decode", "save")


class StopLevel(enum.IntEnum):
    """How soon to stop; a higher level overrides a lower one."""

    NONE = 0
    JOB = 1  # finish this job, drop the jobs that wait
    SECTION = 2  # finish and keep the section being sampled
    NOW = 3  # at the next step


@dataclass(frozen=True, kw_only=True)
class Event:
    """Say that something has happened, and when."""

    at: float


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """First event: the size of the whole job."""

    sections: int
    steps: int
    frames: int
    width: int
    height: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Stage(Event):
    """Work of this kind begins; `section` from 0, or None before the first."""

    name: str
    section: int | None = None


@dataclass(frozen=True, kw_only=True)
class Notice(Event):
    """Something the user should know; key below `notice.` in the locales."""

    key: str
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Step(Event):
    """A denoising step is done. section, step: from 0. preview: an animated WebP of the latents, or None. computed: False where
    the step cache took the place of the network."""

    section: int
    step: int
    preview: bytes | None = None
    computed: bool = True


@dataclass(frozen=True, kw_only=True)
class DecodeProgress(Event):
    """So much of the stage in hand is done: 0 to 1."""

    done: float


@dataclass(frozen=True, kw_only=True)
class Saved(Event):
    """A file is complete on disk. kind: "start", "so_far" (the film up to now), "film", "joined" (the film with what is
    appended to it), "picture", "still", "frames" (folder), "latents".

    replaces: the path of a file of this job that was deleted for it.
    """

    path: str
    kind: str
    section: int | None = None
    frames: int = 0
    replaces: str = ""


@dataclass(frozen=True, kw_only=True)
class Ended(Event):
    """The last event of a job is exactly one of the three kinds below. files: what exists, the result first."""

    files: tuple[str, ...] = ()
    frames: int = 0
    took: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Finished(Ended):
    """Say that all that was asked for is made."""


@dataclass(frozen=True, kw_only=True)
class Stopped(Ended):
    """Say that somebody ended the job before it was done. level: how soon it was to end."""

    level: StopLevel = StopLevel.NOW


@dataclass(frozen=True, kw_only=True)
class Failed(Ended):
    """Say that the job could not go on, and why."""

    problems: tuple[Problem, ...] = ()
