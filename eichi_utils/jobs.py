"""Jobs belong to the server: one worker thread runs them in order, everybody else only looks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from eichi_utils.events import Ended, Event, Failed, StopLevel, Stopped
from eichi_utils.paths import DISK_FULL, new_job_id
from eichi_utils.problems import Problem, UserError
from eichi_utils.request import Request, spread
from eichi_utils.view import View

logger = logging.getLogger(__name__)


class Stop:
    """How soon a running job shall end. Set by anybody, read by the runner; never falls back to a lower level."""

    def __init__(self) -> None:
        self._level = StopLevel.NONE
        self._lock = threading.Lock()

    @property
    def level(self) -> StopLevel:
        return self._level

    def request(self, level: StopLevel) -> None:
        with self._lock:
            self._level = max(self._level, level)


Execute = Callable[[Request, str, Stop], Iterator[Event]]


@dataclass(frozen=True)
class Job:
    """A snapshot: the request with its seed, and what is to be seen of it.

    asked: what was submitted: with -1 for a random seed, and with the number of films. batch: the id of the first of the jobs
    that were submitted together. submitted: seconds since the epoch.
    """

    id: str
    request: Request
    asked: Request
    batch: str = ""
    submitted: float = 0.0
    view: View = field(default_factory=View)
    version: int = 0


# Told of each event of each job, with the job as it is after it.
Watcher = Callable[[Job, Event], None]


class Jobs:
    """Submitted jobs in order of submission. `execute(request, job_id, stop)` does one and yields its events.

    The worker thread is the only place that runs `execute`, and so the only one that uses the GPU.
    watchers: called in the worker's thread, or in that of whoever drops a waiting job; they must neither raise nor take long.
    """

    def __init__(self, execute: Execute, watchers: Sequence[Watcher] = ()):
        self._execute = execute
        self._watchers = tuple(watchers)
        self._jobs: dict[str, Job] = {}
        self._stops: dict[str, Stop] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="eichi-worker", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Job:
        """Append a job for each film of the request's batch and return the first; a random seed is drawn now. Checks nothing:
        that is `request.check()`'s."""
        with self._changed:
            submitted = time.time()
            first = ""
            for one in spread(request):
                # Of a hundred in the same millisecond two may well be equal.
                name = next(name for name in iter(new_job_id, None) if name not in self._jobs)
                first = first or name
                self._jobs[name] = Job(name, one, asked=request, batch=first, submitted=submitted)
                self._stops[name] = Stop()
            self._changed.notify_all()
            return self._jobs[first]

    def get(self, job_id: str) -> Job | None:
        with self._changed:
            return self._jobs.get(job_id)

    def all(self) -> tuple[Job, ...]:
        with self._changed:
            return tuple(self._jobs.values())

    def current(self) -> Job | None:
        """The running job, else the next waiting one, else the one that ended last, else None."""
        jobs = self.all()
        for wanted in ("running", "waiting"):
            for job in jobs:
                if job.view.state == wanted:
                    return job
        return max(reversed(jobs), key=lambda job: job.view.now) if jobs else None

    def stop(self, level: StopLevel) -> None:
        """Stop the running job, or the next one if none has begun, and drop what waits of its batch. JOB lets it finish and
        drops every job that waits."""
        dropped = []
        with self._changed:
            current = self.current()
            for job in self._jobs.values():
                if job.view.state == "running":
                    self._stops[job.id].request(level)
                    self._publish(job.id, replace(job.view, stopping=self._stops[job.id].level))
                elif job.view.state == "waiting" and (level == StopLevel.JOB or job.batch == current.batch):
                    dropped.append(self._drop(job, level))
        self._tell(dropped)

    def remove(self, job_id: str) -> None:
        """Drop a waiting job; one that runs or has ended is left as it is."""
        with self._changed:
            job = self._jobs.get(job_id)
            dropped = [self._drop(job, StopLevel.JOB)] if job and job.view.state == "waiting" else []
        self._tell(dropped)

    def move(self, job_id: str, places: int) -> None:
        """Let a waiting job come earlier (negative) or later among those that wait, as far as there are places."""
        with self._changed:
            waiting = [job.id for job in self._jobs.values() if job.view.state == "waiting"]
            if job_id not in waiting:
                return
            to = min(max(waiting.index(job_id) + places, 0), len(waiting) - 1)
            waiting.remove(job_id)
            waiting.insert(to, job_id)
            following = iter(waiting)
            order = [next(following) if job.view.state == "waiting" else job.id for job in self._jobs.values()]
            self._jobs = {name: self._jobs[name] for name in order}
            self._changed.notify_all()

    def follow(self, job_id: str) -> Iterator[View]:
        """The job's views as they change, ending with the one that has ended. Views in between may be passed over."""
        version = -1
        while True:
            with self._changed:
                # In short waits: on Windows a Ctrl-C is not seen during a long one.
                while self._jobs[job_id].version == version:
                    self._changed.wait(0.5)
                job = self._jobs[job_id]
            version = job.version
            yield job.view
            if job.view.ended:
                return

    def close(self, timeout: float | None = None) -> None:
        """Stop what runs, drop what waits and wait for the worker."""
        self.stop(StopLevel.JOB)
        self.stop(StopLevel.NOW)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)

    def _drop(self, job: Job, level: StopLevel) -> tuple[Job, Event]:
        """End a waiting job; what to tell of it."""
        event = Stopped(at=time.time(), level=level)
        return self._publish(job.id, job.view.after(event)), event

    def _tell(self, news: Iterable[tuple[Job, Event]]) -> None:
        # Outside of the lock: a watcher may write to a slow disk.
        for job, event in news:
            for watcher in self._watchers:
                watcher(job, event)

    def _publish(self, job_id: str, view: View) -> Job:
        with self._changed:
            job = self._jobs[job_id]
            self._jobs[job_id] = replace(job, view=view, version=job.version + 1)
            self._changed.notify_all()
            return self._jobs[job_id]

    def _take(self) -> Job | None:
        """The next waiting job, marked as running; None when closed."""
        with self._changed:
            while True:
                waiting = [job for job in self._jobs.values() if job.view.state == "waiting"]
                if self._closed:
                    return None
                if waiting:
                    now = time.time()
                    self._publish(waiting[0].id, replace(waiting[0].view, state="running", started=now, now=now))
                    return waiting[0]
                self._changed.wait()

    def _work(self) -> None:
        while job := self._take():
            ended = False
            try:
                for event in self._execute(job.request, job.id, self._stops[job.id]):
                    self._see(job.id, event)
                    ended = ended or isinstance(event, Ended)
                if not ended:
                    raise RuntimeError("the run ended without saying how")
            # Nothing may end the worker but close(): not even an exit or a panic inside a library.
            except BaseException as error:
                problems = problems_of(error)
                if any(problem.key == "unexpected" for problem in problems):
                    logger.exception("job %s failed", job.id)
                if not ended:
                    view = self.get(job.id).view
                    self._see(
                        job.id,
                        Failed(
                            at=time.time(),
                            problems=problems,
                            files=view.files,
                            frames=view.frames,
                            took=time.time() - view.started,
                        ),
                    )

    def _see(self, job_id: str, event: Event) -> None:
        with self._changed:
            job = self._publish(job_id, self._jobs[job_id].view.after(event))
        self._tell([(job, event)])


def problems_of(error: BaseException) -> tuple[Problem, ...]:
    """What to tell the user about an exception that ended a job."""
    if isinstance(error, UserError):
        return error.problems
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return (Problem("", "disk_full"),)
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return (Problem("", "out_of_memory"),)
    # torch's class is known by name here, so that this module does not import torch.
    if type(error).__name__ == "OutOfMemoryError":
        return (Problem("", "out_of_card_memory"),)
    return (Problem("", "unexpected", {"kind": type(error).__name__, "reason": str(error)[:500]}),)
