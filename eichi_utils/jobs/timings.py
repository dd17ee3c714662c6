"""Measure how long runs took on this machine, and estimate by that how long a request would take; without torch.

Only runs of the very same kind are compared (model, mode, precision, tokens of a step, step cache, ...): another kind has no
estimate rather than a wrong one. The time is scaled by the number of steps, sections and films.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from eichi_utils.files.latent_header import CELL
from eichi_utils.files.paths import SETTINGS, place
from eichi_utils.jobs.events import Event, Finished, Notice, Stage, Started, Step
from eichi_utils.models.requirements import most_tokens
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.request import Request
from eichi_utils.user_data.settings import JsonFile

logger = logging.getLogger(__name__)

# Most kinds of runs that are remembered; those measured longest ago are removed.
KEPT = 200
# Largest credible time, a year in seconds; a file with more is damaged.
LONGEST = 366 * 24 * 3600


@dataclass(frozen=True)
class RunTimes:
    """Hold the times of one run, in seconds.

    kind: as `kind_of`. start: before the first sampling, without downloads. step: of a computed step. share: computed steps of
    all, the others being left out by the step cache. section: of a section besides its steps: preparing, decoding, saving.
    """

    kind: str
    start: float
    step: float
    share: float
    section: float

    def seconds(self, request: Request) -> float:
        """Estimate how many seconds a request of this kind takes, all films of its batch together."""
        plan = request.plan()
        sampled = len(plan.samplings) * request.steps * self.share * self.step
        return self.start + request.batch * (sampled + plan.parts * self.section)


@dataclass
class Stopwatch:
    """Measure a run by its events.

    Times are as events' `at`. began, ended: first and last event. fetching: begin of a download that goes on; downloads do not
    count as the run's time. sampled: begin of the first sampling. newest: newest step of the current section. between: seconds
    between a step and the one before it in its section, for computed steps.
    """

    request: Request
    began: float | None = None
    fetching: float | None = None
    sampled: float | None = None
    height: int = 0
    width: int = 0
    sections: int = 0
    computed: int = 0
    steps: int = 0
    ended: float | None = None
    newest: float | None = None
    between: list[float] = field(default_factory=list)

    def see(self, event: Event) -> None:
        """Note the time of an event; must be called with all of a job's events in order."""
        self.began = event.at if self.began is None else self.began
        if self.fetching is not None and isinstance(event, Stage):
            self.began, self.fetching = self.began + event.at - self.fetching, None
        match event:
            case Notice() if event.key == "downloading" and self.fetching is None:
                self.fetching = event.at
            case Started():
                self.height, self.width, self.sections = event.height, event.width, event.sections
            case Stage() if event.name == "sample":
                self.sampled = event.at if self.sampled is None else self.sampled
                self.newest = None
            case Step():
                # The first step of a section also waits for the weights, so its time counts as the section's.
                if event.computed and self.newest is not None:
                    self.between.append(event.at - self.newest)
                self.newest = event.at
                self.steps += 1
                self.computed += event.computed
            case Finished():
                self.ended = event.at

    def taken(self) -> RunTimes | None:
        """Return the run's times; None unless it finished and a section had two steps to measure between."""
        if self.ended is None or self.sampled is None or self.began is None or not self.between:
            return None
        step = statistics.median(self.between)
        section = max(0.0, self.ended - self.sampled - self.computed * step) / self.sections
        kind = kind_of(self.request, self.height, self.width)
        return RunTimes(kind, self.sampled - self.began, step, self.computed / self.steps, section)


class Timings:
    """Keep the times of the newest run of each kind in `timings.json`, among the settings."""

    def __init__(self, file: JsonFile | None = None):
        self.file = file or JsonFile(place(SETTINGS) / "timings.json")

    def keep(self, taken: RunTimes) -> tuple[Problem, ...]:
        """Write a run's times into the file; problems are logged and returned, not raised, since the film is made anyway."""

        def change(document: dict[str, Any]) -> None:
            # Entries are in the order of time, the newest last.
            document.pop(taken.kind, None)
            document[taken.kind] = {name: value for name, value in asdict(taken).items() if name != "kind"}
            for kind in list(document)[:-KEPT]:
                del document[kind]

        try:
            notes = self.file.update(change)
        except UserError as error:
            notes = error.problems
        for note in notes:
            logger.warning("%s: %s", note.key, dict(note.values))
        return notes

    def seconds(self, request: Request, height: int, width: int) -> float | None:
        """Estimate how many seconds a checked request takes at this size in pixels; None if no such run was measured."""
        kind = kind_of(request, height, width)
        try:
            document, _ = self.file.read()
        except UserError:
            return None
        taken = _read(kind, document.get(kind))
        return None if taken is None else taken.seconds(request)


def kind_of(request: Request, height: int, width: int) -> str:
    """Return a text of everything that two runs must have in common for their times to be comparable.

    height, width: in pixels.
    """
    plan = request.plan()
    cache = request.step_cache if request.step_cache == "none" else f"{request.step_cache}:{request.cache_threshold:g}"
    parts = {
        "model": request.model,
        "mode": request.mode,
        "precision": request.precision,
        "size": f"{width}x{height}",
        "tokens": most_tokens(plan, height // CELL, width // CELL),
        "cache": cache,
        "cfg": "off" if request.cfg_scale == 1.0 else "on",
        "lora": f"{len(request.loras)}{'m' if request.merge_loras and request.loras else ''}",
        "decode": f"{'once' if plan.vae_cache else 'tiles'}:{request.vae_tile or 'auto'}",
        "frames": getattr(request, "save_frames", "none"),
    }
    if plan.append:
        # A joined film is decoded once more as a whole.
        parts["join"] = "sampled" if plan.append.bridge else "straight"
    return " ".join(f"{name}={value}" for name, value in parts.items())


def _read(kind: str, entry: Any) -> RunTimes | None:
    names = [one.name for one in fields(RunTimes) if one.name != "kind"]
    if not isinstance(entry, Mapping) or set(names) - set(entry):
        return None
    values = {name: entry[name] for name in names}
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values.values())
    good = numbers and all(0 <= value <= LONGEST for value in values.values())
    return RunTimes(kind, **values) if good else None
