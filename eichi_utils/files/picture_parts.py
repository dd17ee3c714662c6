"""Leave out parts of picture files on which readers would spend minutes or gigabytes, and which the picture does not need.

Each walk here is linear in the file's size, and ends at a limit.
"""

from __future__ import annotations

import io
import re
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from eichi_utils.files.colour_profile import MOST_BYTES

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Ranges = tuple[tuple[int, int], ...]

# Largest number of a JPEG's segments. A printer's profile has sixty; more than some hundreds are not written by any program.
MOST_SEGMENTS = 10_000
# Largest number of scans, and of pixels of all components in them. Progressive pictures have ten scans, the best packed ones
# twenty. Each is a pass over all pixels, and takes two seconds per billion pixels; ten scans of a photo go through 14
# components.
MOST_SCANS, MOST_SCANNED = 100, 1_500_000_000
# 100 megapixels decode to 400 MB; more is a scan or an accident, and costs more memory than the model's own buffers.
MAX_PIXELS = 100_000_000
# Bytes of a frame header that are read; components have three bytes each, and pictures have four at most.
MOST_FRAME = 64
# Largest number of a GIF's blocks, 25 MB of comments in blocks of 255 bytes.
MOST_BLOCKS = 100_000
# Largest number of a PSD's resources (usually a hundred, with paths a thousand), and of pixels each way (Photoshop's own
# limit).
MOST_RESOURCES, PSD_SIDE = 10_000, 30_000
# Largest number of boxes, and bytes of a head; 100 megapixels in tiles need a hundredth.
MOST_BOXES, MOST_HEAD = 64, 8 * 2**20

# JPEG markers (ITU-T T.81, table B.1) that are followed by a length, for Pillow and libjpeg alike.
WITH_LENGTH = frozenset((*range(0xC0, 0xC8), *range(0xC9, 0xD0), *range(0xDA, 0xF0), 0xFE))
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
# Markers of frames with Huffman or arithmetic codes, in one scan or progressive; and the progressive ones.
FRAMES, PROGRESSIVE = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA), (0xC2, 0xCA)
# A marker that is no byte 0xFF of the pixels, no restart marker and no padding.
MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
STEP = 2**20

# The resource with the colour profile, 1039.
PSD_PROFILE = b"\x04\x0f"


@dataclass(frozen=True)
class Parts:
    """Describe the part of a file that Pillow gets: a head, then byte ranges (start, end) in the order of reading.

    exif, profile: data from the parts left out that are needed. beside: bytes that the decoder holds besides the picture.
    """

    ranges: Ranges
    exif: bytes = b""
    profile: bytes = b""
    beside: int = 0
    head: bytes = b""

    def stream(self, file: BinaryIO) -> BinaryIO:
        """Return the part of `file` as a stream."""
        return io.BufferedReader(_Spliced(file, self.ranges, self.head))


def jpeg_parts(file: BinaryIO) -> Parts:
    """Keep the segments of a JPEG that its pixels and colours need. Raises SyntaxError for too many segments or scans."""
    size = file.seek(0, io.SEEK_END)
    kept, exif, at, beside = [(0, 2)], b"", 2, 0
    frame = _Frame()
    for _ in range(MOST_SEGMENTS):
        marker, at = _next_marker(file, at)
        if marker in (-1, START_OF_SCAN):
            break
        if marker not in WITH_LENGTH:
            at += 2
            continue
        file.seek(at + 2)
        length = int.from_bytes(file.read(2), "big")
        end = at + 2 + max(length, 2)
        start = file.read(12)
        if marker == 0xE1 and start.startswith(b"Exif\0\0") and not exif:
            file.seek(at + 4)
            exif = file.read(length - 2)
        if marker in FRAMES:
            file.seek(at + 4)
            frame = frame.with_head(marker, file.read(min(length, MOST_FRAME)))
        if _needed(marker, start):
            kept.append((at, min(end, size)))
        at = end
    else:
        raise SyntaxError(f"more than {MOST_SEGMENTS} segments")
    if at < size:
        kept.append((at, size))
        beside = _kept_bytes(file, at, frame)
    return Parts(_joined(kept), exif, beside=beside)


def _needed(marker: int, start: bytes) -> bool:
    """Say whether a segment affects the pixels or their colours. start: the first bytes of its content."""
    if 0xE0 <= marker <= 0xEF or marker == 0xFE:
        return (marker, start[:5]) in ((0xE0, b"JFIF\0"), (0xEE, b"Adobe")) or (marker == 0xE2 and start == b"ICC_PROFILE\0")
    return True


