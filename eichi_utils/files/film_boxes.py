"""Check an MP4 or MOV by its tables before FFmpeg opens it, and cut its texts out.

FFmpeg makes an entry of some forty bytes for each frame that a table promises, and twenty bytes of a table can promise four
billion frames of one size. So tables must fit into their boxes, and what they promise into the file. The layout is that of
ISO/IEC 14496-12 and Apple's QuickTime File Format.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Literal

import numpy

from eichi_utils.files.safe_reading import UnsafeError
from eichi_utils.problems import Problem

# Largest number of samples of all tracks: 24 hours at 30 frames per second, or 6 hours with some tracks of sound, twice; FFmpeg
# takes 150 MB for them.
MOST_SAMPLES = 4_000_000
# Largest number of boxes; an hour in fragments of a second, with sound, has 50,000.
MOST_BOXES = 100_000
# Largest box of tables: those of MOST_SAMPLES, each with its size and two times, and a picture for the cover.
MOST_BYTES = 96 * 2**20
# Largest number of tracks, each of which takes FFmpeg up to 20 KB. A telephone's film has a dozen, one with subtitles in all
# languages some forty.
MOST_TRACKS = 64
# Largest number of texts and of characters in their names. FFmpeg compares each name with all before it, which takes seconds
# for 10,000 texts, or for a few with long names.
MOST_TEXTS, MOST_NAMES = 1000, 2**18
# Largest size in bytes of all texts and what belongs to them, such as a cover's picture.
MOST_TEXT_BYTES = 32 * 2**20
# Deepest nesting of boxes, which is FFmpeg's own limit.
DEEPEST = 10
# Samples per block in which FFmpeg reads sound whose samples last one tick.
BLOCK = 1024
# Boxes in which FFmpeg looks for others.
CONTAINERS = frozenset(
    b"moov trak mdia minf stbl edts udta mvex moof traf mfra dinf meta ilst ---- wave schi sinf iprp ipco gmhd tref".split()
)
# Containers whose boxes are texts, and the boxes that hold names of texts.
TEXTS = frozenset((b"udta", b"meta", b"ilst"))
NAMES = (b"keys", b"mean", b"name")
# Boxes in a `moov` and beside it that FFmpeg needs for the texts of the whole film.
KEPT = frozenset((b"mvhd", b"udta", b"meta"))
# Tables that begin with a count of entries of a fixed size -> bytes of an entry.
ENTRIES = {b"stts": 8, b"ctts": 8, b"stsc": 12, b"stco": 4, b"co64": 8, b"stss": 4, b"stps": 4}
# Tables for which FFmpeg allocates by their count alone: offset and bytes of the count in each version of the box, and the
# smallest size of an entry. They hold names of Apple's texts, and pieces of pictures, of which a film's cover has some.
COUNTED = {
    b"keys": (((4, 4),), 8),
    b"iinf": (((4, 2), (4, 4)), 12),
    b"iloc": (((6, 2), (6, 2), (6, 4)), 6),
}
OTHERS = (b"elst", b"stsz", b"stz2", b"trun", b"sidx", b"hdlr", b"stsd", b"cmov", b"mdhd", b"tkhd", b"tfhd", *NAMES)
KNOWN = CONTAINERS | set(ENTRIES) | set(COUNTED) | set(OTHERS)
# Media types other than sound; each of their samples is an entry of its own.
NO_SOUND = frozenset((b"vide", b"subp", b"clcp"))
TABLE = re.compile(b"|".join((*ENTRIES, *COUNTED, b"elst", b"stsz", b"stz2", b"trun")))


class FilmLimitError(UnsafeError):
    """Report what a film has too much of, and the limit."""

    def __init__(self, what: Literal["tracks", "texts", "megapixels"], limit: int):
        super().__init__(f"it has more than {limit} {what}")
        self.what, self.limit = what, limit

    def problem(self, field: str, file: str) -> Problem:
        """Return the problem that tells this in the user's language."""
        values = {"file": file, "limit": self.limit}
        if self.what == "tracks":
            return Problem(field, "film_too_many_tracks", values)
        if self.what == "texts":
            return Problem(field, "film_too_many_texts", values)
        return Problem(field, "film_too_large", values)


@dataclass
class Track:
    """Hold what a track's tables promise.

    size: bytes of each sample, 0 if each has its own. ticks: durations of samples, the first two numbers. kinds: media types,
    as in `hdlr`. scale: ticks per second. duration: of all samples, in ticks. lasts: ticks of each sample in fragments. number:
    the track's id, by which fragments refer to it.
    """

    samples: int = 0
    size: int = 0
    chunks: int = 0
    edits: int = 0
    ticks: list[int] = field(default_factory=list)
    kinds: set[bytes] = field(default_factory=set)
    scale: int = 0
    duration: int = 0
    lasts: int = 0
    number: int = 0

    def in_blocks(self) -> bool:
        """Say whether this is sound that FFmpeg reads in blocks, as it does with uncompressed sound."""
        return b"soun" in self.kinds and not self.kinds & NO_SOUND and self.ticks == [1]

    def rate(self) -> float:
        """Return the samples per second, 0 if unknown."""
        if self.duration:
            return self.samples * self.scale / self.duration
        return self.scale / self.lasts if self.lasts else 0.0

    def entries(self) -> int:
        """Return the number of entries that FFmpeg makes, which are made once for each part of an edit list."""
        count = self.samples // BLOCK + self.chunks if self.in_blocks() else self.samples
        return count * max(self.edits, 1)


