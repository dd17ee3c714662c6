"""Cut the texts out of a Matroska or WebM, so that FFmpeg sees nothing else of it.

An empty element of three bytes is a hundred in FFmpeg, one of ten kilobytes may unpack to ten megabytes, and each text's name
is compared with all before it. The layout is that of RFC 8794 (EBML) and RFC 9559 (Matroska).
"""

from __future__ import annotations

from fractions import Fraction
from typing import IO

from eichi_utils.files.film_boxes import DEEPEST, MOST_TEXT_BYTES, MOST_TEXTS, FilmLimitError
from eichi_utils.files.safe_reading import UnsafeError

HEADER, SEGMENT, CLUSTER = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
INFO, TRACKS, TAGS = b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b", b"\x12\x54\xc3\x67"
# Of a track: its kind, 1 for pictures, and how long a frame lasts, in nanoseconds.
ENTRY, KIND, DURATION = b"\xae", b"\x83", b"\x23\xe3\x83"
# Rates are whole numbers or 24000, 30000 and 60000 frames in 1001 seconds.
NTSC = 1001
TAG, SIMPLE_TAG = b"\x73\x73", b"\x67\xc8"
# What stands in these is looked at as if it stood beside them.
OPEN = frozenset((SEGMENT, TRACKS, ENTRY))
# Ten hours have 40,000 clusters, each looked at in some microseconds; behind so many elements no texts are looked for.
MOST_ELEMENTS = 200_000
# An element whose end nobody knows, as of a recording that is being sent: what is in it follows as if beside it.
ENDLESS = 1 << 60


def text_elements(file: IO[bytes]) -> tuple[bytes, float]:
    """Return (a Matroska of the same texts without tracks, frames a second of the first pictures or 0).

    Raises OSError, UnsafeError, and FilmLimitError for texts that are good but too many.
    """
    found, at, end = _Found(), 0, file.seek(0, 2)
    for _ in range(MOST_ELEMENTS):
        file.seek(at)
        if (head := _head(file.read(12))) is None:
            break
        kind, begin, size = head
        if kind in (HEADER, INFO, TAGS):
            if size > MOST_TEXT_BYTES - found.size:
                raise UnsafeError(f"its texts have more than {MOST_TEXT_BYTES // 2**20} MB")
            file.seek(at)
            found.keep(kind, file.read(min(size, end - at)), begin)
        elif kind == ENTRY:
            found.shown = False
        elif kind in (KIND, DURATION) and size - begin <= 8:
            file.seek(at + begin)
            found.number(kind, int.from_bytes(file.read(size - begin), "big"))
        at += begin if kind in OPEN or size == ENDLESS else size
    # FFmpeg looks for texts until the first cluster.
    content = b"".join((*found.kept, CLUSTER, b"\x80"))
    return b"".join((found.header, SEGMENT, b"\x01", len(content).to_bytes(7, "big"), content)), found.rate


class _Found:
    """Count what has been seen of a file so far. shown: whether the track that is being looked at has pictures."""

    def __init__(self) -> None:
        self.header, self.rate, self.shown = b"", 0.0, False
        self.kept: list[bytes] = []
        self.size = self.texts = 0

    def keep(self, kind: bytes, whole: bytes, begin: int) -> None:
        if kind == HEADER:
            self.header = self.header or whole
            return
        self.texts += 1 + _count(memoryview(whole)[begin:], 0)
        _check(self.texts)
        self.kept.append(whole)
        self.size += len(whole)

    def number(self, kind: bytes, value: int) -> None:
        if kind == KIND:
            self.shown = value == 1
        elif self.shown and value and not self.rate:
            self.rate = float(Fraction(10**9, value).limit_denominator(NTSC))


def _head(head: bytes | memoryview) -> tuple[bytes, int, int] | None:
    """(kind, where its content begins, its size with that) of an element; None if it is none."""
    if not head or head[0] < 0x10:
        return None
    width = 9 - head[0].bit_length()
    if len(head) <= width or not head[width]:
        return None
    begin = width + 9 - head[width].bit_length()
    if len(head) < begin:
        return None
    bits = 7 * (begin - width)
    size = int.from_bytes(head[width:begin], "big") & ((1 << bits) - 1)
    return bytes(head[:width]), begin, ENDLESS if size == (1 << bits) - 1 else begin + size


def _count(data: memoryview, depth: int) -> int:
    """Return how many texts stand there. Raises UnsafeError if the elements do not fit into one another."""
    at = count = 0
    while at < len(data):
        found = _head(data[at : at + 12])
        if found is None or found[2] > len(data) - at or depth > DEEPEST:
            raise UnsafeError("its texts are damaged")
        kind, begin, size = found
        if kind in (TAG, SIMPLE_TAG):
            count += 1 + _count(data[at + begin : at + size], depth + 1)
            _check(count)
        at += size
    return count


def _check(texts: int) -> None:
    if texts > MOST_TEXTS:
        raise FilmLimitError("texts", MOST_TEXTS)
