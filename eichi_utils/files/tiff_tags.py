"""Check a TIFF (TIFF 6.0, and BigTIFF) by its tags before Pillow reads it.

Strips and tiles are offsets in the file, and may all be the same: libtiff reads, byte-swaps and unpacks each of them again.
"""

from __future__ import annotations

import io
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import BinaryIO

import numpy
from PIL import ExifTags, TiffTags

from eichi_utils.files.picture_parts import MOST_SCANNED, jpeg_scans

TIFF_MAGICS = (b"MM\0*", b"II*\0", b"MM*\0", b"II\0*", b"MM\0+", b"II+\0")
# Bytes of each tag type; and the types that are strings of bytes.
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
TIFF_BYTES = (1, 2, 7)
# Integer types -> numpy's names. Signed ones are read as unsigned, so that negative numbers are too large to be valid.
WHOLE = {1: "u1", 3: "u2", 4: "u4", 6: "u1", 8: "u2", 9: "u4", 13: "u4", 16: "u8", 17: "u8", 18: "u8"}
# Largest number of tags in a directory and of numbers in all. A TIFF has thirty tags, a camera's a hundred; their numbers say
# where strips are, and become Python's integers.
MOST_TAGS, MOST_NUMBERS = 4096, 8 * 2**20
# Tags that hold the offset of other directories.
GROUPS = (*TiffTags.TAGS_V2_GROUPS, ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop)
# Tags of the compression, and of offsets and lengths, each for strips and for tiles.
COMPRESSION, PLACES, LENGTHS = 259, (273, 324), (279, 325)
PIXEL_TAGS = (COMPRESSION, *PLACES, *LENGTHS)
NOT_PACKED, JPEGS = 1, {6, 7}
# Largest number of strips: rows of a long scan, or of three planes of a picture, each in its own strip. Pillow reads unpacked
# ones one by one, and takes a second for this many.
MOST_STRIPS = 100_000
# Largest number of markers in all JPEGs: 100 megapixels in tiles of 64 x 64 pixels have a dozen each.
MOST_MARKERS = 500_000


@dataclass
class _Pixels:
    """Hold how a directory's pixels are compressed, and the offsets and lengths of their strips."""

    compressions: set[int] = field(default_factory=set)
    places: list[numpy.ndarray] = field(default_factory=list)
    lengths: list[numpy.ndarray] = field(default_factory=list)

    def add(self, tag: int, values: numpy.ndarray) -> None:
        """Add a tag of PIXEL_TAGS. If there are two of a kind, readers may use either, so both count."""
        if tag == COMPRESSION:
            # libtiff takes no compression that is not an integer.
            self.compressions.update(map(int, values[:1]) if len(values) else (-1,))
        else:
            (self.places if tag in PLACES else self.lengths).append(values)

    def check(self, file: BinaryIO, size: int) -> int:
        """Return the bytes that libjpeg keeps. Raises SyntaxError as `check_tiff`.

        For uncompressed pixels Pillow reads as many bytes as are needed, whatever the tags say.
        """
        if max(sum(map(len, self.places)), sum(map(len, self.lengths))) > MOST_STRIPS:
            raise SyntaxError(f"more than {MOST_STRIPS} strips")
        if self.compressions <= {NOT_PACKED}:
            return 0
        if sum(float(lengths.sum(dtype=float)) for lengths in self.lengths) > size:
            raise SyntaxError("its strips hold more than the file")
        return self._jpegs(file, size) if self.compressions & JPEGS else 0

    def _jpegs(self, file: BinaryIO, size: int) -> int:
        # Without a length, libtiff reads to the end of the file.
        pairs = zip_longest(chain(*self.places), chain(*self.lengths), fillvalue=size)
        parts, scanned, kept, left = Counter((int(at), int(length)) for at, length in pairs), 0, 0, MOST_MARKERS
        for (at, length), times in parts.items():
            file.seek(min(at, size))
            scans = jpeg_scans(file.read(length), left)
            left -= scans.markers
            scanned += times * scans.scanned
            if scanned > MOST_SCANNED:
                raise SyntaxError("more scans than pictures have")
            kept = max(kept, scans.kept)
        return kept


def check_tiff(file: BinaryIO) -> int:
    """Return the bytes that libjpeg keeps of a TIFF's JPEGs, and leave the stream at its beginning.

    Looks at every directory that Pillow reads of the first picture: its own, and the groups of tags in it. Raises SyntaxError
    if tags or compressed pixels hold more than the file, or if JPEGs have too many scans for their pixels.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(16)
    order, large = "<" if head[:2] == b"II" else ">", head[2] == 43
    whole = numbers = 0
    place, places = (order + "Q", (4, 13, 16, 18)) if large else (order + "I", (4, 13))
    first = struct.unpack_from(place, head.ljust(16, b"\0"), 8 if large else 4)[0]
    waiting, seen, pixels = [first], set[int](), _Pixels()
    while waiting:
        if (at := waiting.pop()) in seen:
            continue
        seen.add(at)
        for tag, kind, data, length in _tiff_tags(file, order, large, at, size):
            whole += length
            numbers += 0 if kind in TIFF_BYTES else length
            if whole > size or numbers > MOST_NUMBERS:
                raise SyntaxError("its tags hold more than the file")
            if at == first and tag in PIXEL_TAGS:
                pixels.add(tag, _values(file, order, large, kind, data, length))
            if tag not in GROUPS or kind in TIFF_BYTES:
                continue
            if kind not in places:
                raise SyntaxError("the place of a group of tags is written as no place is")
            waiting.append(struct.unpack_from(order + ("I" if kind in (4, 13) else "Q"), data)[0])
    kept = pixels.check(file, size)
    file.seek(0)
    return kept


def _tiff_tags(file: BinaryIO, order: str, large: bool, at: int, size: int) -> Iterable[tuple[int, int, bytes, int]]:
    """Yield each tag of a directory, its type, the bytes in its entry, and the number of bytes that a reader gets for it."""
    if at > size - 8:
        # There is no room for a directory.
        return
    file.seek(at)
    count = struct.unpack(order + ("Q" if large else "H"), file.read(8 if large else 2))[0]
    if count > MOST_TAGS:
        raise SyntaxError(f"more than {MOST_TAGS} tags")
    form, room = (order + "HHQ8s", 8) if large else (order + "HHI4s", 4)
    entries = file.read(struct.calcsize(form) * count)
    for tag, kind, items, data in struct.iter_unpack(
        form, entries[: len(entries) // struct.calcsize(form) * struct.calcsize(form)]
    ):
        length = items * TIFF_SIZES.get(kind, 0)
        if length > room:
            length = min(length, max(0, size - struct.unpack(order + ("Q" if large else "I"), data)[0]))
        yield tag, kind, data, length


def _values(file: BinaryIO, order: str, large: bool, kind: int, data: bytes, length: int) -> numpy.ndarray:
    """Return a tag's integers, none if it has other values. length: of its data in bytes."""
    width = WHOLE.get(kind)
    if not width:
        return numpy.zeros(0, "u8")
    if length > len(data):
        here = file.tell()
        file.seek(struct.unpack(order + ("Q" if large else "I"), data)[0])
        data = file.read(length)
        file.seek(here)
    whole = min(length, len(data)) // int(width[1]) * int(width[1])
    return numpy.frombuffer(data[:whole], order + width)
