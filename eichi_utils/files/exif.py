"""Read the few EXIF tags of a picture that this program uses, each under a limit.

Pillow's reader copies what every tag points to, and sixty thousand tags may point to the same megabyte.
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

from PIL import ExifTags

# Largest number of entries that are read; a camera's directory has 30 to 60.
MOST_ENTRIES = 512
# Largest value in bytes; other programs write graphs of up to five megabytes.
MOST_VALUE = 6 * 2**20
ORIENTATION = ExifTags.Base.Orientation
TEXTS = (ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.ImageDescription)
COMMENT = ExifTags.Base.UserComment
# TIFF 6.0's types of one byte per item, and those of integers.
BYTES, NUMBERS = (1, 2, 7), {3: ("H", 2), 4: ("I", 4), 13: ("I", 4)}


def read_exif(source: bytes | BinaryIO) -> dict[int, int | bytes]:
    """Return the orientation, texts and comment of an EXIF block or a TIFF file by tag; damaged entries are left out."""
    file = io.BytesIO(source.removeprefix(b"Exif\0\0")) if isinstance(source, bytes) else source
    try:
        file.seek(0)
        order = {b"II": "<", b"MM": ">"}.get(file.read(2))
        if order is None:
            return {}
        first = struct.unpack(order + "2xI", file.read(6))[0]
        found = _directory(file, order, first, (ORIENTATION, ExifTags.IFD.Exif, *TEXTS))
        below = found.pop(ExifTags.IFD.Exif, None)
        return found | (_directory(file, order, below, (COMMENT,)) if isinstance(below, int) else {})
    except (struct.error, OSError, ValueError):
        return {}


def orientation_in(source: bytes) -> int:
    """Return the orientation in an EXIF block, 1 to 8; 1 if there is none."""
    value = read_exif(source).get(ORIENTATION)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _directory(file: BinaryIO, order: str, at: int, wanted: tuple[int, ...]) -> dict[int, int | bytes]:
    """Return the wanted entries of one directory (TIFF 6.0, section 2)."""
    file.seek(at)
    count = min(struct.unpack(order + "H", file.read(2))[0], MOST_ENTRIES)
    entries = file.read(12 * count)
    found: dict[int, int | bytes] = {}
    for start in range(0, len(entries) - 11, 12):
        tag, kind, length, value = struct.unpack_from(order + "HHI4s", entries, start)
        if tag not in wanted or tag in found:
            continue
        if kind in NUMBERS and length == 1:
            form, size = NUMBERS[kind]
            found[tag] = struct.unpack(order + form, value[:size])[0]
        elif kind in BYTES and length <= MOST_VALUE:
            if length > 4:
                file.seek(struct.unpack(order + "I", value)[0])
                value = file.read(length)
            found[tag] = value[:length]
    return found
