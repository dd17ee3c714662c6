"""Test the number that grows with every change of a job, and the numbers at which parts of a job's view changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from eichi_utils.jobs.events import DecodeProgress, Event, Finished, Notice, Saved, Stage, Started, Step, StopLevel
from eichi_utils.jobs.queue import Jobs
from eichi_utils.jobs.snapshot import NEVER, PARTS, Job, Snapshot, current_of
from eichi_utils.jobs.view import View
from eichi_utils.requests.reverse import ReverseRequest

STARTED = Started(at=1.0, sections=2, steps=3, frames=73, width=96, height=64, seed=1)


def job(name: str, *events: Event) -> Job:
    view = View()
    for event in events:
        view = view.after(event)
    return Job(name, ReverseRequest(), ReverseRequest(), view=view)


def after(one: Job, event: Event) -> Job:
    return replace(one, view=one.view.after(event))


def changed(jobs: tuple[Job, ...], others: tuple[Job, ...]) -> set[str]:
    """Return the parts that are newer where the second follow the first."""
    before = Snapshot(NEVER).next(10, jobs)
    now = before.next(11, others)
    assert now.version == 11 and now.jobs == others
    return {part for part in PARTS if now.newer(part, before.version)}


@pytest.mark.parametrize(
    ("event", "parts"),
    [
        (Stage(at=2.0, name="text"), set()),
        (DecodeProgress(at=2.0, done=0.5), set()),
        (Notice(at=2.0, key="no_effect"), set()),
        (Step(at=2.0, section=0, step=0), set()),
        (Step(at=2.0, section=0, step=0, preview=b"webp"), {"preview"}),
        (Saved(at=2.0, path="a.mp4", kind="so_far", section=0, frames=37), {"result"}),
        (Saved(at=2.0, path="a.png", kind="still", section=0), set()),
        (Finished(at=2.0, files=("a.mp4",)), {"result", "stops", "history"}),
    ],
)
def test_an_event_changes_what_shows_it(event: Event, parts: set[str]) -> None:
    """A tab that is told of every step anew costs the server twenty times as much as one that asks for the progress."""
    running = job("a", STARTED)
    assert changed((running,), (after(running, event),)) == parts


def test_jobs_that_wait() -> None:
    running, first, second = job("a", STARTED), job("b"), job("c")
    assert changed((running, first), (running, first, second)) == {"queue"}
    assert changed((running, first, second), (running, second, first)) == {"queue"}
    stopping = replace(running, view=replace(running.view, stopping=StopLevel.NOW))
    assert changed((running,), (stopping,)) == {"stops"}
    assert changed((), (first,)) == set(PARTS)


def test_what_is_as_it_was_keeps_its_version() -> None:
    running = job("a", STARTED)
    first = Snapshot(NEVER).next(5, (running,))
    later = first.next(6, (after(running, STARTED),)).next(9, (running, job("b")))
    assert later.changed == dict.fromkeys(PARTS, 5) | {"queue": 9}
    assert later.newest("result", "stops") == 5 and later.newest(*PARTS) == 9
    assert not later.newer("queue", 9) and later.newer("queue", 8) and later.newer("result", NEVER)


def test_the_current_job() -> None:
    ended, waiting = job("a", STARTED, Finished(at=9.0)), job("c")
    earlier, running = job("b", STARTED, Finished(at=5.0)), job("d", STARTED)
    assert current_of(()) is None
    assert current_of((ended, earlier)) is ended and current_of((earlier, ended)) is ended
    assert current_of((ended, waiting)) is waiting and current_of((ended, waiting, running)) is running


@pytest.fixture
def made() -> Iterator[Jobs]:
    """Provide a queue whose jobs finish at once."""

    def execute(request: ReverseRequest, job_id: str, stop: object) -> Iterator[Event]:
        yield STARTED
        yield Finished(at=2.0)

    jobs = Jobs(execute)
    yield jobs
    jobs.close(10)


def test_every_change_is_a_newer_version(made: Jobs) -> None:
    """Three places said each in its own way whether something had changed: a word for tabs, a record of what a tab had seen, a
    count of each job's own. What one of them did not name was not shown."""
    versions = [made.snapshot().version]
    for _ in range(2):
        submitted = made.submit(ReverseRequest())
        assert submitted.version > versions[-1]
        list(made.follow(submitted.id))
        versions.append(made.snapshot().version)
    assert versions == sorted(set(versions))
    last = made.snapshot()
    assert last is made.snapshot() and made.all() == last.jobs and made.current() == last.current
    assert {job.version for job in last.jobs} < set(range(versions[0] + 1, last.version + 1))
    assert max(job.version for job in last.jobs) == last.version


def test_another_start_of_the_program_has_other_versions() -> None:
    """A tab that was open over it would have taken the new jobs for those that it showed."""
    several = [Jobs(lambda *_: iter(())) for _ in range(3)]
    versions = {jobs.snapshot().version for jobs in several}
    for jobs in several:
        jobs.close(10)
    # The largest number that browsers count with exactly.
    assert len(versions) == 3 and max(versions) < 2**52
