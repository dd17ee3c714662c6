"""Know before a picture is decoded how much memory that takes, and have pictures wait until there is room for them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from PIL import Image, TiffImagePlugin

from diffusers_helper.memory.trimming import trim

# Of pictures that are being decoded, one or all of them together. 100 megapixels of 16 bits in three colours that are packed as
# one piece take as much.
MOST_MEMORY = 960 * 2**20
# What is freed in larger pieces is given back to the system at once.
LARGE = 64 * 2**20
# Bytes that Pillow keeps for a pixel; 4 in other modes.
PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
RESULT = 4
# Where an opened picture says what its reader will hold besides, as far as the file's parts told.
BESIDE = "bytes_beside"
# What readers hold beside that while they decode, as measured. libwebp has canvases of the whole animation, libheif a picture
# of its own, and a copy of it in RGB. libavif has such a copy beside its frames, which the file's head tells of: as much as one
# of 16 bits with transparency, or more.
READERS = {"WEBP": 12, "AVIF": 4, "HEIF": 6}
AVIF_FRAME = 8
# Of a HEIF with more than 8 bits whose colours are as fine as its light, and of its transparency.
DEEP, DEEP_ALPHA = 12, 5


def needed_bytes(picture: Image.Image) -> int:
    """Return how many bytes an opened picture takes at most while it is loaded and made RGB."""
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
    """Return the bytes of a strip or tile (TIFF 6.0, sections 3 and 15), packed and unpacked, which libtiff holds whole."""
    if not picture.tile or picture.tile[0].codec_name != "libtiff":
        return 0
    tags = picture.tag_v2
    bits, samples = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)), tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    # JPEG in YCbCr is unpacked to four bytes.
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
    """Let threads decode pictures side by side as long as there is room, in the order in which they came."""

    def __init__(self, size: int):
        self._size = self._free = size
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._mine = threading.local()

    @contextmanager
    def taken(self, need: int) -> Iterator[None]:
        """Wait for room of `need` bytes, and hold it; a picture that needs more than there is gets all of it.

        A thread that holds some already gets more without waiting: two that wait for each other would do so for ever.
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
