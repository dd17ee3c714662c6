"""Read from coded pictures how much work decoding them is.

A file's boxes give the size in which a picture is shown, but a decoder decodes the size in the coded picture and scales it
afterwards. The layouts are those of the AV1 Bitstream & Decoding Process Specification, and of HEVC (ITU-T H.265).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

# Bytes that are read of a unit: HEVC's settings have the picture's size after at most eight levels of 11 bytes.
HEAD = 256
# Types of AV1 units (6.2.2): a sequence header, and those that start a frame.
SEQUENCE, FRAMES = 1, (3, 6, 7)
# The value that leaves a choice to the frame (AV1, 6.4.1), and the type of frames that always give their own size (7.20).
SELECT, SWITCH = 2, 3
# Type of HEVC's sequence settings (7.4.2.2), and the largest type of a unit with pixels.
HEVC_SEQUENCE, HEVC_PIXELS = 33, 31
# Bytes of an HEVC pixel of 16 bits without chroma subsampling; others have fewer.
HEVC_PIXEL = 6
NO_SETTINGS, CUT_OFF = "a picture in it has no settings that can be read", "a picture in it is cut off"
TOO_MANY = "its pictures are made of too many parts"


@dataclass(frozen=True)
class Coded:
    """Hold the size of what a decoder makes of a coded picture.

    width, height: of its largest frame. frames: how many, some AV1 frames counted as four. pixel: bytes per pixel. units: parts
    of which it is made.
    """

    width: int
    height: int
    frames: int
    pixel: int
    units: int


@dataclass(frozen=True)
class _Sequence:
    """Hold the settings of AV1 frames (5.5). sides: bits of the width and height in a frame that gives its own.

    time, name: bits of a frame's time and number. screen, integer: the choices that may be left to a frame.
    """

    width: int
    height: int
    sides: tuple[int, int]
    reduced: bool
    time: int
    name: int
    screen: int
    integer: int
    pixel: int


class _Bits:
    """Read numbers bit by bit. Raises SyntaxError at the end."""

    def __init__(self, data: bytes | memoryview):
        self._whole, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise SyntaxError(NO_SETTINGS)
        return self._whole >> self._left & (1 << count) - 1

    def variable(self) -> int:
        """Return a number that is preceded by as many zeros as it has bits (ue(v), uvlc())."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)


def av1_picture(data: memoryview, most: int) -> Coded:
    """Return what libavif decodes of a coded picture: all its frames, also those that are never shown.

    Reads only the beginnings of units. Raises SyntaxError for more than `most` units, and for a frame before any settings.
    """
    at = units = frames = width = height = pixel = 0
    sequence = None
    while at < len(data):
        head, units = data[at], units + 1
        at += 2 if head & 4 else 1
        size, at = _length(data, at) if head & 2 else (len(data) - at, at)
        if not 0 <= size <= len(data) - at or units > most:
            raise SyntaxError(CUT_OFF if units <= most else TOO_MANY)
        kind, body = head >> 3 & 15, data[at : at + min(size, HEAD)]
        if kind == SEQUENCE:
            sequence = _av1_sequence(_Bits(body))
            width, height, pixel = max(width, sequence.width), max(height, sequence.height), max(pixel, sequence.pixel)
        elif kind in FRAMES:
            if sequence is None:
                raise SyntaxError(NO_SETTINGS)
            own_width, own_height, times = _frame(_Bits(body), sequence)
            width, height, frames = max(width, own_width), max(height, own_height), frames + times
        at += size
    return Coded(width, height, frames, pixel, units)


def _length(data: memoryview, at: int) -> tuple[int, int]:
    """Return a number of seven bits per byte (AV1, 4.10.5), and the offset after it; -1 if it has no end."""
    number = 0
    for place, byte in enumerate(data[at : at + 8]):
        number |= (byte & 127) << 7 * place
        if byte < 128:
            return number, at + place + 1
    return -1, at


def _av1_sequence(bits: _Bits) -> _Sequence:
    profile, _, reduced = bits.take(3), bits.take(1), bool(bits.take(1))
    time = 0
    if reduced:
        bits.take(5)
    else:
        time = _operating_points(bits)
    sides = bits.take(4) + 1, bits.take(4) + 1
    width, height = bits.take(sides[0]) + 1, bits.take(sides[1]) + 1
    name, screen, integer = 0, SELECT, SELECT
    if not reduced and bits.take(1):
        name = bits.take(4) + bits.take(3) + 3
    bits.take(3)
    if not reduced:
        bits.take(4)
        hints = bits.take(1)
        bits.take(2 * hints)
        screen = SELECT if bits.take(1) else bits.take(1)
        if screen:
            integer = SELECT if bits.take(1) else bits.take(1)
        bits.take(3 * hints)
    bits.take(3)
    # libavif keeps samples of more than 8 bits in two bytes.
    deep = bits.take(1)
    if profile == 2 and deep:
        bits.take(1)
    grey = profile != 1 and bits.take(1)
    return _Sequence(width, height, sides, reduced, time, name, screen, integer, (1 if grey else 3) * (1 + deep))


