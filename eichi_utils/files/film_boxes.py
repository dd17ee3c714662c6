"""Judge an MP4 or MOV by its tables before FFmpeg opens it.

FFmpeg makes an entry of some forty bytes for each frame that a table promises, and a table of frames of one size promises four
milliards of them in twenty bytes. Whatever stands in a file, its tables must fit into their boxes, and what they promise into
the file. The layout is that of ISO/IEC 14496-12 and Apple's QuickTime File Format.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import IO

import numpy

from eichi_utils.files.safe_reading import UnsafeError

# All tracks of 24 hours at 30 frames a second, or of 6 hours with some tracks of sound, twice; FFmpeg takes 150 MB for them.
MOST_SAMPLES = 4_000_000
# An hour in pieces of a second, with sound, has 50,000.
MOST_BOXES = 100_000
# Tables of MOST_SAMPLES, each with its size and two times, and a picture for the cover.
MOST_BYTES = 96 * 2**20
# FFmpeg's own limit.
DEEPEST = 10
# FFmpeg reads sound whose samples last one tick in blocks of so many.
BLOCK = 1024
# Boxes in which FFmpeg looks for others.
CONTAINERS = frozenset(
    b"moov trak mdia minf stbl edts udta mvex moof traf mfra dinf meta ilst wave schi sinf iprp ipco gmhd tref".split()
)
# Tables that begin with a count of entries of one size: bytes of an entry.
ENTRIES = {b"stts": 8, b"ctts": 8, b"stsc": 12, b"stco": 4, b"co64": 8, b"stss": 4, b"stps": 4}
OTHERS = (b"elst", b"stsz", b"stz2", b"trun", b"sidx", b"hdlr", b"stsd", b"cmov")
KNOWN = CONTAINERS | set(ENTRIES) | set(OTHERS)
# Of these kinds each sample is an entry of its own.
NO_SOUND = frozenset((b"vide", b"subp", b"clcp"))
TABLE = re.compile(b"|".join((*ENTRIES, b"elst", b"stsz", b"stz2", b"trun")))


@dataclass
class Track:
    """What a track's tables promise. size: bytes of each sample, 0 where each has its own.

    ticks: how long samples last, the first two numbers. kinds: of media, as handlers name them.
    """

    samples: int = 0
    size: int = 0
    chunks: int = 0
    edits: int = 0
    ticks: list[int] = field(default_factory=list)
    kinds: set[bytes] = field(default_factory=set)

    def in_blocks(self) -> bool:
        """Say whether this is sound that is read in blocks, as sound that is not compressed."""
        return b"soun" in self.kinds and not self.kinds & NO_SOUND and self.ticks == [1]

    def entries(self) -> int:
        """Return how many entries FFmpeg makes, once for each part of an edit list."""
        count = self.samples // BLOCK + self.chunks if self.in_blocks() else self.samples
        return count * max(self.edits, 1)


def check_boxes(file: IO[bytes]) -> None:
    """Refuse a film whose tables promise more than their boxes or the file hold; other kinds of files have no such boxes.

    Takes time in proportion to the tables. Raises OSError or UnsafeError.
    """
    boxes, at, end = _Boxes(), 0, file.seek(0, 2)
    while at + 8 <= end:
        file.seek(at)
        kind, begin, size = box_head(file.read(16), end - at)
        boxes.count_one()
        if size < begin:
            break
        if kind in KNOWN:
            if size > MOST_BYTES:
                raise UnsafeError(f"its tables have {size // 2**20} MB")
            file.seek(at + begin)
            boxes.look(kind, memoryview(file.read(size - begin)), 0)
        at += size
    boxes.check(end)


def box_head(head: bytes | memoryview, left: int) -> tuple[bytes, int, int]:
    """Return the kind of a box, where its content begins, and its size, which is no larger than what is left."""
    size, kind = struct.unpack_from(">I4s", head)
    begin = 8
    if size == 1 and len(head) >= 16:
        (size,) = struct.unpack_from(">Q", head, 8)
        begin = 16
    elif size == 0:
        size = left
    return kind, begin, min(size, left)


class _Boxes:
    """The tables found so far."""

    def __init__(self) -> None:
        # Tables before any track belong to none.
        self.tracks = [Track()]
        self.pieces = self.boxes = 0

    def count_one(self) -> None:
        self.boxes += 1
        if self.boxes > MOST_BOXES:
            raise UnsafeError(f"it has more than {MOST_BOXES} boxes")

    def check(self, size: int) -> None:
        """Compare what all tracks promise with the file's size in bytes."""
        promised = self.pieces + sum(track.entries() for track in self.tracks)
        if promised > MOST_SAMPLES:
            raise UnsafeError(f"its tables promise {promised} frames; at most {MOST_SAMPLES} are read")
        for track in self.tracks:
            if not track.in_blocks() and track.samples * track.size > size:
                raise UnsafeError(f"its tables promise {track.samples} frames, more than the file holds")

    def look(self, kind: bytes, data: memoryview, depth: int) -> None:
        """Take note of a box, and of those in it. Raises UnsafeError."""
        if kind in CONTAINERS:
            self._inside(kind, data, depth)
        elif kind == b"cmov" or (kind == b"stsd" and TABLE.search(data)):
            raise UnsafeError("its tables are packed, or lie where none belong")
        elif kind == b"hdlr":
            self.tracks[-1].kinds.add(bytes(data[8:12]))
        elif len(data) >= 8 and kind not in (b"stsd", b"sidx"):
            self._table(kind, data, self.tracks[-1])
        elif kind == b"sidx" and len(data) >= (at := 30 if bytes(data[:1]) > b"\0" else 22) + 2:
            _fits(kind, struct.unpack_from(">H", data, at)[0] * 12, len(data) - at - 2)

    def _inside(self, kind: bytes, data: memoryview, depth: int) -> None:
        if depth > DEEPEST:
            raise UnsafeError(f"its boxes are nested more than {DEEPEST} levels deep")
        if kind == b"trak":
            self.tracks.append(Track())
        at = 0
        if kind == b"meta":
            # With or without a version before the first box, which is always this one.
            at = max(bytes(data[:64]).find(b"hdlr") - 4, 0)
        while at + 8 <= len(data):
            self.count_one()
            inner, begin, size = box_head(data[at : at + 16], len(data) - at)
            if size < begin:
                return
            if inner in KNOWN:
                self.look(inner, data[at + begin : at + size], depth + 1)
            at += size

    def _table(self, kind: bytes, data: memoryview, track: Track) -> None:
        (count,) = struct.unpack_from(">I", data, 4)
        if kind in ENTRIES:
            _fits(kind, count * ENTRIES[kind], len(data) - 8)
            if kind in (b"stts", b"ctts"):
                pairs = numpy.frombuffer(data[8 : 8 + 8 * count], ">u4").reshape(-1, 2)
                track.samples = max(track.samples, int(pairs[:, 0].sum(dtype=numpy.uint64)))
                track.ticks = pairs[:2, 1].tolist() if kind == b"stts" else track.ticks
            elif kind in (b"stco", b"co64"):
                track.chunks = max(track.chunks, count)
        elif kind == b"elst":
            _fits(kind, count * (20 if data[0] == 1 else 12), len(data) - 8)
            track.edits = max(track.edits, count)
        elif kind == b"trun":
            # Four bytes for each of duration, size, flags and shift that a sample has of its own; it may have none.
            _fits(kind, count * 4 * (data[2] & 0xF).bit_count(), len(data) - 8)
            self.pieces += count
        elif len(data) >= 12:
            size, (count,) = count, struct.unpack_from(">I", data, 8)
            if kind == b"stz2" or not size:
                _fits(kind, count * (data[7] if kind == b"stz2" else 32) // 8, len(data) - 12)
                size = 0
            track.samples, track.size = max(track.samples, count), max(track.size, size)


def _fits(kind: bytes, size: int, room: int) -> None:
    if size > room:
        raise UnsafeError(f"its table {kind.decode()} promises more entries than it holds")
