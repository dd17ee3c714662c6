"""Open picture files of a list of formats, whatever their suffixes are.

Pillow alone would hand PostScript to Ghostscript, read forty formats that nobody tries, and refuse a good PNG for a text of
more than a megabyte. It sees no texts of PNGs here; png_chunks.py reads those.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import BmpImagePlugin, Image, TiffImagePlugin
from pillow_heif import HeifFile, HeifImageFile

from eichi_utils.files.exif import orientation_in, read_exif
from eichi_utils.files.heif_boxes import check_heif
from eichi_utils.files.heif_items import MOST_DECODED
from eichi_utils.files.picture_memory import BESIDE, MOST_MEMORY, needed_bytes, room
from eichi_utils.files.picture_parts import MAX_PIXELS, Parts, avif_without_exif, gif_parts, jpeg_parts, psd_parts
from eichi_utils.files.safe_reading import open_regular
from eichi_utils.files.tiff_tags import TIFF_MAGICS, check_tiff

# Pillow's names of the formats, and their common names; HEIF has a reader of its own.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PSD")
FORMAT_NAMES = "PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, HEIC/HEIF, PSD"
SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif",
    ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif", ".psd",
)  # fmt: skip
# Limits for formats that need more memory per pixel: libwebp holds two canvases, and libavif its own picture besides Pillow's.
# Pillow unpacks run-length encoded BMPs in Python, a fifth of a second per megapixel.
MOST_PIXELS = {"WEBP": 52_000_000, "AVIF": 60_000_000}
MOST_PACKED = 5_000_000
# EXIF orientation -> how a viewer turns the stored picture.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Exceptions that decoders raise for damaged files.
DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, RuntimeError, MemoryError, ArithmeticError,
    AttributeError, AssertionError, struct.error, zlib.error,
)  # fmt: skip

HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
AVIF_BRANDS = {b"avif", b"avis"}
# Bytes of a file's beginning that hold its brands; no program writes twenty of them.
HEAD = 128
# Files with brands (HEIF, AVIF) are read whole before their size is known. One larger than this waits for all the room of
# pictures.
LARGE_FILE = 16 * 2**20
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# Largest chunk that Pillow unpacks (PngImagePlugin.MAX_TEXT_CHUNK); it refuses a picture with a larger one.
MOST_UNPACKED = 2**20
# Largest profile in bytes; those of printers and scanners have up to 4 MB.
MOST_PROFILE = 16 * 2**20
# Largest number of chunks, 150 MB in parts of 1 kB; empty ones would keep a reader busy for minutes.
MOST_CHUNKS = 200_000
# A PNG's samples per pixel by colour type, and the largest number of bytes that zlib can make of one (RFC 1951: 258 of two
# bits).
PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
MOST_INFLATED = 1032


class TooManyPixelsError(Image.DecompressionBombError):
    """Report that a picture has more pixels than are decoded in its format. most: the limit."""

    def __init__(self, width: int, height: int, most: int):
        super().__init__(f"{width} x {height} pixels")
        self.most = most


@contextmanager
def opened(source: str | Path | BinaryIO) -> Iterator[Image.Image]:
    """Open a picture without decoding it, if it has one of the formats that this program reads.

    source: the path of a regular file, or a stream of bytes. Raises UnidentifiedImageError for other formats,
    TooManyPixelsError for more pixels than its format's limit, or one of DAMAGE.
    """
    with ExitStack() as stack:
        file = stack.enter_context(open_regular(source)) if isinstance(source, (str, Path)) else source
        _calm()
        head = file.read(HEAD)
        brands, parts, held = _brands(head), Parts(()), 0
        if brands and file.seek(0, io.SEEK_END) > LARGE_FILE:
            stack.enter_context(room().taken(MOST_MEMORY))
        file.seek(0)
        if brands & HEIF_BRANDS and not brands & AVIF_BRANDS:
            held = check_heif(file)
            picture = stack.enter_context(HeifImageFile(file))
        else:
            form = next((form for form, magics in WATCHED.items() if head.startswith(magics)), "")
            if form == "TIFF":
                held = check_tiff(file)
            elif form:
                parts = WALKS[form](file)
            if brands & AVIF_BRANDS:
                held = check_heif(file)
            if brands:
                form, file = "AVIF", avif_without_exif(file)
            shown = parts.stream(file) if parts.ranges else file
            picture = stack.enter_context(Image.open(shown, formats=(form,) if form else PLAIN_FORMATS))
        if parts.exif:
            picture.info["exif"] = parts.exif
        if parts.profile:
            picture.info["icc_profile"] = parts.profile
        picture.info[BESIDE] = parts.beside + held
        _check_size(picture)
        yield picture


def picture_format(path: str | Path) -> str:
    """Return Pillow's name of a picture file's format, whatever its suffix is; "" if it is none that is read."""
    try:
        with opened(path) as picture:
            return picture.format or ""
    except (*DAMAGE, Image.DecompressionBombError):
        return ""


def orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation of an opened picture, 1 to 8; 1 if there is none that can be read.

    A TIFF gives 1 as well: Pillow turns those itself and reports the upright size from the beginning.
    """
    return orientation_in(picture.info.get("exif") or b"")


