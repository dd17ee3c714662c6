"""Set the security headers of every answer: what a browser may do with a page, and with a user's file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from types import MappingProxyType

from starlette.datastructures import MutableHeaders

# Media types of users' files that the browser shows; all others are downloaded, so that none runs with a page's rights.
SHOWN = re.compile(r"(?:image|video|audio)/(?!svg)[a-z0-9.+-]+")
# Headers that an answer with a file may have. Gradio's answer to a range repeats the request's headers, cookies included.
OF_FILES = frozenset(
    b"accept-ranges cache-control content-disposition content-encoding content-length content-range content-type "
    b"etag last-modified vary".split()
)

# Gradio creates functions from strings and sets inline styles; pictures and films also have data: and blob: addresses.
PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
# A browser shows a film in a small page of its own, which has inline styles.
MEDIA_POLICY = "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'; frame-ancestors 'none'"
FILE_POLICY = "sandbox; default-src 'none'; frame-ancestors 'none'"
ALWAYS = MappingProxyType(
    {
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
    }
)
# Only for trustworthy origins (https, loopback): elsewhere browsers ignore the header and warn in the console.
WHERE_TRUSTED = MappingProxyType({"cross-origin-opener-policy": "same-origin"})


def outgoing(raw: Iterable[tuple[bytes, bytes]], of_file: bool, trusted: bool) -> MutableHeaders:
    """Return an application's response headers with the security headers added and unsafe ones (CORS) removed.

    of_file: whether the answer is a user's file. trusted: whether browsers see a trustworthy origin (see WHERE_TRUSTED).
    """
    headers = MutableHeaders(raw=[pair for pair in raw if not pair[0].lower().startswith(b"access-control-")])
    if of_file:
        headers = _as_file(headers)
    headers.setdefault("content-security-policy", PAGE_POLICY)
    for name, value in (ALWAYS | WHERE_TRUSTED if trusted else ALWAYS).items():
        headers[name] = value
    return headers


def _as_file(headers: MutableHeaders) -> MutableHeaders:
    """Return the headers for an answer with a user's file: only those of OF_FILES, and a download if it cannot be shown."""
    headers = MutableHeaders(raw=[pair for pair in headers.raw if pair[0].lower() in OF_FILES])
    shown = SHOWN.fullmatch(headers.get("content-type", "").split(";")[0].strip().lower())
    headers["content-security-policy"] = MEDIA_POLICY if shown else FILE_POLICY
    if not shown:
        said = headers.get("content-disposition", "attachment")
        headers["content-disposition"] = re.sub(r"^\s*inline", "attachment", said)
    return headers
