"""Estimate how much memory decoding a picture takes, and make pictures wait until there is room."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from PIL import Image, TiffImagePlugin

from diffusers_helper.memory.trimming import trim

# Largest memory for decoding pictures, of one or all together. 100 megapixels of three 16-bit colours packed as one piece take
# this much.
MOST_MEMORY = 960 * 2**20
# Memory from this size on is given back to the system at once when it is freed.
LARGE = 64 * 2**20
# Bytes per pixel that Pillow keeps, by mode; 4 in other modes.
PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
RESULT = 4
# Key in a picture's `info` for the bytes that its reader holds besides, as far as the file's parts told.
BESIDE = "bytes_beside"
# Bytes per pixel that readers hold besides while they decode, as measured. libwebp has canvases of the whole animation, libheif
# its own picture and a copy of it in RGB. libavif has such a copy besides its frames, whose size the file's head gives: as much
# as for 16 bits with transparency, or more.
READERS = {"WEBP": 12, "AVIF": 4, "HEIF": 6}
AVIF_FRAME = 8
# Bytes per pixel for a HEIF of more than 8 bits without chroma subsampling, and for its transparency.
DEEP, DEEP_ALPHA = 12, 5


def needed_bytes(picture: Image.Image) -> int:
    """Return the largest number of bytes that loading an opened picture and converting it to RGB takes."""
    beside = picture.info.get(BESIDE, 0)
    pixels = picture.width * picture.height
    own, each = PIXEL.get(picture.mode, 4), READERS.get(picture.format or "", 0)
    if picture.format == "HEIF" and picture.info.get("bit_depth", 8) > 8 and str(picture.info.get("chroma")) != "420":
        each = DEEP + (DEEP_ALPHA if picture.mode.endswith(("A", "a")) else 0)
    if picture.format == "AVIF":
        beside = max(beside, pixels * AVIF_FRAME)
    elif isinstance(picture, TiffImagePlugin.TiffImageFile):
        beside += _piece(picture)
    return pixels * own + max(pixels * each + beside, pixels * RESULT)


def _piece(picture: TiffImagePlugin.TiffImageFile) -> int:
    """Return the packed and unpacked bytes of a strip or tile (TIFF 6.0, sections 3 and 15), which libtiff holds whole."""
    if not picture.tile or picture.tile[0].codec_name != "libtiff":
        return 0
    tags = picture.tag_v2
    bits, samples = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)), tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    # JPEG in YCbCr is unpacked to four bytes per pixel.
    each = max(samples * max(bits) / 8, 4 if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 6 else 0)
    width, height = tags.get(TiffImagePlugin.TILEWIDTH), tags.get(TiffImagePlugin.TILELENGTH)
    sizes = tags.get(TiffImagePlugin.TILEBYTECOUNTS)
    if not width or not height:
        stored = tags.get(TiffImagePlugin.IMAGELENGTH, 0)
        width, height = tags.get(TiffImagePlugin.IMAGEWIDTH, 0), min(tags.get(TiffImagePlugin.ROWSPERSTRIP, stored), stored)
        sizes = tags.get(TiffImagePlugin.STRIPBYTECOUNTS)
    whole = int(width * height * each)
    return whole + min(max(sizes or (0,)), whole)


class Room:
    """Let threads decode pictures in parallel as long as there is memory, in the order in which they came."""

    def __init__(self, size: int):
        self._size = self._free = size
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._mine = threading.local()

    @contextmanager
    def taken(self, need: int) -> Iterator[None]:
        """Wait for `need` bytes of room and hold them during the block. A picture that needs more than all gets all.

        A thread that already holds room gets more without waiting, since two threads could otherwise wait for each other for
        ever.
        """
        if getattr(self._mine, "holds", False):
            yield
            return
        need, turn = min(need, self._size), object()
        with self._changed:
            self._waiting.append(turn)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is turn and self._free >= need)
                self._free -= need
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()
        self._mine.holds = True
        try:
            yield
        finally:
            self._mine.holds = False
            if need >= LARGE:
                trim()
            with self._changed:
                self._free += need
                self._changed.notify_all()


@cache
def room() -> Room:
    """Return the room that all threads of this program share."""
    return Room(MOST_MEMORY)
