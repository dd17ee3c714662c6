"""Serve the pages' own scripts, styles and templates from `static/`, and build the calls of their functions.

The scripts' address contains a hash of all files, so that browsers cache them for good and never use an old version.
Styles and templates are sent with the page.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, TypedDict

import gradio as gr
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

FOLDER = Path(__file__).with_name("static")
# Styles of a whole page; others go with the element that they are of.
STYLES = (FOLDER / "style.css", FOLDER / "loras.css")
ADDRESS = "/scripts"
# The first script, which imports the others; and the id of the element with the server's data about a page.
MAIN, PAGE_ELEMENT = "main.js", "eichi-page"
# Hexadecimal digits of a version; it is no secret.
DIGITS = 16
# The cache-control header of scripts: a year in seconds.
FOR_GOOD = "private, max-age=31536000, immutable"


class BrowserEvent(TypedDict):
    """Name the parameters of a gradio event that `IN_BROWSER` sets."""

    fn: None
    api_visibility: Literal["private"]


# Settings of an event that the browser handles alone: its `js` is a `call`.
IN_BROWSER: BrowserEvent = {"fn": None, "api_visibility": "private"}
# The page's head is inserted before the first script; only meta data comes before that.
FIRST_SCRIPT = b"<script"


@cache
def text(name: str) -> str:
    """Return the text of a file of `static/`."""
    return (FOLDER / name).read_text(encoding="utf-8")


@cache
def version() -> str:
    """Return a hash of all files of `static/`."""
    found = hashlib.sha256()
    for path in sorted(FOLDER.iterdir()):
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:DIGITS]


def call(function: str, *data: Any) -> str:
    """Return JavaScript for an event's `js` that calls a function of `eichi` with these data, then with the event's values.

    function: its path below `eichi`, such as "timeline.setPrompt".
    """
    before = "".join(f"{_json(value)}, " for value in data)
    return f"(...values) => eichi.{function}({before}...values)"


def element(name: str, value: Any, function: str, *data: Any, **settings: Any) -> gr.HTML:
    """Return an element with the template NAME.html and the style NAME.css, whose content a function of `eichi` draws.

    The function is called once with gradio's object {element, props, trigger, watch}, then with these data; it watches the
    element's value. settings: of gr.HTML.
    """
    after = "".join(f", {_json(one)}" for one in data)
    style = {"css_template": text(f"{name}.css")} if (FOLDER / f"{name}.css").is_file() else {}
    return gr.HTML(
        value,
        html_template=text(f"{name}.html"),
        js_on_load=f"eichi.{function}({{ element, props, trigger, watch }}{after});",
        **style,
        **settings,
    )


def page_head(front: str, page: Mapping[str, Any]) -> str:
    """Return the HTML at the beginning of a page's head: its data as JSON, and its script.

    front: see `Context`. page: the data, for `page.js`.
    """
    script = f"{front}{ADDRESS}/{version()}/{MAIN}"
    # "</script>" in the data would end the element.
    data = _json(page).replace("<", "\\u003c")
    return (
        f'<script type="application/json" id="{PAGE_ELEMENT}">{data}</script><script type="module" src="{script}"></script>\n'
    )


def add_routes(app: FastAPI) -> None:
    """Add the route that serves the scripts of this version."""
    scripts = {path.name: path.read_bytes() for path in FOLDER.glob("*.js")}

    async def script(name: str) -> Response:
        if name not in scripts:
            return Response(status_code=HTTPStatus.NOT_FOUND)
        # The type is set here: by the system's table, as on Windows, it may be text/plain, which browsers do not run.
        return Response(scripts[name], media_type="text/javascript", headers={"cache-control": FOR_GOOD})

    app.add_api_route(f"{ADDRESS}/{version()}/{{name}}", script)


class PageHeads:
    """Insert this program's head into its pages' HTML, before the first script (ASGI middleware).

    Gradio adds its `head` setting only when its own scripts run, and does not wait for scripts in it; these have to run first.

    heads: path of a page, "/" or "/f1/" -> `page_head`; filled by the time of the first request.
    """

    def __init__(self, app: ASGIApp, heads: Mapping[str, str]):
        self.app, self.heads = app, heads
        # The pages are compressed here, because nothing can be inserted into what gradio has compressed.
        self._packed = GZipMiddleware(self._with_head, compresslevel=5)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request; insert the head if its answer is a page."""
        is_page = scope["type"] == "http" and scope["method"] == "GET" and self._head(scope)
        await (self._packed if is_page else self.app)(scope, receive, send)

    def _head(self, scope: Scope) -> str:
        return self.heads.get(scope["path"].removeprefix(scope.get("root_path", "")), "")

    async def _with_head(self, scope: Scope, receive: Receive, send: Send) -> None:
        plain = [(name, value) for name, value in scope["headers"] if name.lower() != b"accept-encoding"]
        await self.app({**scope, "headers": plain}, receive, _Insert(send, self._head(scope).encode()))


class _Insert:
    """Send an answer on; collect a successful HTML answer and send it with the head inserted."""

    def __init__(self, send: Send, head: bytes):
        self.send, self.head = send, head
        self.start: Message | None = None
        self.body = bytearray()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            is_html = Headers(raw=message["headers"]).get("content-type", "").startswith("text/html")
            if message["status"] == HTTPStatus.OK and is_html:
                self.start = message
                return
        if self.start is None:
            await self.send(message)
            return
        self.body += message.get("body", b"")
        if message.get("more_body", False):
            return
        before, first, after = bytes(self.body).partition(FIRST_SCRIPT)
        body = before + self.head + first + after
        headers = MutableHeaders(raw=list(self.start["headers"]))
        headers["content-length"] = str(len(body))
        await self.send({**self.start, "headers": headers.raw})
        await self.send({"type": "http.response.body", "body": body})


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
