"""Check a HEIF or AVIF file (ISO/IEC 23008-12) by its boxes before a library decodes it.

A picture may be made of others by reference, and libheif decodes a referenced one each time: five overlays of five overlays of
one picture are a hundred pictures in 1.7 kB. Telephones write grids of some tens of tiles. A coded picture may also be larger
than the boxes say: both libraries decode it whole, and only then look at the size that was wanted.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from eichi_utils.files.coded_pictures import av1_picture
from eichi_utils.files.film_boxes import box_head
from eichi_utils.files.heif_items import MOST_DECODED, MOST_UNITS, TOO_LARGE, Items, Tally, boxes, check_sides
from eichi_utils.files.picture_parts import MOST_BOXES, MOST_HEAD

# Largest number of an animation's frames; libavif makes an entry of 64 bytes for each before it shows the first one.
MOST_FRAMES = 100_000
# Boxes between a track and its tables (ISO/IEC 14496-12, 8.3 to 8.5), and the tables that may be there once.
OUTER = (b"trak", b"mdia", b"minf", b"stbl")
TABLES = (b"tkhd", b"stsd", b"stsz", b"stco", b"co64", b"stsc")


def check_heif(file: BinaryIO) -> int:
    """Refuse a HEIF or AVIF file that would take far more work than its size; leaves the stream at its beginning.

    Returns the bytes of decoded frames of its largest picture. Takes time in proportion to its head. Raises SyntaxError.
    """
    size, at, found, held = file.seek(0, 2), 0, set[bytes](), 0
    for _ in range(MOST_BOXES):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            break
        kind, begin, length = box_head(head, size - at)
        if length < begin:
            break
        if kind in (b"meta", b"moov"):
            if kind in found:
                raise SyntaxError("it has two heads")
            found.add(kind)
            if length > MOST_HEAD:
                raise SyntaxError(f"a head of more than {MOST_HEAD} bytes")
            file.seek(at + begin)
            content = memoryview(file.read(length - begin))
            held = max(held, Items(content, file, size).check() if kind == b"meta" else _check_tracks(content, file, size))
        at += length
    else:
        raise SyntaxError(f"more than {MOST_BOXES} boxes")
    if not found:
        raise SyntaxError("it has no head")
    file.seek(0)
    return held


def _check_tracks(film: memoryview, file: BinaryIO, size: int) -> int:
    """Return the bytes of the first frames of all AV1 tracks. Raises SyntaxError if they are too large."""
    tally, pixels, held, units = Tally(), 0, 0, MOST_UNITS
    for kind, track in boxes(film, tally):
        if kind != b"trak":
            continue
        tables: dict[bytes, memoryview] = {}
        _tables(track, tables, tally)
        if b"av01" not in (kind for kind, _ in boxes(tables.get(b"stsd", memoryview(b""))[8:], tally)):
            continue
        if _frames(tables) > MOST_FRAMES:
            raise SyntaxError(f"more than {MOST_FRAMES} frames")
        at, length = _first_sample(tables)
        if length > size:
            raise SyntaxError("a picture in it is larger than the file")
        file.seek(at)
        coded = av1_picture(memoryview(file.read(length)), units)
        header = tables.get(b"tkhd", memoryview(b""))
        # The sides follow times and numbers, as fixed-point numbers with 16 fraction bits (8.3.2).
        place = 88 if any(header[:1]) else 76
        sides = struct.unpack_from(">HxxHxx", header, place) if len(header) >= place + 8 else (0, 0)
        check_sides(coded, sides)
        area = coded.width * coded.height * coded.frames
        pixels, held, units = pixels + area, held + area * coded.pixel, units - coded.units
    if pixels > MOST_DECODED:
        raise SyntaxError(TOO_LARGE)
    return held


def _tables(data: memoryview, found: dict[bytes, memoryview], tally: Tally) -> None:
    """Collect a track's tables. Raises SyntaxError for a second one of a type."""
    for kind, content in boxes(data, tally):
        if kind in OUTER:
            _tables(content, found, tally)
        elif kind in TABLES:
            if kind in found or {kind, *found} >= {b"stco", b"co64"}:
                raise SyntaxError("a track of it has two tables of a kind")
            found[kind] = content


def _numbers(tables: dict[bytes, memoryview], kind: bytes, form: str, start: int = 4) -> list[tuple[int, ...]]:
    """Return the entries that a table (8.6, 8.7) really holds; their promised count is at `start`."""
    data, each = tables.get(kind, memoryview(b"")), struct.calcsize(form)
    if len(data) < start + 4:
        return []
    (count,) = struct.unpack_from(">I", data, start)
    count = min(count, (len(data) - start - 4) // each)
    return list(struct.iter_unpack(form, data[start + 4 : start + 4 + count * each]))


def _frames(tables: dict[bytes, memoryview]) -> int:
    """Return the number of frames that a track's chunks promise. Raises SyntaxError for chunks out of order."""
    pieces = len(tables.get(b"stco", b"")) // 4 + len(tables.get(b"co64", b"")) // 8
    runs = _numbers(tables, b"stsc", ">III")
    after = [first for first, _, _ in runs[1:]] + [pieces + 1]
    if any(first >= last for (first, _, _), last in zip(runs[:-1], after, strict=False)):
        raise SyntaxError("the pieces of a track are out of order")
    return sum(each * max(0, min(last, pieces + 1) - first) for (first, each, _), last in zip(runs, after, strict=True))


def _first_sample(tables: dict[bytes, memoryview]) -> tuple[int, int]:
    """Return offset and length of a track's first frame; the length is 0 if it has none."""
    places = _numbers(tables, b"stco", ">I") or _numbers(tables, b"co64", ">Q")
    sizes = tables.get(b"stsz", memoryview(b""))
    if not places or len(sizes) < 12:
        return 0, 0
    (same,) = struct.unpack_from(">I", sizes, 4)
    own = _numbers(tables, b"stsz", ">I", 8)
    return places[0][0], same or (own[0][0] if own else 0)
