"""Test estimates of the time: measured, stored, scaled, and absent where nothing is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from eichi_utils.jobs.events import Event, Finished, Notice, Stage, Started, Step, Stopped
from eichi_utils.jobs.queue import Stop
from eichi_utils.jobs.timings import KEPT, RunTimes, Stopwatch, Timings, kind_of
from eichi_utils.models.catalogue import Models
from eichi_utils.models.pool import ModelPool
from eichi_utils.render.engine import Engine
from eichi_utils.requests.request import Request
from eichi_utils.user_data.settings import JsonFile
from tests.eichi_utils.helpers import changed, found, request


@pytest.fixture
def timings(tmp_path: Path) -> Timings:
    return Timings(JsonFile(tmp_path / "settings" / "timings.json"))


def run_of(it: Request, step: float = 2.0, skipped: int = 0) -> list[Event]:
    """Return the events of a run: 10 s to the first sampling, a first step of 5 s, then `step` s each, 8 s for decoding.

    The last `skipped` steps of a section are skipped by the step cache and take no time.
    """
    plan, at = it.plan(), 100.0
    sizes = {"frames": plan.frames, "width": 640, "height": 640}
    events: list[Event] = [Started(at=at, sections=len(plan.sections), steps=it.steps, seed=1, **sizes)]
    at += 10
    for section in range(len(plan.sections)):
        events.append(Stage(at=at, name="sample", section=section))
        for number in range(it.steps):
            computed = number < it.steps - skipped
            at += (5.0 if number == 0 else step) if computed else 0.0
            events.append(Step(at=at, section=section, step=number, computed=computed))
        events += [Stage(at=at, name="decode", section=section), Stage(at=at + 6, name="save", section=section)]
        at += 8
    return [*events, Finished(at=at, frames=plan.frames)]


def measured(it: Request, **run: float) -> RunTimes | None:
    watch = Stopwatch(it)
    for event in run_of(it, **run):
        watch.see(event)
    return watch.taken()


def film(**fields) -> Request:
    return request("reverse", "a.png", **{"seconds": 5, "steps": 10, **fields})


def test_nothing_is_said_before_the_first_run(timings: Timings) -> None:
    """A guess would be wrong by a factor of a hundred between machines."""
    assert timings.seconds(film(), 640, 640) is None
    assert not timings.file.path.exists()


def test_the_same_again_takes_as_long(timings: Timings) -> None:
    """The estimate for the same run is its time: 10 s, 4 times a first step and 9 others, and 8 s."""
    it = film()
    timings.keep(measured(it))
    assert timings.seconds(it, 640, 640) == pytest.approx(10 + 4 * (5 + 9 * 2 + 8))


@pytest.mark.parametrize(
    ("change", "more"),
    [({"steps": 20}, 4 * 10 * 2), ({"seconds": 10}, 4 * 31), ({"batch": 3}, 2 * 4 * 31), ({"seed": 9, "prompt": "b"}, 0)],
)
def test_what_scales(timings: Timings, change: dict, more: float) -> None:
    """The estimate grows with steps, sections and films; the rest stays."""
    it = film()
    timings.keep(measured(it))
    assert timings.seconds(changed(it, **change), 640, 640) == pytest.approx(134 + more)


def test_steps_that_the_cache_left_out(timings: Timings) -> None:
    """Half of them computed: twice the steps cost as many computed ones again."""
    it = film(step_cache="teacache")
    timings.keep(measured(it, skipped=5))
    short = 10 + 4 * (5 + 4 * 2 + 8)
    assert timings.seconds(it, 640, 640) == pytest.approx(short)
    assert timings.seconds(changed(it, steps=20), 640, 640) == pytest.approx(short + 4 * 5 * 2)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "miniature"},
        {"precision": "int8"},
        {"window": 4.5},
        {"cfg_scale": 2.0},
        {"step_cache": "first_block"},
        {"vae_tile": 256},
        {"save_frames": "all"},
    ],
)
def test_other_kinds_of_runs_say_nothing(timings: Timings, change: dict) -> None:
    """Times of runs with other fields, another size or another mode give no estimate."""
    it = film()
    timings.keep(measured(it))
    assert timings.seconds(changed(it, **change), 640, 640) is None
    assert timings.seconds(it, 640, 608) is None
    assert timings.seconds(request("forward", "a.png", seconds=5, steps=10), 640, 640) is None


def test_a_download_is_not_expected_again(timings: Timings) -> None:
    """The first film's download of an hour was forecast for the next one too."""
    it, watch = film(), Stopwatch(film())
    for event in [
        Stage(at=-3505.0, name="check"),
        Notice(at=-3502.0, key="processor"),
        Notice(at=-3500.0, key="downloading"),
        Notice(at=-100.0, key="downloading"),
        Stage(at=100.0, name="encode"),
        *run_of(it),
    ]:
        watch.see(event)
    timings.keep(watch.taken())
    assert timings.seconds(it, 640, 640) == pytest.approx(5 + 134)


def test_a_run_that_was_stopped_is_no_measure() -> None:
    """A stopped run is not used for estimates, nor is a run of a single step, whose time is that of loading."""
    watch = Stopwatch(film())
    for event in [*run_of(film())[:-1], Stopped(at=999.0)]:
        watch.see(event)
    assert watch.taken() is None
    assert measured(film(steps=1)) is None


def test_damaged_files_and_entries(timings: Timings) -> None:
    """Set aside and begun anew; a film is not lost for it."""
    it, path = film(), timings.file.path
    path.parent.mkdir()
    path.write_text("{not json")
    assert timings.seconds(it, 640, 640) is None
    assert [file.name for file in path.parent.glob("*damaged*")] and not path.exists()
    timings.keep(measured(it))
    assert timings.seconds(it, 640, 640) is not None
    for entry in (
        5,
        {},
        {"start": 1, "step": "x", "share": 1, "section": 1},
        {"start": 1, "step": -1, "share": 1, "section": 1},
    ):
        timings.file.update(lambda document, entry=entry: document.update({kind_of(it, 640, 640): entry}))
        assert timings.seconds(it, 640, 640) is None
    (path.parent / "file").write_text("x")
    blocked = Timings(JsonFile(path.parent / "file" / "timings.json"))
    assert found(blocked.keep(measured(it))) == {("settings", "settings_not_written")}


@pytest.mark.slow
def test_the_file_does_not_grow_for_ever(timings: Timings) -> None:
    """The number of kinds of runs in the file is limited, and those run longest ago go first."""
    for number in [*range(KEPT + 5), 5]:
        timings.keep(RunTimes(f"kind {number}", 1, 1, 1, 1))
    document, _ = timings.file.read()
    assert len(document) == KEPT and "kind 4" not in document and list(document)[-1] == "kind 5"


def test_the_engine_measures_its_runs(pool: ModelPool, pictures: list[str], timings: Timings, tmp_path: Path) -> None:
    """The engine measures its runs with the real networks, and the time of one run is the estimate for the next."""
    engine = Engine(Models(pool.files.models), tmp_path / "out", timings=timings)
    engine.__dict__["pool"] = pool
    it = request("single", pictures[0])
    *_, end = engine(it, "j", Stop())
    assert timings.seconds(it, 112, 144) == pytest.approx(end.took, rel=0.5)