def _operating_points(bits: _Bits) -> int:
    """Skip an AV1 sequence's times and operating points (5.5.1); return the bits of a frame's time."""
    delay = time = 0
    if bits.take(1):
        bits.take(64)
        equal = bits.take(1)
        if equal:
            bits.variable()
        if bits.take(1):
            delay = bits.take(5) + 1
            bits.take(32 + 5)
            time = 0 if equal else bits.take(5) + 1
            bits.take(5 if equal else 0)
    delayed = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if delay and bits.take(1):
            bits.take(2 * delay + 1)
        if delayed and bits.take(1):
            bits.take(4)
    return time


def _frame(bits: _Bits, sequence: _Sequence) -> tuple[int, int, int]:
    """Return the width and height of an AV1 frame (5.9.2), and how many frames it counts as: 0 if it only shows another one.

    A frame that gives its own size, as layers do, may have any that its numbers can hold: decoders do not compare it with the
    sequence's. If these numbers have no more bits than the sequence's size needs, it is at most twice as wide and high, and
    counts as four frames of the sequence's size.
    """
    if sequence.reduced:
        return sequence.width, sequence.height, 1
    if bits.take(1):
        return 0, 0, 0
    kind, shown = bits.take(2), bits.take(1)
    bits.take(sequence.time if shown else 1)
    if kind != SWITCH and (kind or not shown):
        bits.take(1)
    bits.take(1)
    screen = bits.take(1) if sequence.screen == SELECT else sequence.screen
    if screen and sequence.integer == SELECT:
        bits.take(1)
    bits.take(sequence.name)
    own = kind == SWITCH or bits.take(1)
    if own and sequence.sides != (_bits_of(sequence.width), _bits_of(sequence.height)):
        return 1 << sequence.sides[0], 1 << sequence.sides[1], 1
    return sequence.width, sequence.height, 4 if own else 1


def _bits_of(side: int) -> int:
    """Return the number of bits for sides up to this one; what is stored is the side less one."""
    return max(1, (side - 1).bit_length())


def hevc_picture(settings: Iterable[memoryview], data: memoryview, most: int) -> Coded:
    """Return what libheif decodes of a coded picture: all its frames, of which it shows one.

    settings: contents of `hvcC` boxes (ISO/IEC 14496-15, 8.3.3). data: units, each after its length in four bytes.
    Raises SyntaxError for more than `most` units, and if there are no settings.
    """
    frames, sizes, units = 0, list[tuple[int, int]](), 0
    for unit in chain(*map(_hevc_settings, settings), _hevc_units(data)):
        units += 1
        if units > most:
            raise SyntaxError(TOO_MANY)
        kind = unit[0] >> 1 & 63 if len(unit) > 2 else HEVC_PIXELS + 1
        if kind == HEVC_SEQUENCE:
            sizes.append(_hevc_size(unit))
        elif kind <= HEVC_PIXELS:
            # The first bit after the unit's header marks the first part of a frame.
            frames += unit[2] >> 7
    if not sizes:
        raise SyntaxError(NO_SETTINGS)
    return Coded(max(width for width, _ in sizes), max(height for _, height in sizes), frames, HEVC_PIXEL, units)


def _hevc_units(data: memoryview) -> Iterator[memoryview]:
    """Yield the beginning of each unit."""
    at = 0
    while at + 4 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        at += 4
        if size > len(data) - at:
            raise SyntaxError(CUT_OFF)
        yield data[at : at + min(size, HEAD)]
        at += size


def _hevc_settings(box: memoryview) -> Iterator[memoryview]:
    """Yield the beginning of each unit in a box of settings."""
    # libheif reads only lengths of four bytes.
    if len(box) < 23 or box[21] & 3 != 3:
        raise SyntaxError(NO_SETTINGS)
    at = 23
    for _ in range(box[22]):
        count, at = int.from_bytes(box[at + 1 : at + 3], "big"), at + 3
        for _ in range(count):
            size, at = int.from_bytes(box[at : at + 2], "big"), at + 2
            if size > len(box) - at:
                raise SyntaxError(CUT_OFF)
            yield box[at : at + min(size, HEAD)]
            at += size


def _hevc_size(unit: memoryview) -> tuple[int, int]:
    """Return the width and height in a sequence's settings (H.265, 7.3.2.2)."""
    # A byte 3 keeps two zeros from looking like the start of a unit (7.4.1).
    bits = _Bits(unit[2:].tobytes().replace(b"\0\0\3", b"\0\0"))
    bits.take(4)
    layers = bits.take(3)
    # Skips profile and level, of the whole and of each layer (7.3.3).
    bits.take(1 + 88 + 8)
    flags = [(bits.take(1), bits.take(1)) for _ in range(layers)]
    bits.take(2 * (8 - layers) if layers else 0)
    for profile, level in flags:
        bits.take(88 * profile + 8 * level)
    bits.variable()
    if bits.variable() == 3:
        bits.take(1)
    return bits.variable(), bits.variable()