def _next_marker(file: BinaryIO, at: int) -> tuple[int, int]:
    """Return the first marker from an offset on, and its offset; -1 at the file's end. Other bytes between are skipped."""
    last, step = b"", 64
    while True:
        file.seek(at)
        data, step = last + file.read(step), min(4 * step, STEP)
        if found := re.search(rb"\xff([^\x00\xff])", data):
            return found[1][0], at - len(last) + found.start()
        if len(data) <= len(last):
            return -1, at
        at += len(data) - len(last)
        last = data[-1:]


@dataclass(frozen=True)
class _Frame:
    """Hold what a JPEG's frame header says (T.81, B.2.2).

    coefficients: of all components; components with coarser sampling have fewer.
    """

    pixels: int = 0
    components: int = 0
    coefficients: int = 0
    progressive: bool = False

    def with_head(self, marker: int, head: bytes) -> _Frame:
        """Return this frame or the one of another header, whichever is larger."""
        height, width, components = struct.unpack_from(">xHHB", head.ljust(6, b"\0"))
        factors = [(one >> 4, one & 15) for one in head[7 : 6 + 3 * components : 3]]
        most = max((across for across, _ in factors), default=0) * max((down for _, down in factors), default=0)
        numbers = height * width * sum(across * down for across, down in factors) // max(most, 1)
        other = _Frame(height * width, components, numbers, marker in PROGRESSIVE)
        return max(self, other, key=lambda frame: frame.coefficients)

    def kept(self, first: int) -> int:
        """Return the bytes that libjpeg keeps until the last scan: two per coefficient, unless one scan brings them all.

        first: components in the first scan.
        """
        return 2 * self.coefficients if self.progressive or first < self.components else 0


def _kept_bytes(file: BinaryIO, at: int, frame: _Frame) -> int:
    """Return the bytes that libjpeg keeps until the last scan.

    at: offset of the first scan's marker. Raises SyntaxError for more scans than MOST_SCANS, or for too many with so many
    pixels.
    """
    first, scanned = 0, 0
    for components in _scans(file, at):
        first = first or components
        scanned += components * min(frame.pixels, MAX_PIXELS)
        if scanned > MOST_SCANNED:
            raise SyntaxError(f"more scans than pictures of {frame.pixels // 10**6} megapixels have")
    return frame.kept(first)


def _scans(file: BinaryIO, at: int) -> Iterator[int]:
    """Yield the number of components in each scan. Raises SyntaxError for more scans than MOST_SCANS."""
    scans = markers = 0
    while True:
        file.seek(at)
        data = file.read(STEP)
        if len(data) < 2:
            return
        here = 0
        while found := MARKER.search(data, here):
            marker, here = found[1][0], found.end()
            if marker == END_OF_IMAGE:
                return
            if marker in WITH_LENGTH and here + 3 > len(data):
                here = found.start()
                if len(data) < STEP:
                    return
                break
            scans, markers = scans + (marker == START_OF_SCAN), markers + 1
            if scans > MOST_SCANS or markers > MOST_SEGMENTS:
                raise SyntaxError(f"more than {MOST_SCANS} scans")
            if marker == START_OF_SCAN:
                yield data[here + 2]
            if marker in WITH_LENGTH:
                here += max(2, int.from_bytes(data[here : here + 2], "big"))
        else:
            # The data may end inside a marker.
            here = max(here, len(data) - 1)
        at += here


@dataclass(frozen=True)
class Scans:
    """Hold what decoding a JPEG takes: pixels of all components in all scans, bytes kept until the last one, and markers."""

    scanned: int
    kept: int
    markers: int


def jpeg_scans(data: bytes, most: int) -> Scans:
    """Return what decoding a JPEG inside another file takes. Raises SyntaxError for more than `most` markers."""
    frame, components, scanned, markers, at = _Frame(), list[int](), 0, 0, 0
    while found := MARKER.search(data, at):
        marker, at, markers = found[1][0], found.end(), markers + 1
        if markers > most:
            raise SyntaxError("its JPEGs have too many segments")
        if marker == END_OF_IMAGE:
            break
        if marker in FRAMES:
            frame = frame.with_head(marker, data[at + 2 : at + 2 + MOST_FRAME])
        elif marker == START_OF_SCAN:
            components += data[at + 2 : at + 3]
            scanned += sum(components[-1:]) * min(frame.pixels, MAX_PIXELS)
        if marker in WITH_LENGTH:
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return Scans(scanned, frame.kept(sum(components[:1])), markers)


