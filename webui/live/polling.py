"""Let tabs follow a job by polling: a small request every half second, which the server answers without gradio.

If many tabs are visible at once, each polls less often, so that they do not slow the film down. The answer holds the progress,
the address of the newest preview, and the version of everything else. Only when the version changes does a tab ask through
gradio, which costs the server twenty times as much. A hidden tab does not poll.
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
# The parts of `snapshot.PARTS` that a tab gets through gradio; the polls' answers hold the others.
PARTS_OF_A_PAGE = ("result", "stops", "queue", "history")
# Milliseconds between two polls of a tab while a job runs, and while none does; and the most polls a second of all tabs.
BUSY, IDLE, MOST = 500, 1000, 10
# The most milliseconds that a tab waits, however many tabs there are or a client pretends to have; the most tabs counted.
LONGEST, MOST_TABS = 3000, 1000
# Characters of a tab's name that are used.
MOST_CHARACTERS = 32
# Seconds without a poll after which a tab counts as closed or hidden; longer than LONGEST.
GONE = 5.0


class PollIntervals:
    """Count the tabs that poll, and decide how long each waits until its next poll."""

    def __init__(self) -> None:
        self._asked: dict[str, float] = {}

    def wait(self, tab: str, busy: bool) -> int:
        """Note a tab's poll; return the milliseconds until its next one. tab: its unique name. busy: whether a job runs."""
        now, tab = time.monotonic(), tab[:MOST_CHARACTERS]
        for other in [other for other, asked in self._asked.items() if now - asked > GONE]:
            del self._asked[other]
        if tab in self._asked or len(self._asked) < MOST_TABS:
            self._asked[tab] = now
        return max(BUSY if busy else IDLE, min(1000 * len(self._asked) // MOST, LONGEST))


def add_routes(app: FastAPI, jobs: Jobs, t: Translator, builds: Mapping[str, str], front: str = "") -> None:
    """Add the routes that answer polls and serve previews.

    builds: mode -> its page's build (`page_build`). front: see `Context`.
    """

    intervals = PollIntervals()

    async def news(mode: str, tab: str = "") -> dict[str, Any]:
        told = poll_answer(jobs, t, mode, front)
        return told | {"wait": intervals.wait(tab, told["busy"]), "build": builds.get(mode, "")}

    async def preview(name: str) -> Response:
        job = jobs.current()
        if job is None or not job.view.preview:
            # The job has ended since the tab got the address. An error status would show in the browser's console.
            return Response(status_code=204)
        return Response(job.view.preview, media_type="image/webp", headers={"Cache-Control": "max-age=60"})

    app.add_api_route(f"{ADDRESS}/preview/{{name}}", preview)
    app.add_api_route(f"{ADDRESS}/{{mode}}", news)


def poll_answer(jobs: Jobs, t: Translator, mode: str, front: str = "") -> dict[str, Any]:
    """Return the answer to a poll of a mode's page: version, whether jobs run or wait, progress, address of the preview."""
    seen = jobs.snapshot()
    job = seen.current
    preview = f"{front}{ADDRESS}/preview/{job.id}-{seen.changed['preview']}" if job and job.view.preview else ""
    return {
        "version": seen.newest(*PARTS_OF_A_PAGE),
        "busy": any(other.view.state in ("running", "waiting") for other in seen.jobs),
        "progress": progress_of(t, job, mode, time.monotonic()) if job else {},
        "preview": preview,
    }
