"""Hold all jobs at one moment, and tell which parts of what is shown of them changed since an earlier one.

All jobs share one version, a number that grows with every change of any of them (`queue.Jobs`). A page keeps the version that
it shows, and asks what is newer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from eichi_utils.jobs.view import View
from eichi_utils.requests.request import Request

# A version older than all others.
NEVER = -1


@dataclass(frozen=True)
class Job:
    """Hold a job as it was at one moment.

    request: of one film, with its seed drawn. asked: the request as submitted, with -1 for a random seed and the number of
    films. batch: the id of the first of the jobs that were submitted together. submitted: a time as events' `at`. view: what
    observers see. version: the version of all jobs at this one's last change.
    """

    id: str
    request: Request
    asked: Request
    batch: str = ""
    submitted: float = 0.0
    view: View = field(default_factory=View)
    version: int = 0


Jobs = tuple[Job, ...]


def _preview(jobs: Jobs, current: Job) -> Hashable:
    return current.id, current.view.preview


def _result(jobs: Jobs, current: Job) -> Hashable:
    view = current.view
    return current.id, view.state, view.film, view.picture, view.frames, view.width


def _stops(jobs: Jobs, current: Job) -> Hashable:
    return current.id, current.view.state, current.view.stopping


def _waiting(jobs: Jobs, current: Job) -> Hashable:
    return tuple(job.id for job in jobs if job.view.state == "waiting")


def _ended(jobs: Jobs, current: Job) -> Hashable:
    return current.id, current.view.state, tuple(job.id for job in jobs if job.view.ended)


# Parts that are shown, and a function of the jobs and the current job whose value changes whenever the part does. Progress
# changes with every version, and so needs none.
PARTS: Mapping[str, Callable[[Jobs, Job], Hashable]] = MappingProxyType(
    {"preview": _preview, "result": _result, "stops": _stops, "queue": _waiting, "history": _ended}
)


@dataclass(frozen=True)
class Snapshot:
    """Hold the jobs in their order at one version.

    current: the running job, else the next waiting one, else the one that ended last. changed: part -> the version at which its
    state was first seen to differ from before. states: part -> its state, by PARTS.
    """

    version: int
    jobs: Jobs = ()
    current: Job | None = None
    changed: Mapping[str, int] = field(default_factory=dict)
    states: Mapping[str, Hashable] = field(default_factory=dict)

    def next(self, version: int, jobs: Jobs) -> Snapshot:
        """Return the snapshot of the jobs as they are at a later version."""
        current = current_of(jobs)
        states = {part: state(jobs, current) if current else None for part, state in PARTS.items()}
        changed = {
            part: self.changed[part] if part in self.changed and self.states[part] == state else version
            for part, state in states.items()
        }
        return Snapshot(version, jobs, current, changed, states)

    def newest(self, *parts: str) -> int:
        """Return the version at which any of these parts changed last."""
        return max(self.changed[part] for part in parts)

    def newer(self, part: str, than: int) -> bool:
        """Tell whether a part changed after a version."""
        return self.changed[part] > than


def current_of(jobs: Jobs) -> Job | None:
    """Return the running job, else the next waiting one, else the one that ended last, else None."""
    for wanted in ("running", "waiting"):
        for job in jobs:
            if job.view.state == wanted:
                return job
    return max(reversed(jobs), key=lambda job: job.view.now) if jobs else None
