"""Identify the build of a page, and refuse events of a tab that shows another build.

Gradio numbers the functions of a page. If a tab stays open while another page, another version or the program with other flags
takes the address, the same numbers mean other functions: a switch could press the Stop button.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from pathlib import Path

import gradio as gr
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from locales import Translator
from webui import static_files
from webui.gradio_compat import described

HEADER = "x-eichi-build"
# Gradio's routes that call a function of a page, below the page's own path.
EVENTS = re.compile(r"/gradio_api/(?:run|api)(?:/|$)")
# Hexadecimal digits of a build's name; it is no secret.
DIGITS = 32


def build_of(page: gr.Blocks, mode: str, place: str, language: str) -> str:
    """Return a hash that identifies a built page: the same after a plain restart, another one if anything in it differs.

    place: the path at which the page is served, because the same page may have another path in another run.
    """
    seen = json.dumps([mode, place, language, sources(), described(page)], default=str)
    return hashlib.sha256(seen.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]


@cache
def sources() -> str:
    """Return a hash of the sources of `webui`: all Python files and the files of `static/`."""
    folder, found = Path(__file__).parents[1], hashlib.sha256(static_files.version().encode())
    for path in sorted(folder.rglob("*.py")):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


class SameBuild:
    """Answer events with 409 if their tab shows another build than the page at their address (ASGI middleware).

    builds: path of a page, "/" or "/f1/" -> `build_of` it; filled by the time of the first request.
    """

    def __init__(self, app: ASGIApp, builds: Mapping[str, str], t: Translator):
        self.app, self.builds, self.t = app, builds, t

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse an event of another build with a sentence; pass on all other requests."""
        if scope["type"] == "http" and self._is_foreign(scope):
            sentence = self.t("page.door.build")
            # Gradio's pages show what stands at "error".
            refusal = JSONResponse({"detail": sentence, "error": sentence}, HTTPStatus.CONFLICT)
            await refusal(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _is_foreign(self, scope: Scope) -> bool:
        """Tell whether a request is an event that does not name the build of the page at its address."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        place = max((place for place in self.builds if path.startswith(place)), key=len, default="")
        if not place or not EVENTS.match(path[len(place) - 1 :]):
            return False
        return Headers(scope=scope).get(HEADER) != self.builds[place]
