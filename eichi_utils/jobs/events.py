"""Define the events that a running job yields in order, as plain data.

`at` is the time of `time.monotonic()`: seconds that no change of the clock touches. The time that a computer sleeps counts on
Windows and not elsewhere.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eichi_utils.problems import Problem

# Names of stages in the order of a run; "sample", "decode" and "save" repeat for every section.
STAGES = ("start", "check", "text", "vision", "encode", "load", "sample", "decode", "save")


class StopLevel(enum.IntEnum):
    """Name how soon a job shall stop; a higher level overrides a lower one."""

    NONE = 0
    JOB = 1  # finish this job, drop the jobs that wait
    SECTION = 2  # finish and keep the section being sampled
    NOW = 3  # at the next step


@dataclass(frozen=True, kw_only=True)
class Event:
    """Tell that something has happened, at the time `at`."""

    at: float


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """Tell the size of the whole job, before it downloads or loads anything.

    sections: number of them, joining another film counted as one more. steps: of a section. frames: of the result. width,
    height: in pixels. seed: the one that was drawn.
    """

    sections: int
    steps: int
    frames: int
    width: int
    height: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Stage(Event):
    """Tell that a stage of the work begins. name: one of STAGES. section: from 0, or None before the first."""

    name: str
    section: int | None = None


@dataclass(frozen=True, kw_only=True)
class Notice(Event):
    """Tell the user something worth knowing. key: the sentence's key below `notice.` in the locales. values: what it names."""

    key: str
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Step(Event):
    """Tell that a denoising step is done.

    section, step: from 0. preview: an animated WebP of the latents, or None. computed: False if the step cache replaced the
    network.
    """

    section: int
    step: int
    preview: bytes | None = None
    computed: bool = True


@dataclass(frozen=True, kw_only=True)
class DecodeProgress(Event):
    """Tell which share of the current stage is done, 0 to 1."""

    done: float


@dataclass(frozen=True, kw_only=True)
class Saved(Event):
    """Tell that a file is complete on disk.

    kind: "start", "so_far" (the film up to now), "film", "joined" (the film with the appended one), "picture", "still",
    "frames" (folder), "latents". section: from 0, None if the file belongs to none. frames: of the result in this file, 0 if it
    is not the result. replaces: the path of an older file of this job that was deleted, or "".
    """

    path: str
    kind: str
    section: int | None = None
    frames: int = 0
    replaces: str = ""


@dataclass(frozen=True, kw_only=True)
class Ended(Event):
    """Tell that the job has ended: exactly one of the three subclasses is a job's last event.

    files: paths of what exists, the result first. frames: of the result on the disk. took: seconds.
    """

    files: tuple[str, ...] = ()
    frames: int = 0
    took: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Finished(Ended):
    """Tell that all that was asked for is made."""


@dataclass(frozen=True, kw_only=True)
class Stopped(Ended):
    """Tell that somebody stopped the job before it was done. level: how soon it was to stop."""

    level: StopLevel = StopLevel.NOW


@dataclass(frozen=True, kw_only=True)
class Failed(Ended):
    """Tell that the job could not go on, and why."""

    problems: tuple[Problem, ...] = ()
