"""Check a colour profile (ICC.1:2022) by its tables before Little CMS reads it.

Little CMS reads data again for every reference in a table: one whose elements all lie at one place kept it busy for minutes.
Here a profile keeps only the tags that convert a picture's colours to the connection space, and only types of tags whose work
is bounded by their size. The numbers in each tag are counted even if tags share a place, as the three curves of grey do.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

# Largest profile in bytes; those of printers and scanners have up to 4 MB.
MOST_BYTES = 16 * 2**20
# Largest number of tags, Little CMS's own limit (MAX_TABLE_TAG); it rejects a profile with more as broken.
MOST_TAGS = 100
# Largest number of values in all tables and curves. Printers have three tables of 17 ** 4 colours, which are 750,000.
MOST_NUMBERS = 2 * 2**20
# Largest number of points of a curve; ICC.1:2022, 10.10 gives no limit. Scanners write 4096; Little CMS refuses more than this.
MOST_POINTS = 0x7FFF
MOST_CHANNELS = 4

HEAD, ENTRY = 128, 12
# Classes of scanners and cameras, screens, printers and colour spaces; links, names and effects are no device's.
CLASSES = (b"scnr", b"mntr", b"prtr", b"spac")
CURVES = (b"rTRC", b"gTRC", b"bTRC", b"kTRC")
POINTS = (b"wtpt", b"bkpt", b"rXYZ", b"gXYZ", b"bXYZ")
# D2B0 to D2B3, whose elements may be anything, are left out; browsers do not support them either.
TABLES = (b"A2B0", b"A2B1", b"A2B2")
# Number of parameters of each type of parametric curve (table 68).
PARAMETERS = (1, 3, 4, 5, 7)


def judged_profile(data: bytes) -> bytes:
    """Return a profile that keeps only the tags needed to convert a picture's colours.

    Raises ValueError, with the reason in English, if one of them is invalid or they hold more than any device's.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES // 2**20} MB")
    if len(data) < HEAD + 4 or data[36:40] != b"acsp":
        raise ValueError("it is no profile")
    if data[12:16] not in CLASSES:
        raise ValueError("it is of no device")
    (count,) = struct.unpack_from(">I", data, HEAD)
    end = HEAD + 4 + ENTRY * count
    if count > MOST_TAGS or end > len(data):
        raise ValueError(f"it has more than {MOST_TAGS} tags")
    kept, numbers = b"", 0
    for name, at, size in struct.iter_unpack(">4sII", data[HEAD + 4 : end]):
        if name not in (*CURVES, *POINTS, *TABLES, b"chad"):
            continue
        numbers += _numbers(name, memoryview(data)[at : at + size])
        if numbers > MOST_NUMBERS:
            raise ValueError(f"its tables have more than {MOST_NUMBERS} numbers")
        kept += struct.pack(">4sII", name, at, size)
    # Offsets count from the profile's beginning, so the data must stay where they are.
    return data[:HEAD] + struct.pack(">I", len(kept) // ENTRY) + kept + data[HEAD + 4 + len(kept) :]


def _numbers(name: bytes, tag: memoryview) -> int:
    """Return how many numbers a reader makes of a tag. Raises ValueError for an invalid tag."""
    kind = bytes(tag[:4])
    if name in POINTS and kind == b"XYZ " and len(tag) >= 20:
        return 3
    if name == b"chad" and kind == b"sf32" and len(tag) >= 44:
        return len(tag) // 4
    if name in CURVES:
        return _curve(tag)[0]
    if name in TABLES and len(tag) >= 32:
        if kind in (b"mft1", b"mft2"):
            return _old_table(tag, int(kind[3:]))
        if kind == b"mAB ":
            return sum(_stages(tag))
    raise ValueError(f"its tag {name.decode('ascii')} is of another kind, or cut off")


def _curve(data: memoryview) -> tuple[int, int]:
    """Return the count of numbers and the bytes of a curve (10.6, 10.18). Raises ValueError."""
    kind, count, function = bytes(data[:4]), 0, 0
    if len(data) >= 12:
        (count,), (function,) = struct.unpack_from(">I", data, 8), struct.unpack_from(">H", data, 8)
    if kind == b"curv" and count <= MOST_POINTS and 12 <= (size := 12 + 2 * count) <= len(data):
        return count, size
    if kind == b"para" and function < len(PARAMETERS) and 12 <= (size := 12 + 4 * PARAMETERS[function]) <= len(data):
        return PARAMETERS[function], size
    raise ValueError("a curve is of another kind, or cut off")


def _channels(data: memoryview) -> tuple[int, int]:
    """Return the input and output channels of a table: as many as pictures have, and the connection space's three."""
    into, out = data[8], data[9]
    if not 1 <= into <= MOST_CHANNELS or out != 3:
        raise ValueError(f"a table has {into} channels, and {out} behind it")
    return into, out


def _old_table(tag: memoryview, width: int) -> int:
    """Return the count of numbers in a table of 8 or 16 bits (10.10, 10.11). width: bytes of a number."""
    (into, out), grid, points, start = _channels(tag), tag[10], (256, 256), 48
    if width == 2:
        points, start = struct.unpack_from(">HH", tag.tobytes().ljust(52, b"\0"), 48), 52
    numbers = into * points[0] + grid**into * out + out * points[1]
    if max(points) > MOST_POINTS or start + width * numbers > len(tag):
        raise ValueError("a table is cut off")
    return numbers


def _stages(tag: memoryview) -> Iterator[int]:
    """Yield the count of numbers in each stage of a table with curves around it (10.12), wherever the stages lie."""
    into, out = _channels(tag)
    for place, curves in zip(struct.unpack_from(">5I", tag, 12), (out, 0, out, 0, into), strict=True):
        at = place
        for _ in range(curves if place else 0):
            numbers, size = _curve(tag[at:])
            yield numbers
            at += size + -size % 4
    (table,) = struct.unpack_from(">I", tag, 24)
    if table:
        data = tag[table : table + 20]
        numbers = math.prod(data[:into]) * out
        if len(data) < 20 or data[16] not in (1, 2) or numbers * data[16] > len(tag) - table - 20:
            raise ValueError("a table is cut off")
        yield numbers
