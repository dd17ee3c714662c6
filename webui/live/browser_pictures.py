"""Convert pictures that browsers cannot show (HEIC, TIFF, PSD ...) to a small WebP when a page asks for them."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from anyio import CapacityLimiter, open_file, to_thread

from eichi_utils.files.picture_files import SUFFIXES
from eichi_utils.files.pictures import small_picture
from eichi_utils.problems import UserError

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
# Gradio's route for files, below any page's path.
FILES = "/gradio_api/file="
# First bytes of files that browsers show, whatever their names say.
KNOWN = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM")
AVIF = (b"avif", b"avis")
# Headers that describe the original file.
OF_THE_FILE = (b"content-type", b"content-length", b"content-disposition", b"accept-ranges", b"etag", b"last-modified")
# The longest side in pixels; a form's place for a picture is smaller, its full view about as large.
SIDE = 1280
# Pictures decoded at once. Others wait here, not in threads that gradio needs; `small_picture` itself limits the memory.
AT_ONCE = 2
# The type of an answer that names a file in place of its bytes (ASGI's "Path Send" extension).
BY_NAME = "http.response.pathsend"
STEP = 2**18


class BrowserPictures:
    """Replace pictures in the answers of gradio's route for files (ASGI middleware), which has checked who may see them."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app
        self._decoding = CapacityLimiter(AT_ONCE)

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Send) -> None:
        """Pass on a request; answer one for a picture that browsers cannot show with a WebP."""
        path = unquote(scope.get("path", "")).lower()
        if scope["type"] == "http" and FILES in path and path.endswith(SUFFIXES):
            # With this extension the route names the file instead of reading it.
            scope = {**scope, "extensions": {**(scope.get("extensions") or {}), BY_NAME: {}}}
            send = _Answer(send, self._decoding)
        await self.app(scope, receive, send)


class _Answer:
    """Send an answer on; if it names a picture that browsers cannot show, send a small WebP instead."""

    def __init__(self, send: Send, decoding: CapacityLimiter):
        self.send, self.decoding = send, decoding
        self.start: list[Message] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:
            self.start = [message]
            return
        started, self.start = self.start, []
        shown = b""
        # A refusal may be a file too, but has no held start message.
        if started and message["type"] == BY_NAME and await to_thread.run_sync(_is_other, message["path"]):
            shown = await to_thread.run_sync(_shown, message["path"], limiter=self.decoding)
        if not shown:
            for one in (*started, message):
                await (self._send_file(one["path"]) if one["type"] == BY_NAME else self.send(one))
            return
        headers = [(name, value) for name, value in started[0]["headers"] if name.lower() not in OF_THE_FILE]
        headers += [(b"content-type", b"image/webp"), (b"content-length", str(len(shown)).encode())]
        await self.send({**started[0], "headers": headers})
        await self.send({"type": "http.response.body", "body": shown})

    async def _send_file(self, path: str) -> None:
        async with await open_file(path, "rb") as file:
            while data := await file.read(STEP):
                await self.send({"type": "http.response.body", "body": data, "more_body": True})
        await self.send({"type": "http.response.body", "body": b""})


def _is_other(path: str) -> bool:
    """Tell whether a file's first bytes are of no format that browsers show."""
    with Path(path).open("rb") as file:
        start = file.read(12)
    return bool(start) and not start.startswith(KNOWN) and start[8:12] not in AVIF


def _shown(path: str) -> bytes:
    """Return the picture as a small WebP, or b"" if it cannot be read."""
    stream = io.BytesIO()
    try:
        small_picture(path, SIDE).save(stream, "WEBP", quality=85)
    except UserError:
        return b""
    return stream.getvalue()
