"""What the first lines of a request may ask for: addresses of gradio's that are open, their lengths, and parts of files."""

from __future__ import annotations

import re
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers, QueryParams

UPLOAD, PROGRESS = "/gradio_api/upload", "/gradio_api/upload_progress"
FILE = re.compile(r"/gradio_api/file[=/]")
# Routes of gradio 6.31 that no page here uses: they fetch from elsewhere, write files, tell of others' sessions, or are streams
# without an end. No event of ours waits in gradio's queue.
CLOSED = re.compile(
    r"/monitoring\b|/gradio_api/(?:heartbeat|queue/|call/|proxy=|stream|vibe-|undo-vibe|process_recording|custom_component|component_server|dev/|deep_link|"
    r"runs\b|run-history|profiling|file[=/][A-Za-z][A-Za-z0-9+.-]+:)"
)
# The ranges that players and downloads ask for. Of several at once, or of other signs, gradio 6.31 makes an error; whoever asks
# for such gets the whole, as the standard allows.
RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-[0-9]{1,18})")
# Bytes of a path of ours and of a name in it, which is one of a file on many systems; of a path with a file of the user's, as
# long as Linux has them; of what stands behind a question mark. A longer name is an error of the system's, deep inside.
PATH_BYTES, NAME_BYTES, FILE_PATH_BYTES, QUERY_BYTES = 1024, 255, 4096, 2048
# What gradio's pages call an upload or a session by. It is a key of tables that are kept, so it is short.
WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")


def fault(inner: str, query: bytes, headers: Headers) -> tuple[int, str] | None:
    """Return (status, the end of a key such as "page.door.long") for first lines that nobody of ours sends, if they are such.

    inner: the path as the page's own application has it.
    """
    # Programs differ in which of the two counts, so what is one request here is two there (RFC 9112, 6.3).
    if "content-length" in headers and "transfer-encoding" in headers:
        return HTTPStatus.BAD_REQUEST, "framing"
    if not inner.startswith("/"):
        return HTTPStatus.BAD_REQUEST, "path"
    is_file = FILE.match(inner) is not None
    names = [len(name.encode("utf-8", "surrogatepass")) for name in inner.split("/")]
    if sum(names) + len(names) > (FILE_PATH_BYTES if is_file else PATH_BYTES) or len(query) > QUERY_BYTES:
        return HTTPStatus.REQUEST_URI_TOO_LONG, "long"
    if CLOSED.match(inner) or (not is_file and max(names) > NAME_BYTES):
        return HTTPStatus.NOT_FOUND, "closed"
    if inner.rstrip("/") in (UPLOAD, PROGRESS):
        called = QueryParams(query).getlist("upload_id")
        if not all(WORD.fullmatch(name) for name in called):
            return HTTPStatus.BAD_REQUEST, "word"
    return None


def is_range(bounds: str) -> bool:
    """Whether it is a single range, and no end of it comes before its beginning."""
    found = RANGE.fullmatch(bounds)
    return found is not None and not (found[2] and int(found[2]) < int(found[1]))


def place_of(origin: str) -> tuple[str | None, int | None]:
    """Host and port of an origin, without the port that goes without saying."""
    try:
        parts = urlsplit(origin)
        return parts.hostname, None if parts.port in (80, 443) else parts.port
    except ValueError:
        return None, 0
