"""Add up the decoding work of the pictures in a HEIF or AVIF file (ISO/IEC 23008-12), from its head and the coded pictures."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from eichi_utils.files.coded_pictures import Coded, av1_picture, hevc_picture
from eichi_utils.files.film_boxes import box_head

# Largest number of boxes and names in the head. 100 megapixels have 400 tiles of 512 x 512 pixels, each with its own box.
MOST_ITEMS = 20_000
# Largest number of pixels that a library decodes for one picture: libheif does 40 million per second, libavif 20 million of a
# photo and 140 of one colour. This allows 100 million in tiles that reach over the edge, with a telephone's further
# measurements, such as distance, in a quarter of the size; or 60 million with their transparency.
MOST_DECODED = 160_000_000
TOO_LARGE = f"it is made of more than {MOST_DECODED // 10**6} megapixels"
# Starting to decode a picture takes as long as this many pixels.
LEAST = 16_384
# Deepest nesting: a grid of turned tiles, each with its transparency.
DEEPEST = 4
# Largest number of bytes of EXIF and colour profiles, which are copied for each picture that they belong to. A photo has some
# kilobytes.
MOST_COPIED = 64 * 2**20
# Bytes by which a picture's parts may exceed the file, since encoders store equal tiles once.
MOST_SHARED = 16 * 2**20
# Largest number of units of all coded pictures together; one picture has four.
MOST_UNITS = 20_000
# Encoders pad a picture's sides to whole blocks of this size.
BLOCK = 64
NESTED = "a picture in it is made of others, and these of others"
MORE_THAN_THE_FILE = "its pictures hold more than the file"


class Tally:
    """Count boxes and names in a head. Raises SyntaxError for more than MOST_ITEMS."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, number: int) -> None:
        """Add `number` to the count. Raises SyntaxError above MOST_ITEMS."""
        self._count += number
        if self._count > MOST_ITEMS:
            raise SyntaxError(f"more than {MOST_ITEMS} boxes and names in its head")


