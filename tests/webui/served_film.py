"""Run the real server with empty pages, and make a film in it, as a program of its own for tests.

    python -m tests.webui.served_film DESCRIPTORS SECONDS_PER_STEP FLAGS...

Besides the server's address it prints how the film ended. The film waits in its middle until /begin is asked for. At /slow is a
handler that works for a minute.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gradio
from fastapi import FastAPI
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from eichi_utils.jobs.events import Ended
from eichi_utils.jobs.queue import Jobs
from eichi_utils.requests.modes import MODES
from tests.webui.conftest import FakeEngine, empty_page
from webui import app
from webui.http import server


def main(descriptors: int, step_seconds: float, flags: list[str]) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    picture = str(Path(gradio.__file__).parent / "media_assets" / "images" / "tower.jpg")

    begun = threading.Event()

    def engine(models: object, outputs: Path, *args: object, **settings: object) -> FakeEngine:
        return FakeEngine(outputs, step_seconds, begun)

    class Busy(Jobs):
        def __init__(self, execute: FakeEngine, watchers: list):
            super().__init__(execute, [tell])
            self.submit(MODES["reverse"](image=picture, prompt="x", seconds=5, steps=10))

    def tell(job: object, event: object) -> None:
        if isinstance(event, Ended):
            sys.stdout.write(f"{type(event).__name__}\n")
            sys.stdout.flush()

    def begin(request: object) -> PlainTextResponse:
        begun.set()
        return PlainTextResponse("begun")

    def slow(request: object) -> PlainTextResponse:
        sys.stdout.write("Working\n")
        sys.stdout.flush()
        time.sleep(60)
        return PlainTextResponse("done")

    build = app.build

    def with_slow(*args: Any, **settings: Any) -> FastAPI:
        site = build(*args, **settings)
        site.router.routes[:0] = [Route("/slow", slow), Route("/begin", begin)]
        return site

    app.build = with_slow
    app.PAGES = MappingProxyType({name: (path, empty_page) for name, (path, _) in app.PAGES.items()})
    app.Engine, app.Jobs = engine, Busy
    app.apply_saved = lambda *args: None
    server.Patience = functools.partial(server.Patience, head=3.0)
    app.serve("reverse", flags)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
