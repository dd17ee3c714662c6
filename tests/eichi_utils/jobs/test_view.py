"""Test the view of a job's events: the bar, the time left, the newest preview and film."""

from __future__ import annotations

import itertools

import pytest

from eichi_utils.jobs.events import DecodeProgress, Event, Failed, Finished, Notice, Saved, Stage, Started, Step, Stopped
from eichi_utils.jobs.view import View
from eichi_utils.problems import Problem

EVENTS = [
    Stage(at=1, name="check"),
    Started(at=2, sections=2, steps=2, frames=73, width=64, height=48, seed=9),
    Stage(at=3, name="text"),
    Notice(at=3, key="prompt_cut", values={"read": 1, "written": 2}),
    Stage(at=4, name="vision"),
    Stage(at=5, name="encode"),
    Stage(at=6, name="load"),
    Saved(at=6, path="a.png", kind="start"),
    Stage(at=10, name="sample", section=0),
    Step(at=11, section=0, step=0, preview=b"1"),
    Step(at=12, section=0, step=1, computed=False),
    Stage(at=13, name="decode", section=0),
    Stage(at=14, name="save", section=0),
    Saved(at=15, path="9.mp4", kind="so_far", section=0, frames=33),
    Stage(at=16, name="sample", section=1),
    Step(at=17, section=1, step=0, preview=b"2"),
    Step(at=18, section=1, step=1, preview=b"3"),
    Stage(at=19, name="decode", section=1),
    Stage(at=20, name="save", section=1),
    Saved(at=21, path="19.mp4", kind="film", section=1, frames=73),
    Finished(at=22, files=("19.mp4", "a.png"), frames=73),
]


def test_the_view_folds_all_events() -> None:
    """The fraction never falls and ends at 1; the newest preview and film stand; the time left goes to nothing."""
    folded = list(itertools.accumulate(EVENTS, View.after, initial=View()))
    fractions = [view.fraction for view in folded]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert fractions[-1] == 1.0
    assert all(0.0 <= fraction < 1.0 for fraction in fractions[:-1])
    sampling = folded[11]
    assert (sampling.stage, sampling.section, sampling.step, sampling.preview) == ("sample", 0, 2, b"1")
    later = folded[16]
    assert (later.section, later.step, later.preview, later.film, later.frames) == (1, 1, b"2", "9.mp4", 33)
    assert [notice.key for notice in later.notices] == ["prompt_cut"]
    # Half of the steps took 7 seconds since the first began; about as much is left.
    assert 4 < later.seconds_left < 10
    assert folded[9].seconds_left is None
    end = folded[-1]
    assert (end.state, end.files, end.film, end.frames, end.seed) == ("finished", ("19.mp4", "a.png"), "19.mp4", 73, 9)
    assert (end.sections, end.steps, end.width, end.height) == (2, 2, 64, 48)
    assert (end.all_steps, end.computed_steps) == (4, 3)
    assert end.film_seconds == 73 / 30
    assert end.elapsed == 20
    assert (end.preview, end.seconds_left) == (None, None)


@pytest.mark.parametrize("event", [Failed(at=9.0, problems=(Problem("", "out_of_memory"),)), Stopped(at=9.0)])
def test_a_job_that_ends_early_keeps_its_place_on_the_bar(event: Event) -> None:
    """A failed job does not jump to 100 %, nor back to 0; ending before it began gives a time too."""
    before = list(itertools.accumulate(EVENTS[:10], View.after, initial=View()))[-1]
    after = before.after(event)
    assert after.ended
    assert after.fraction == before.fraction
    assert View().after(event).elapsed == 0.0


def test_the_bar_moves_while_a_section_is_decoded() -> None:
    """The bar stood still while a section was decoded, which is most of the time without a card. A share that falls, because
    work is repeated after memory ran out, does not move the bar back."""
    view = list(itertools.accumulate(EVENTS[:12], View.after, initial=View()))[-1]
    shares = [DecodeProgress(at=13, done=done) for done in (0.1, 0.4, 0.2, 0.7, 1.0)]
    folded = list(itertools.accumulate([EVENTS[11], *shares, *EVENTS[12:14]], View.after, initial=view))[1:]
    fractions = [one.fraction for one in folded]
    assert fractions == sorted(fractions)
    assert len(set(fractions[:6])) == 5, "each share that is news moves the bar"
    assert fractions[0] == view.fraction and fractions[-1] < 0.52
    later = folded[-1].after(EVENTS[14])
    assert (later.share, later.stage) == (0.0, "sample") and later.fraction >= fractions[-1]