def boxes(data: memoryview, tally: Tally) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the type and content of each box. Raises SyntaxError for too many, or one that is larger than its container."""
    at = 0
    while at + 8 <= len(data):
        tally.add(1)
        kind, begin, size = box_head(data[at : at + 16], len(data) - at)
        if size < begin or struct.unpack_from(">I", data, at)[0] > len(data) - at:
            raise SyntaxError("a box has no room")
        yield kind, data[at + begin : at + size]
        at += size


def check_sides(coded: Coded, said: tuple[int, int]) -> None:
    """Raise SyntaxError if a coded picture is larger than its box says (`said`: width, height).

    libavif decodes it in its own size, and scales it down afterwards.
    """
    if coded.width > said[0] + BLOCK or coded.height > said[1] + BLOCK:
        sides = f"{coded.width} x {coded.height} pixels, and is said to have {said[0]} x {said[1]}"
        raise SyntaxError(f"a picture in it has {sides}")


@dataclass(frozen=True)
class _Work:
    """Hold what decoding an item takes. held: bytes of its frames. packed: bytes that are read for it. pixel: bytes per pixel.

    levels: of items below it. single: whether it is one frame and nothing else.
    """

    pixels: int
    held: int
    packed: int
    pixel: int
    levels: int
    single: bool


class Items:
    """Hold what a file's head says of the pictures (items) in it.

    sides: width and height by item. parts: the items that an item is made of, once for each reference. beside: items decoded
    with it, such as its transparency. kinds: item types. settings: HEVC's, by item. stored: bytes of an item. pieces: where
    these lie, in the file or, if the first number is 1, in a box of the head. about: pairs of items, of which one describes the
    other.

    size: of the file.
    """

    def __init__(self, head: memoryview, file: BinaryIO, size: int):
        self.tally, self.file, self.size, self.inner = Tally(), file, size, memoryview(b"")
        self.stored: dict[int, int] = {}
        self.pieces: dict[int, list[tuple[int, int, int]]] = {}
        self.twice: set[int] = set()
        self.kinds: dict[int, set[bytes]] = {}
        self.settings: dict[int, list[memoryview]] = {}
        self.about: list[tuple[int, int]] = []
        self.sides: dict[int, tuple[int, int]] = {}
        self.parts: dict[int, list[int]] = {}
        self.beside: dict[int, list[int]] = {}
        self.works: dict[int, _Work] = {}
        self.coded: dict[tuple[object, ...], Coded] = {}
        self.units = self.read = 0
        owned: list[tuple[bytes, memoryview]] = []
        properties: list[tuple[int, int]] = []
        for kind, data in boxes(head[4:], self.tally):
            if kind == b"iinf":
                self._kinds(data)
            elif kind == b"iref":
                self._references(data)
            elif kind == b"iloc":
                self._places(data.tobytes())
            elif kind == b"idat":
                self.inner = data
            elif kind == b"iprp":
                for inner, content in boxes(data, self.tally):
                    if inner == b"ipco":
                        owned += boxes(content, self.tally)
                    elif inner == b"ipma":
                        properties += self._properties(content)
        # Profiles of tiles are not copied, since tiles are no pictures of their own.
        tiles = {part for parts in self.parts.values() for part in parts}
        self.copied = sum(self.stored.get(item, 0) for item, _ in self.about)
        for item, number in properties:
            if 0 < number <= len(owned):
                self._own(item, *owned[number - 1], copied=item not in tiles)

    def check(self) -> int:
        """Return the bytes of decoded frames of the largest picture.

        Raises SyntaxError if a picture takes more than MOST_DECODED pixels or is nested deeper than DEEPEST, if descriptions of
        pictures exceed MOST_COPIED, if an item or all parts of a picture are larger than the file, or if a picture is larger
        than its box says.
        """
        if self.copied > MOST_COPIED or max(self.stored.values(), default=0) > self.size:
            raise SyntaxError(MORE_THAN_THE_FILE)
        held = 0
        for item in {*self.kinds, *self.parts, *self.beside}:
            work = self._work(item, 0)
            # A single frame is judged by the picture's size.
            if work.pixels > MOST_DECODED and not work.single:
                raise SyntaxError(TOO_LARGE)
            if work.packed > self.size + MOST_SHARED:
                raise SyntaxError(MORE_THAN_THE_FILE)
            held = max(held, work.held)
        return held

    def _own(self, item: int, kind: bytes, data: memoryview, *, copied: bool) -> None:
        """Read a property of an item (6.5): its size, of which the largest counts, or its settings."""
        if kind == b"ispe" and len(data) >= 12:
            size = struct.unpack_from(">II", data, 4)
            self.sides[item] = max(self.sides.get(item, (0, 0)), size, key=lambda sides: sides[0] * sides[1])
        elif kind == b"hvcC":
            self.settings.setdefault(item, []).append(data)
        self.copied += len(data) if copied else 0

    def _work(self, item: int, above: int) -> _Work:
        """Return what decoding an item takes. Raises SyntaxError if it is nested too deeply."""
        if item not in self.works:
            if above > DEEPEST:
                raise SyntaxError(NESTED)
            made = [self._work(part, above + 1) for part in self.parts.get(item, ())]
            beside = [self._work(part, above + 1) for part in self.beside.get(item, ())]
            levels = 1 + max((work.levels for work in (*made, *beside)), default=-1)
            if levels > DEEPEST:
                raise SyntaxError(NESTED)
            width, height = self.sides.get(item, (0, 0))
            own, pixel = width * height, max((work.pixel for work in made), default=0)
            held, packed = own * pixel, 0
            coded = self._coded(item)
            if coded:
                frame, packed, pixel = coded.width * coded.height, self.stored[item], max(pixel, coded.pixel)
                own, held = max(own, frame, LEAST) * max(coded.frames, 1), held + frame * coded.frames * coded.pixel
            self.works[item] = _Work(
                max(own, LEAST, sum(work.pixels for work in made)) + sum(work.pixels for work in beside),
                held + sum(work.held for work in (*made, *beside)),
                packed + sum(work.packed for work in (*made, *beside)),
                pixel,
                levels,
                not made and not beside and (coded is None or coded.frames <= 1),
            )
        return self.works[item]

    def _coded(self, item: int) -> Coded | None:
        """Return what is coded in an item; None if it is made of others or is no picture. Raises SyntaxError."""
        kinds = self.kinds.get(item, set()) & {b"av01", b"hvc1"}
        if not kinds or not self.stored.get(item):
            return None
        pieces, settings = self.pieces[item], self.settings.get(item, [])
        # Equal tiles may lie at one place, and are read once.
        key = (frozenset(kinds), tuple(pieces), *map(id, settings))
        if key not in self.coded:
            self.read += self.stored[item]
            if self.read > self.size + MOST_SHARED:
                raise SyntaxError(MORE_THAN_THE_FILE)
            content = self._content(item)
            left = MOST_UNITS - self.units
            coded = hevc_picture(settings, content, left) if b"hvc1" in kinds else av1_picture(content, left)
            self.units += coded.units
            self.coded[key] = coded
        coded = self.coded[key]
        check_sides(coded, self.sides.get(item, (0, 0)))
        return coded

    def _content(self, item: int) -> memoryview:
        """Return an item's bytes. Raises SyntaxError where readers could read different ones."""
        pieces = self.pieces[item]
        if item in self.twice or any(method > 1 or (not length and len(pieces) > 1) for method, _, length in pieces):
            raise SyntaxError("the place of a picture in it is not clear")
        result = bytearray()
        for method, at, length in pieces:
            if method:
                part = bytes(self.inner[at : at + length])
            else:
                self.file.seek(min(at, self.size))
                part = self.file.read(length or -1)
            if len(part) < length:
                raise SyntaxError("a picture in it is cut off")
            result += part
        return memoryview(result)

    def _kinds(self, data: memoryview) -> None:
        """Read the types of items (ISO/IEC 14496-12, 8.11.6). Raises SyntaxError for an overlay.

        The size of an overlay's canvas is stored with the pixels, and no program writes overlays.
        """
        for kind, content in boxes(data[8 if any(data[:1]) else 6 :], self.tally):
            form = {b"\2": ">HxxI", b"\3": ">IxxI"}.get(bytes(content[:1]))
            if kind != b"infe" or not form or len(content) < 4 + struct.calcsize(form):
                continue
            item, number = struct.unpack_from(form, content, 4)
            if (name := number.to_bytes(4, "big")) == b"iovl":
                raise SyntaxError("it is laid of other pictures")
            self.kinds.setdefault(item, set()).add(name)

    def _references(self, data: memoryview) -> None:
        """Read which items are made of which (8.11.12), and which belong to a picture, such as its transparency."""
        width = "I" if any(data[:1]) else "H"
        for kind, content in boxes(data[4:], self.tally):
            head = struct.calcsize(">" + width + "H")
            if kind not in (b"dimg", b"auxl", b"cdsc") or len(content) < head:
                continue
            item, count = struct.unpack_from(f">{width}H", content)
            self.tally.add(count)
            if head + count * struct.calcsize(">" + width) > len(content):
                raise SyntaxError("a box promises more names than it holds")
            names = struct.unpack_from(f">{count}{width}", content, head)
            if kind == b"dimg":
                self.parts.setdefault(item, []).extend(names)
            elif kind == b"cdsc":
                self.about += [(item, name) for name in names]
            else:
                for name in names:
                    self.beside.setdefault(name, []).append(item)

    def _places(self, data: bytes) -> None:
        """Add up the bytes of each item, piece by piece (ISO/IEC 14496-12, 8.11.3). Raises SyntaxError."""
        stream = io.BytesIO(data)

        def number(width: int) -> int:
            part = stream.read(width)
            if len(part) < width:
                raise SyntaxError("a box promises more pieces than it holds")
            return int.from_bytes(part, "big")

        version = number(4) >> 24
        widths = number(2)
        offset, length, base, index = (widths >> shift & 15 for shift in (12, 8, 4, 0))
        for _ in range(number(4 if version == 2 else 2)):
            item = number(4 if version == 2 else 2)
            method = number(2) & 15 if version else 0
            number(2)
            start, pieces = number(base), number(2)
            self.tally.add(1 + pieces)
            if item in self.pieces:
                self.twice.add(item)
            for _ in range(pieces):
                number(index if version else 0)
                at, own = start + number(offset), number(length)
                self.pieces.setdefault(item, []).append((method, at, own))
                # Length 0 means the rest of the file.
                self.stored[item] = self.stored.get(item, 0) + (own or self.size)

    def _properties(self, data: memoryview) -> Iterator[tuple[int, int]]:
        """Yield (item, number of a property) for each property of an item (9.3). Raises SyntaxError."""
        if len(data) < 8:
            return
        form, width = ">IB" if data[0] else ">HB", 1 + (data[3] & 1)
        (count,), at = struct.unpack_from(">I", data, 4), 8
        self.tally.add(count)
        for _ in range(count):
            after = at + struct.calcsize(form)
            item, number = struct.unpack_from(form, data, at) if after <= len(data) else (0, 0)
            at = after + number * width
            if at > len(data):
                raise SyntaxError("a box promises more properties than it holds")
            # The first bit says whether a reader must know the property.
            for (one,) in struct.iter_unpack(">H" if width == 2 else ">B", data[after:at]):
                yield item, one & (0x7FFF if width == 2 else 0x7F)
