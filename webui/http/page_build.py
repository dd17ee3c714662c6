"""Which page a tab shows, and that its events reach no other.

Gradio knows the functions of a page by their numbers. In a tab that was open while another page, another version or the program
with other flags took the address, the same numbers mean others: a switch's was a Stop button's.
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
# Hexadecimal digits; they are no secret.
DIGITS = 32


def build_of(page: gr.Blocks, mode: str, place: str, language: str) -> str:
    """Return the name of a page as it was built: the same after a plain restart, another one where anything of it is another.

    place: the path at which it is, for the same page may be at one path now and at another one later.
    """
    seen = json.dumps([mode, place, language, sources(), described(page)], default=str)
    return hashlib.sha256(seen.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]


@cache
def sources() -> str:
    """Return a hash of the pages' own sources: the version of what their functions mean, and of what browsers do with them."""
    folder, found = Path(__file__).parents[1], hashlib.sha256(static_files.version().encode())
    for path in sorted(folder.rglob("*.py")):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


class SameBuild:
    """In front of an application: events of a tab that shows another page than the one at their address are answered with 409.

    builds: path of a page, "/" or "/f1/" -> `build_of` it; filled by the time of the first request.
    """

    def __init__(self, app: ASGIApp, builds: Mapping[str, str], t: Translator):
        self.app, self.builds, self.t = app, builds, t

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the event of a page that another has taken the place of, with a sentence; pass on all others."""
        if scope["type"] == "http" and self._is_foreign(scope):
            sentence = self.t("page.door.build")
            # Gradio's pages show what stands at "error".
            refusal = JSONResponse({"detail": sentence, "error": sentence}, HTTPStatus.CONFLICT)
            await refusal(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _is_foreign(self, scope: Scope) -> bool:
        """Whether it is an event, and not one of the page that is at its address."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        place = max((place for place in self.builds if path.startswith(place)), key=len, default="")
        if not place or not EVENTS.match(path[len(place) - 1 :]):
            return False
        return Headers(scope=scope).get(HEADER) != self.builds[place]
