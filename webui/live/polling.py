"""How tabs follow a job: a small question every half second, which the server answers without gradio. Where many tabs are seen
at once, each asks more seldom, so that a film is not slower for them.

The answer holds the progress, where the newest preview is, and the version of everything else: only where that is another one a
tab looks again through gradio, which costs the server twenty times as much. A tab that nobody sees asks nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Response

from eichi_utils.jobs.queue import Jobs
from locales import Translator
from webui.live.progress import progress_of

ADDRESS = "/pulse"
# What a tab is shown through gradio (`snapshot.PARTS`); the answers hold the rest.
PARTS_OF_A_PAGE = ("result", "stops", "queue", "history")
# Milliseconds between two questions of a tab while a job runs, and while none does; and questions a second of all tabs.
BUSY, IDLE, MOST = 500, 1000, 10
# Milliseconds that a tab waits at most, however many there are or somebody pretends to be; and tabs that are told apart.
LONGEST, MOST_TABS = 3000, 1000
# Of a tab's word, what tells it from others.
MOST_CHARACTERS = 32
# Seconds after which a tab that asked nothing is seen by nobody; longer than any waits.
GONE = 5.0


class PollIntervals:
    """The tabs that ask, and how long each of them shall wait until it asks again."""

    def __init__(self) -> None:
        self._asked: dict[str, float] = {}

    def wait(self, tab: str, busy: bool) -> int:
        """Milliseconds. tab: a word of its own for each."""
        now, tab = time.monotonic(), tab[:MOST_CHARACTERS]
        for other in [other for other, asked in self._asked.items() if now - asked > GONE]:
            del self._asked[other]
        if tab in self._asked or len(self._asked) < MOST_TABS:
            self._asked[tab] = now
        return max(BUSY if busy else IDLE, min(1000 * len(self._asked) // MOST, LONGEST))


def add_routes(app: FastAPI, jobs: Jobs, t: Translator, builds: Mapping[str, str], front: str = "") -> None:
    """What answers the questions, and the previews. builds: mode -> its page (`page_build`). front: see `Context`."""

    intervals = PollIntervals()

    async def news(mode: str, tab: str = "") -> dict[str, Any]:
        told = poll_answer(jobs, t, mode, front)
        return told | {"wait": intervals.wait(tab, told["busy"]), "build": builds.get(mode, "")}

    async def preview(name: str) -> Response:
        job = jobs.current()
        if job is None or not job.view.preview:
            # It ended since the tab was told; no error that a browser would complain of.
            return Response(status_code=204)
        return Response(job.view.preview, media_type="image/webp", headers={"Cache-Control": "max-age=60"})

    app.add_api_route(f"{ADDRESS}/preview/{{name}}", preview)
    app.add_api_route(f"{ADDRESS}/{{mode}}", news)


def poll_answer(jobs: Jobs, t: Translator, mode: str, front: str = "") -> dict[str, Any]:
    """The answer, for a page of a mode."""
    seen = jobs.snapshot()
    job = seen.current
    preview = f"{front}{ADDRESS}/preview/{job.id}-{seen.changed['preview']}" if job and job.view.preview else ""
    return {
        "version": seen.newest(*PARTS_OF_A_PAGE),
        "busy": any(other.view.state in ("running", "waiting") for other in seen.jobs),
        "progress": progress_of(t, job, mode, time.monotonic()) if job else {},
        "preview": preview,
    }