def gif_parts(file: BinaryIO) -> Parts:
    """Keep only the blocks before a GIF's first frame that say how it is shown. Raises SyntaxError for too many blocks."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    data = io.BufferedReader(_Spliced(file, ((0, size),)), STEP)
    flags = data.read(13)[10:11]
    palette = 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0
    data.read(palette)
    kept, at = [(0, min(13 + palette, size))], 13 + palette
    for _ in range(MOST_BLOCKS):
        kind = data.read(1)
        if kind in (b"", b",", b";"):
            break
        if kind != b"!":
            at += 1
            continue
        label, start, at = data.read(1), at, at + 2
        blocks = 0
        while length := data.read(1):
            at += 1
            if length == b"\0":
                break
            at += len(data.read(length[0]))
            blocks += 1
            if blocks > MOST_BLOCKS:
                raise SyntaxError(f"more than {MOST_BLOCKS} blocks")
        if label == b"\xf9" and blocks:
            kept.append((start, at))
    else:
        raise SyntaxError(f"more than {MOST_BLOCKS} blocks")
    if at < size:
        kept.append((at, size))
    return Parts(_joined(kept))


def psd_parts(file: BinaryIO) -> Parts:
    """Leave out a PSD's resources (Adobe Photoshop File Formats Specification), all of which Pillow would keep.

    Raises SyntaxError for too many resources or rows.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(30)
    if len(start) < 30:
        raise SyntaxError("cut off")
    height, width = struct.unpack_from(">II", start, 14)
    (colours,) = struct.unpack_from(">I", start, 26)
    if max(height, width) > PSD_SIDE:
        raise SyntaxError(f"more than {PSD_SIDE} pixels each way")
    # A palette has this size; Pillow reads no such data in other modes.
    palette = start[26:] + file.read(768) if colours == 768 else bytes(4)
    file.seek(30 + colours)
    (length,) = struct.unpack(">I", file.read(4).rjust(4, b"\0"))
    at, profile = 34 + colours, b""
    end = at + length
    for _ in range(MOST_RESOURCES):
        file.seek(at)
        head = file.read(7)
        if at >= end or len(head) < 7:
            break
        # A name, padded with its length to an even number of bytes, and the length of the data.
        at += 6 + (head[6] + 2 & ~1)
        file.seek(at)
        (own,) = struct.unpack(">I", file.read(4).rjust(4, b"\0"))
        if head[4:6] == PSD_PROFILE and own <= MOST_BYTES:
            profile = file.read(own)
        at += 4 + own + own % 2
    else:
        raise SyntaxError(f"more than {MOST_RESOURCES} resources")
    return Parts(((min(end, size), size),), profile=profile, head=start[:26] + palette + bytes(4))


def avif_without_exif(file: BinaryIO) -> BinaryIO:
    """Return an AVIF file whose EXIF item has another type, so that no reader uses it.

    Its rotation is in boxes of its own (ISO/IEC 23008-12, 6.5.10). Raises SyntaxError for too large a head.
    """
    data, at = bytearray(file.read()), 0
    for _ in range(MOST_BOXES):
        length, kind = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8])
        if length == 1:
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        end = min(at + length, len(data)) if length else len(data)
        if end < at + 8:
            break
        if kind in (b"meta", b"moov"):
            if end - at > MOST_HEAD:
                raise SyntaxError(f"a head of more than {MOST_HEAD} bytes")
            _rename_exif(data, at, end)
        at = end
    else:
        raise SyntaxError(f"more than {MOST_BOXES} boxes")
    return io.BytesIO(data)


def _rename_exif(data: bytearray, at: int, end: int) -> None:
    """Change EXIF items' types (ISO/IEC 14496-12, 8.11.6), which are 8 or 10 bytes after the name of their box."""
    while (at := data.find(b"infe", at, end)) >= 0:
        for place in (at + 12, at + 14):
            if data[place : place + 4] == b"Exif" and place + 4 <= end:
                data[place : place + 4] = b"skip"
        at += 4


def _joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return the ranges with adjacent ones merged."""
    result: list[tuple[int, int]] = []
    for start, end in ranges:
        if result and result[-1][1] == start:
            start = result.pop()[0]
        result.append((start, end))
    return tuple(result)


class _Spliced(io.RawIOBase):
    """Read ranges of a file as if they were one stream, after a head."""

    def __init__(self, file: BinaryIO, ranges: tuple[tuple[int, int], ...], head: bytes = b""):
        self._file, self._ranges, self._head, self._at = file, ranges, head, 0
        self._starts = [len(head)]
        for start, end in ranges:
            self._starts.append(self._starts[-1] + end - start)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._starts[-1]}[whence])
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        room = memoryview(buffer)
        number = bisect_right(self._starts, self._at) - 1
        if number == len(self._ranges):
            return 0
        if number < 0:
            data = self._head[self._at : self._at + len(room)]
        else:
            start, end = self._ranges[number]
            first = start + self._at - self._starts[number]
            self._file.seek(first)
            data = self._file.read(min(len(room), end - first))
        room[: len(data)] = data
        self._at += len(data)
        return len(data)
