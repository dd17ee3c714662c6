"""Cut the texts out of a Matroska or WebM, so that FFmpeg sees nothing else of it.

This bounds FFmpeg's work: an empty element of three bytes becomes a hundred in FFmpeg, one of ten kilobytes may unpack to ten
megabytes, and each text's name is compared with all before it. The layout is that of RFC 8794 (EBML) and RFC 9559 (Matroska).
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import IO

from eichi_utils.files.film_boxes import DEEPEST, MOST_NAMES, MOST_TEXT_BYTES, MOST_TEXTS, FilmLimitError
from eichi_utils.files.safe_reading import UnsafeError

HEADER, SEGMENT, CLUSTER = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
INFO, TRACKS, TAGS = b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b", b"\x12\x54\xc3\x67"
# IDs of a track, its type (1 is video), and the duration of a frame in nanoseconds.
ENTRY, KIND, DURATION = b"\xae", b"\x83", b"\x23\xe3\x83"
# Denominator of NTSC rates (24000, 30000 and 60000 frames in 1001 seconds); other rates are whole numbers.
NTSC = 1001
TAG, SIMPLE_TAG = b"\x73\x73", b"\x67\xc8"
# FFmpeg names a text by the target and all tags around it, up to a length, and once more if it has a language.
TARGETS, TARGET_TYPE, NAME = b"\x63\xc0", b"\x63\xca", b"\x45\xa3"
LONGEST_NAME, FOR_LANGUAGES = 1024, 2
# Elements whose content is read as if it stood beside them.
OPEN = frozenset((SEGMENT, TRACKS, ENTRY))
# Largest number of elements that are looked at, in some microseconds each. Ten hours of film have 40,000 clusters.
MOST_ELEMENTS = 200_000
# Size of an element whose end is unknown, as in a live recording; its content is read as if it stood beside it.
ENDLESS = 1 << 60


def text_elements(file: IO[bytes]) -> tuple[bytes, float]:
    """Return a Matroska with the same texts and no tracks, and the frames per second of the first video track (0 if unknown).

    Raises OSError, UnsafeError, and FilmLimitError for texts that are valid but too many.
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
    # FFmpeg reads texts until the first cluster.
    content = b"".join((*found.kept, CLUSTER, b"\x80"))
    return b"".join((found.header, SEGMENT, b"\x01", len(content).to_bytes(7, "big"), content)), found.rate


class _Found:
    """Collect what was found in a file so far. shown: whether the current track is video."""

    def __init__(self) -> None:
        self.header, self.rate, self.shown = b"", 0.0, False
        self.kept: list[bytes] = []
        self.size = self.texts = self.names = 0

    def keep(self, kind: bytes, whole: bytes, begin: int) -> None:
        if kind == HEADER:
            self.header = self.header or whole
            return
        self._add(0)
        self.count(memoryview(whole)[begin:])
        self.kept.append(whole)
        self.size += len(whole)

    def count(self, data: memoryview, depth: int = 0, name: int = 0) -> None:
        """Count the texts in an element, and the characters of FFmpeg's names for them. name: characters of the tags around it.

        Raises FilmLimitError, and UnsafeError if elements do not fit into one another.
        """
        for kind, content in _inner(data, depth):
            if kind not in (TAG, SIMPLE_TAG):
                continue
            longer = min(name + _name(kind, content, depth + 1), LONGEST_NAME)
            self._add(longer * FOR_LANGUAGES)
            self.count(content, depth + 1, longer)

    def _add(self, names: int) -> None:
        self.texts, self.names = self.texts + 1, self.names + names
        if self.texts > MOST_TEXTS or self.names > MOST_NAMES:
            raise FilmLimitError("texts", MOST_TEXTS)

    def number(self, kind: bytes, value: int) -> None:
        if kind == KIND:
            self.shown = value == 1
        elif self.shown and value and not self.rate:
            self.rate = float(Fraction(10**9, value).limit_denominator(NTSC))


def _head(head: bytes | memoryview) -> tuple[bytes, int, int] | None:
    """Return an element's ID, the offset of its content, and its size with its head; None if there is no element."""
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


def _inner(data: memoryview, depth: int) -> Iterator[tuple[bytes, memoryview]]:
    """Yield (ID, content) of the elements in one. Raises UnsafeError if they do not fit into it."""
    at = 0
    while at < len(data):
        found = _head(data[at : at + 12])
        if found is None or found[2] > len(data) - at or depth > DEEPEST:
            raise UnsafeError("its texts are damaged")
        kind, begin, size = found
        yield kind, data[at + begin : at + size]
        at += size


def _name(kind: bytes, content: memoryview, depth: int) -> int:
    """Return the characters that a tag adds to the names of the texts in it."""
    if kind == SIMPLE_TAG:
        return 1 + max((len(inside) for name, inside in _inner(content, depth) if name == NAME), default=0)
    targets = (inside for name, inside in _inner(content, depth) if name == TARGETS)
    types = (len(inside) for target in targets for name, inside in _inner(target, depth + 1) if name == TARGET_TYPE)
    return 1 + max(types, default=0)
