"""Pictures for eyes: browsers know neither HEIC nor TIFF nor PSD, so pages get a small WebP in place of such a file."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

from anyio import to_thread

from eichi_utils.files.picture_files import SUFFIXES
from eichi_utils.files.pictures import MAX_BYTES, small_picture
from eichi_utils.problems import UserError

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
# Where gradio serves files, in whatever place the pages are mounted.
FILES = "/gradio_api/file="
# How files begin that browsers show, whatever their names say.
KNOWN = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM")
AVIF = (b"avif", b"avis")
# Headers that are about the file itself.
OF_THE_FILE = (b"content-type", b"content-length", b"content-disposition", b"accept-ranges", b"etag", b"last-modified")
# Pixels each way; a place for a picture is smaller, its full view about as large.
SIDE = 1280


class ShownPictures:
    """Look at what gradio's route for files answers, after it has decided who may see which file."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Send) -> None:
        path = unquote(scope.get("path", "")).lower()
        if scope["type"] == "http" and FILES in path and path.endswith(SUFFIXES):
            await self.app(scope, receive, _Answer(send))
        else:
            await self.app(scope, receive, send)


class _Answer:
    """Pass an answer on, or what a browser can show of it: a picture of another kind is collected first."""

    def __init__(self, send: Send):
        self.send, self.passing = send, False
        self.start: Message = {}
        self.body = bytearray()

    async def __call__(self, message: Message) -> None:
        if self.passing:
            await self.send(message)
            return
        if message["type"] == "http.response.start":
            self.start = message
            if message["status"] == 200:
                return
            await self._pass(message)
            return
        if message["type"] != "http.response.body":
            await self._pass(*([self.start] if self.start else []), message)
            return
        self.body += message.get("body", b"")
        more = message.get("more_body", False)
        if not _is_other(self.body) or len(self.body) > MAX_BYTES:
            await self._pass(self.start, {**message, "body": bytes(self.body)})
        elif not more:
            shown = await to_thread.run_sync(_shown, self.body)
            if not shown:
                await self._pass(self.start, {**message, "body": bytes(self.body)})
                return
            headers = [(name, value) for name, value in self.start["headers"] if name.lower() not in OF_THE_FILE]
            headers += [(b"content-type", b"image/webp"), (b"content-length", str(len(shown)).encode())]
            await self._pass({**self.start, "headers": headers}, {**message, "body": shown})

    async def _pass(self, *messages: Message) -> None:
        self.passing = True
        for message in messages:
            await self.send(message)


def _is_other(data: bytearray) -> bool:
    """Whether a file that begins so is no picture that browsers know."""
    return bool(data) and not data.startswith(KNOWN) and data[8:12] not in AVIF


def _shown(data: bytearray) -> bytes:
    """Return the picture as a small WebP, or nothing if it is none."""
    stream = io.BytesIO()
    try:
        small_picture(io.BytesIO(data), SIDE).save(stream, "WEBP", quality=85)
    except UserError:
        return b""
    return stream.getvalue()