def exif(path: str | Path) -> dict[int, int | bytes]:
    """Return a picture's EXIF tags (see exif.py). Raises as `opened`."""
    with opened(path) as picture:
        if picture.format == "TIFF":
            with open_regular(path) as file:
                return read_exif(file)
        if picture.format == "AVIF":
            with open_regular(path) as file:
                check_heif(file)
                return read_exif(HeifFile(file).info.get("exif") or b"")
        return read_exif(picture.info.get("exif") or b"")


def _check_size(picture: Image.Image) -> None:
    width, height = picture.size
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        # Tiles are decoded whole, and those at the edges may be larger than the rest of the picture.
        tile = [picture.tag_v2.get(tag, 0) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)]
        wide, high = (
            -(-side // own) * own if isinstance(own, int) and own > 0 else side
            for side, own in zip(picture.size, tile, strict=True)
        )
        if wide * high > MOST_DECODED:
            raise TooManyPixelsError(wide, high, MAX_PIXELS)
    most = MOST_PIXELS.get(picture.format or "", MAX_PIXELS)
    if picture.format == "BMP" and picture.info.get("compression") in (
        BmpImagePlugin.BmpImageFile.COMPRESSIONS["RLE8"],
        BmpImagePlugin.BmpImageFile.COMPRESSIONS["RLE4"],
    ):
        most = MOST_PACKED
    if width * height > most:
        raise TooManyPixelsError(width, height, most)
    needed = needed_bytes(picture)
    if needed > MOST_MEMORY:
        raise TooManyPixelsError(width, height, width * height * MOST_MEMORY // needed)


def _calm() -> None:
    """Silence Pillow's warning of large pictures for the whole process, since this program has its own limits.

    It stays off: Pillow also warns when pixels are read, and removing the filter would remove it for other threads.
    """
    if not any(form == "ignore" and kind is Image.DecompressionBombWarning for form, _, kind, *_ in warnings.filters):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def _brands(head: bytes) -> set[bytes]:
    """Return the brands in the first box of an MP4-like file (ISO/IEC 14496-12, 4.3); none for other files."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))}


def _png_parts(file: BinaryIO) -> Parts:
    """Choose the parts of a PNG that Pillow gets, and leave the stream at its beginning.

    Raises SyntaxError for more than MOST_CHUNKS chunks, and if pixels must be missing, which Pillow would show as black.
    """
    ranges: list[tuple[int, int]] = []
    exif, profile, profiled, start, at = b"", b"", False, 0, len(PNG_MAGIC)
    packed, unpacked_size = 0, 0
    for _ in range(MOST_CHUNKS):
        file.seek(at)
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            break
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        after = at + 12 + length
        if kind == b"iCCP" and profiled:
            # The first profile counts; unpacking thousands of others would take long.
            hidden = True
        elif kind == b"iCCP":
            profiled = True
            unpacked = _unpacked(file.read(min(length, MOST_PROFILE)))
            hidden = len(unpacked) > MOST_UNPACKED
            profile = unpacked if hidden and len(unpacked) <= MOST_PROFILE else b""
        else:
            # A chunk whose type begins with a small letter is not needed to show the picture, except for frames of animations.
            if kind == b"eXIf" and length <= MOST_UNPACKED:
                exif = file.read(length)
            elif kind == b"IHDR":
                unpacked_size = _png_size(file.read(10))
            elif kind == b"IDAT":
                packed += length
            hidden = kind in PNG_TEXTS or kind == b"eXIf" or (kind[0] & 0x20 and kind != b"fdAT" and length > MOST_UNPACKED)
        if hidden:
            ranges.append((start, at))
            start = after
        at = after
    else:
        raise SyntaxError(f"more than {MOST_CHUNKS} chunks")
    end = file.seek(0, io.SEEK_END)
    if unpacked_size > MOST_INFLATED * min(packed, end):
        raise SyntaxError("most of its pixels are missing")
    file.seek(0)
    return Parts((*ranges, (min(start, end), end)), exif, profile)


def _png_size(head: bytes) -> int:
    """Return the smallest number of bytes of a PNG's unpacked pixels. head: the first 10 bytes of its IHDR."""
    if len(head) < 10:
        return 0
    width, height, bits, colours = struct.unpack(">IIBB", head)
    return width * height * bits * PNG_SAMPLES.get(colours, 0) // 8


def _unpacked(data: bytes) -> bytes:
    """Return the profile in a chunk, cut one byte after the longest that is read; b"" if it is damaged."""
    try:
        # The packed data follow the name, its end and the compression method.
        return zlib.decompressobj().decompress(data[data.find(b"\0") + 2 :], MOST_PROFILE + 1)
    except zlib.error:
        return b""


# Beginnings of files whose parts are examined here; Pillow recognizes the others.
WATCHED = {"PNG": PNG_MAGIC, "JPEG": b"\xff\xd8\xff", "GIF": (b"GIF87a", b"GIF89a"), "TIFF": TIFF_MAGICS, "PSD": b"8BPS"}
WALKS = {"PNG": _png_parts, "JPEG": jpeg_parts, "GIF": gif_parts, "PSD": psd_parts}
PLAIN_FORMATS = ("WEBP", "BMP")