def check_boxes(file: IO[bytes]) -> float:
    """Refuse a film whose tables promise more than their boxes or the file hold; files of other formats have no such boxes.

    Takes time in proportion to the tables. Returns the frames per second of the first video track, 0 if unknown. Raises
    OSError, UnsafeError, and FilmLimitError for a film that is valid but too large.
    """
    boxes = _Boxes()
    for kind, _, content in _known(file, boxes):
        boxes.look(kind, content, 0)
    boxes.check(file.seek(0, 2))
    return next((rate for track in boxes.tracks if b"vide" in track.kinds and (rate := track.rate())), 0.0)


def text_boxes(file: IO[bytes]) -> bytes:
    """Return a film with the same texts and no tracks, in which FFmpeg finds nothing to decode.

    file: one that passed `check_boxes`. Raises OSError or UnsafeError.
    """
    kept, size = [], 0
    for kind, whole, content in _known(file, _Boxes(), b"ftyp"):
        if kind == b"moov":
            whole = b"".join(inside for name, inside in _inner(content) if name in KEPT)
            kept.append(struct.pack(">I4s", 8 + len(whole), kind))
        elif kind != b"ftyp" and kind not in KEPT:
            continue
        kept.append(whole)
        size += len(whole)
        if size > MOST_TEXT_BYTES:
            raise UnsafeError(f"its texts have more than {MOST_TEXT_BYTES // 2**20} MB")
    return b"".join(kept)


def _known(file: IO[bytes], boxes: _Boxes, *more: bytes) -> Iterator[tuple[bytes, bytes | memoryview, memoryview]]:
    """Yield (type, whole box, its content) of the file's top-level boxes of known types and of `more`. Counts all boxes."""
    at, end = 0, file.seek(0, 2)
    while at + 8 <= end:
        file.seek(at)
        kind, begin, size = box_head(file.read(16), end - at)
        boxes.count_one()
        if size < begin:
            break
        if kind in KNOWN or kind in more:
            if size > MOST_BYTES:
                raise UnsafeError(f"its tables have {size // 2**20} MB")
            file.seek(at)
            whole = memoryview(file.read(size))
            yield kind, whole, whole[begin:]
        at += size


