"""Check a request's address, query and range before its body is read: closed gradio routes, lengths, byte ranges."""

from __future__ import annotations

import re
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers, QueryParams

UPLOAD, PROGRESS = "/gradio_api/upload", "/gradio_api/upload_progress"
FILE = re.compile(r"/gradio_api/file[=/]")
# Routes of gradio 6.31 that no page here uses: they fetch from other hosts, write files, reveal other users' sessions, or are
# endless streams. The queue's routes are closed too, because no event here waits in gradio's queue.
CLOSED = re.compile(
    r"/monitoring\b|/gradio_api/(?:heartbeat|queue/|call/|proxy=|stream|vibe-|undo-vibe|process_recording|custom_component|component_server|dev/|deep_link|"
    r"runs\b|run-history|profiling|file[=/][A-Za-z][A-Za-z0-9+.-]+:)"
)
# The single ranges that players and downloads ask for. Gradio 6.31 fails on several ranges at once and on other characters;
# such requests get the whole file, as the standard allows.
RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-[0-9]{1,18})")
# The most bytes: of a path of this program; of one name in it (the limit of many file systems); of a path that ends in the path
# of a user's file (Linux's PATH_MAX); of a query string. A longer name would raise an OSError deep inside gradio.
PATH_BYTES, NAME_BYTES, FILE_PATH_BYTES, QUERY_BYTES = 1024, 255, 4096, 2048
# The identifiers that gradio's pages give uploads and sessions. Gradio keeps them as keys of tables, so they must be short.
WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")


def fault(inner: str, query: bytes, headers: Headers) -> tuple[int, str] | None:
    """Return why a request's path, query or headers must be refused, or None if this program's pages may send them.

    Returns (status, key), where key is the end of a sentence's key such as "page.door.long".
    inner: the path below its page's own path.
    """
    # Programs differ in which of the two headers counts, so one request could become two behind a proxy (RFC 9112, 6.3).
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
    """Tell whether the value of a Range header is a single range whose end does not come before its beginning."""
    found = RANGE.fullmatch(bounds)
    return found is not None and not (found[2] and int(found[2]) < int(found[1]))


def place_of(origin: str) -> tuple[str | None, int | None]:
    """Return (host, port) of an Origin header. The port is None for 80 and 443; an unreadable origin gives (None, 0)."""
    try:
        parts = urlsplit(origin)
        return parts.hostname, None if parts.port in (80, 443) else parts.port
    except ValueError:
        return None, 0
