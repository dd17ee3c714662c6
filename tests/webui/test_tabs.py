"""Test the benchmark of many tabs: its figures, and its two measurements on a page whose worker needs no model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import tabs
from tests.webui.browsing import PATIENCE, fill, until, until_filled
from webui.live import polling


def test_many_tabs_ask_more_seldom(monkeypatch):
    """Ten questions a second at most, of all of them: twenty that asked twice a second each took from the film they showed."""
    assert tabs.ADDRESS == polling.ADDRESS
    intervals, now = polling.PollIntervals(), [100.0]
    monkeypatch.setattr(polling.time, "monotonic", lambda: now[0])
    assert intervals.wait("a", busy=True) == polling.BUSY and intervals.wait("a", busy=False) == polling.IDLE
    waits = [intervals.wait(str(number), busy=True) for number in range(19)]
    assert waits[0] == polling.BUSY and waits[-1] == 2000
    now[0] += polling.GONE + 0.1
    assert intervals.wait("a", busy=True) == polling.BUSY, "who is gone does not count"


def test_invented_tabs_hold_up_no_honest_one():
    """Somebody asked as 1500 tabs, and everybody else's page stood still for 18 seconds at a time."""
    intervals = polling.PollIntervals()
    for number in range(1500):
        intervals.wait(f"{number}{'x' * 10_000}", busy=True)
    assert intervals.wait("honest", busy=True) == polling.LONGEST == 3000
    assert len(intervals._asked) == polling.MOST_TABS and max(map(len, intervals._asked)) == polling.MOST_CHARACTERS


def test_percentiles_are_of_what_was_measured():
    assert tabs.percentiles([5.0]) == {"p50": 5.0, "p95": 5.0, "max": 5.0}
    assert tabs.percentiles(list(range(100, 0, -1))) == {"p50": 51, "p95": 96, "max": 100}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell")
def test_a_processes_time_is_counted():
    before = tabs.processor_seconds(os.getpid())
    sum(number * number for number in range(3_000_000))
    assert tabs.processor_seconds(os.getpid()) > before


@pytest.mark.browser
def test_a_film_and_clicks_meanwhile_in_more_tabs_than_a_browser_has_connections(serve, open_page, tower):
    """A sixth tab once did not load, because each tab held a connection: here six are open."""
    site = serve("reverse", "en")
    site.engine.step_seconds = 0.05
    page = open_page(site.url)
    others = []
    for _ in range(5):
        tab = page.context.new_page()
        tab.set_default_timeout(PATIENCE)
        tab.goto(site.url)
        until_filled(tab)
        others.append(tab)
    fill(page, tower)
    seconds, clicks = tabs.run(site.url, page, others[-1:])
    assert seconds > 25 * 0.05 and clicks and all(0 < click < 30_000 for click in clicks)
    for tab in others:
        until(tab, "finished")