def _inner(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yield (type, whole box) of the boxes inside one."""
    at = 0
    while at + 8 <= len(data):
        kind, begin, size = box_head(data[at : at + 16], len(data) - at)
        if size < begin:
            return
        yield kind, data[at : at + size]
        at += size


def box_head(head: bytes | memoryview, left: int) -> tuple[bytes, int, int]:
    """Return a box's type, the offset of its content, and its size, cut to the bytes that are left."""
    size, kind = struct.unpack_from(">I4s", head)
    begin = 8
    if size == 1 and len(head) >= 16:
        (size,) = struct.unpack_from(">Q", head, 8)
        begin = 16
    elif size == 0:
        size = left
    return kind, begin, min(size, left)


class _Boxes:
    """Collect the tables found so far."""

    def __init__(self) -> None:
        # The first track takes tables that come before any track.
        self.tracks = [Track()]
        self.pieces = self.boxes = self.texts = self.names = 0

    def count_one(self) -> None:
        self.boxes += 1
        if self.boxes > MOST_BOXES:
            raise UnsafeError(f"it has more than {MOST_BOXES} boxes")

    def check(self, size: int) -> None:
        """Compare what all tracks promise with the file's size in bytes. Raises UnsafeError."""
        promised = self.pieces + sum(track.entries() for track in self.tracks)
        if promised > MOST_SAMPLES:
            raise UnsafeError(f"its tables promise {promised} frames; at most {MOST_SAMPLES} are read")
        for track in self.tracks:
            if not track.in_blocks() and track.samples * track.size > size:
                raise UnsafeError(f"its tables promise {track.samples} frames, more than the file holds")

    def look(self, kind: bytes, data: memoryview, depth: int) -> None:
        """Read a box and those in it. Raises UnsafeError."""
        if kind in COUNTED:
            _check_counted(kind, data)
        if kind in CONTAINERS:
            self._inside(kind, data, depth)
        elif kind == b"cmov" or (kind == b"stsd" and TABLE.search(data)):
            raise UnsafeError("its tables are packed, or lie where none belong")
        elif kind in NAMES:
            self.names += len(data)
            if self.names > MOST_NAMES:
                raise FilmLimitError("texts", MOST_TEXTS)
        elif kind == b"tkhd":
            self.tracks[-1].number = _behind_times(data)
        elif kind == b"mdhd":
            self.tracks[-1].scale = _behind_times(data)
        elif kind == b"tfhd":
            self._piece(data)
        elif kind == b"hdlr":
            self.tracks[-1].kinds.add(bytes(data[8:12]))
        elif len(data) >= 8 and kind not in (b"stsd", b"sidx", *COUNTED):
            self._table(kind, data, self.tracks[-1])
        elif kind == b"sidx" and len(data) >= (at := 30 if bytes(data[:1]) > b"\0" else 22) + 2:
            _fits(kind, struct.unpack_from(">H", data, at)[0] * 12, len(data) - at - 2)

    def _inside(self, kind: bytes, data: memoryview, depth: int) -> None:
        if depth > DEEPEST:
            raise UnsafeError(f"its boxes are nested more than {DEEPEST} levels deep")
        if kind == b"trak":
            self.tracks.append(Track())
            if len(self.tracks) > MOST_TRACKS + 1:
                raise FilmLimitError("tracks", MOST_TRACKS)
        at = 0
        if kind == b"meta":
            at = _first(bytes(data))
        while at + 8 <= len(data):
            self.count_one()
            self.texts += kind in TEXTS
            if self.texts > MOST_TEXTS:
                raise FilmLimitError("texts", MOST_TEXTS)
            inner, begin, size = box_head(data[at : at + 16], len(data) - at)
            if size < begin:
                return
            if inner in KNOWN:
                self.look(inner, data[at + begin : at + size], depth + 1)
            at += size

    def _piece(self, data: memoryview) -> None:
        """Read the duration of a fragment's samples from its `tfhd`, if it is there; optional fields come before it."""
        flags = int.from_bytes(data[1:4], "big")
        at = 8 + 8 * (flags & 1) + 2 * (flags & 2)
        if flags & 8 and len(data) >= at + 4:
            number, lasts = (struct.unpack_from(">I", data, place)[0] for place in (4, at))
            for track in self.tracks:
                track.lasts = lasts if track.number == number else track.lasts

    def _table(self, kind: bytes, data: memoryview, track: Track) -> None:
        (count,) = struct.unpack_from(">I", data, 4)
        if kind in ENTRIES:
            _fits(kind, count * ENTRIES[kind], len(data) - 8)
            if kind in (b"stts", b"ctts"):
                pairs = numpy.frombuffer(data[8 : 8 + 8 * count], ">u4").reshape(-1, 2)
                track.samples = max(track.samples, int(pairs[:, 0].sum(dtype=numpy.uint64)))
                if kind == b"stts":
                    track.ticks = pairs[:2, 1].tolist()
                    track.duration = int(pairs.astype(numpy.uint64).prod(axis=1).sum())
            elif kind in (b"stco", b"co64"):
                track.chunks = max(track.chunks, count)
        elif kind == b"elst":
            _fits(kind, count * (20 if data[0] == 1 else 12), len(data) - 8)
            track.edits = max(track.edits, count)
        elif kind == b"trun":
            # Each sample has four bytes for each of duration, size, flags and shift that is given per sample; there may be
            # none.
            _fits(kind, count * 4 * (data[2] & 0xF).bit_count(), len(data) - 8)
            self.pieces += count
        elif len(data) >= 12:
            size, (count,) = count, struct.unpack_from(">I", data, 8)
            if kind == b"stz2" or not size:
                _fits(kind, count * (data[7] if kind == b"stz2" else 32) // 8, len(data) - 12)
                size = 0
            track.samples, track.size = max(track.samples, count), max(track.size, size)


def _first(data: bytes) -> int:
    """Return the offset of the boxes in a `meta`, with or without a version: they begin at FFmpeg's first `hdlr`."""
    at = data.find(b"hdlr")
    while at % 4 and at >= 0:
        at = data.find(b"hdlr", at + 1)
    return max(at - 4, 0)


def _behind_times(data: memoryview) -> int:
    """Return the number after two times, which have four bytes each, or eight in version 1; 0 if there is none."""
    at = 20 if bytes(data[:1]) == b"\1" else 12
    return int.from_bytes(data[at : at + 4], "big")


def _check_counted(kind: bytes, data: memoryview) -> None:
    """Refuse a table of COUNTED that promises more entries than it holds. Raises UnsafeError."""
    versions, entry = COUNTED[kind]
    at, width = versions[min(data[0] if data else 0, len(versions) - 1)]
    _fits(kind, int.from_bytes(data[at : at + width], "big") * entry, max(len(data) - at - width, 0))


def _fits(kind: bytes, size: int, room: int) -> None:
    if size > room:
        raise UnsafeError(f"its table {kind.decode()} promises more entries than it holds")
