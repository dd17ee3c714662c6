"""Judge a HEIF file (ISO/IEC 23008-12) by its boxes before libheif decodes it.

A picture may be made of others by name, and libheif decodes what a name means as often as it stands there: five overlays of
five overlays of one picture are a hundred pictures in 1.7 kB. Telephones write grids of some tens of tiles.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

from eichi_utils.files.film_boxes import box_head

# As of an AVIF: what a picture of 100 megapixels in tiles needs is a hundredth.
MOST_BOXES, MOST_HEAD = 64, 8 * 2**20
# In the head. A picture of 100 megapixels has 400 tiles of 512 x 512 pixels, each with a box that tells of it.
MOST_ITEMS = 20_000
# Pixels that one picture may make libheif decode, which does 40 million a second: 100 million in tiles that stand over the
# edge, with what telephones measure beside a photo, like distance, in a quarter of the size.
MOST_DECODED = 160_000_000
# What starting to decode takes is as long as this many pixels.
LEAST = 16_384
# A grid of turned tiles, each with its transparency.
DEEPEST = 4
# Bytes of EXIF and colour profiles, which are copied for each picture that they belong to. A photo has some kilobytes.
MOST_COPIED = 64 * 2**20
NESTED = "a picture in it is made of others, and these of others"


def check_heif(file: BinaryIO) -> None:
    """Refuse a HEIF file that makes much of little; leaves the stream at its beginning.

    Takes time in proportion to its head. Raises SyntaxError.
    """
    size, at, found = file.seek(0, 2), 0, False
    for _ in range(MOST_BOXES):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            break
        kind, begin, length = box_head(head, size - at)
        if length < begin:
            break
        if kind == b"meta":
            found = True
            if length > MOST_HEAD:
                raise SyntaxError(f"a head of more than {MOST_HEAD} bytes")
            file.seek(at + begin)
            _Items(memoryview(file.read(length - begin)), size).check()
        at += length
    else:
        raise SyntaxError(f"more than {MOST_BOXES} boxes")
    if not found:
        raise SyntaxError("it has no head")
    file.seek(0)


class _Items:
    """Hold what the head of a file says of the pictures in it.

    areas: pixels by item. parts: what an item is made of, once for each time it is named. beside: what is decoded with it,
    like its transparency. stored: bytes of an item. about: pairs of items, of which one tells about the other.

    size: of the file.
    """

    def __init__(self, head: memoryview, size: int):
        self.count, self.size = 0, size
        self.stored: dict[int, int] = {}
        self.about: list[tuple[int, int]] = []
        self.areas: dict[int, int] = {}
        self.parts: dict[int, list[int]] = {}
        self.beside: dict[int, list[int]] = {}
        self.decoded: dict[int, tuple[int, int]] = {}
        sizes: list[tuple[int, int]] = []
        properties: list[tuple[int, int]] = []
        for kind, data in self._boxes(head[4:]):
            if kind == b"iinf":
                self._kinds(data)
            elif kind == b"iref":
                self._references(data)
            elif kind == b"iloc":
                self._places(data.tobytes())
            elif kind == b"iprp":
                for inner, content in self._boxes(data):
                    if inner == b"ipco":
                        sizes += [(_area(*one), len(one[1])) for one in self._boxes(content)]
                    elif inner == b"ipma":
                        properties += self._properties(content)
        # Tiles are no pictures of their own.
        tiles = {part for parts in self.parts.values() for part in parts}
        self.copied = sum(self.stored.get(item, 0) for item, _ in self.about)
        for item, number in properties:
            if 0 < number <= len(sizes):
                area, length = sizes[number - 1]
                self.areas[item] = max(self.areas.get(item, 0), area)
                self.copied += 0 if item in tiles else length

    def check(self) -> None:
        """Raise SyntaxError if a picture takes more than MOST_DECODED pixels, or is nested deeper than DEEPEST, or if what is
        told of pictures is more than MOST_COPIED, or an item is larger than the file."""
        if self.copied > MOST_COPIED or max(self.stored.values(), default=0) > self.size:
            raise SyntaxError("its pictures hold more than the file")
        for item in {*self.parts, *self.beside}:
            if self._pixels(item, 0)[0] > MOST_DECODED:
                raise SyntaxError(f"it is made of more than {MOST_DECODED // 10**6} megapixels")

    def _pixels(self, item: int, above: int) -> tuple[int, int]:
        """Return how many pixels an item takes to decode, and how many levels of others are below it."""
        if item not in self.decoded:
            if above > DEEPEST:
                raise SyntaxError(NESTED)
            made = [self._pixels(part, above + 1) for part in self.parts.get(item, ())]
            beside = [self._pixels(part, above + 1) for part in self.beside.get(item, ())]
            levels = 1 + max((below for _, below in (*made, *beside)), default=-1)
            if levels > DEEPEST:
                raise SyntaxError(NESTED)
            own = max(self.areas.get(item, 0), LEAST)
            self.decoded[item] = max(own, sum(pixels for pixels, _ in made)) + sum(pixels for pixels, _ in beside), levels
        return self.decoded[item]

    def _boxes(self, data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
        """Give the kind and content of each box. Raises SyntaxError for many, or if one is larger than what holds it."""
        at = 0
        while at + 8 <= len(data):
            self._count(1)
            kind, begin, size = box_head(data[at : at + 16], len(data) - at)
            if size < begin or struct.unpack_from(">I", data, at)[0] > len(data) - at:
                raise SyntaxError("a box has no room")
            yield kind, data[at + begin : at + size]
            at += size

    def _count(self, number: int) -> None:
        self.count += number
        if self.count > MOST_ITEMS:
            raise SyntaxError(f"more than {MOST_ITEMS} boxes and names in its head")

    def _kinds(self, data: memoryview) -> None:
        """Look at the kinds of items (ISO/IEC 14496-12, 8.11.6). Raises SyntaxError for an overlay.

        How large a canvas an overlay has stands with the pixels, and no program writes them.
        """
        for kind, content in self._boxes(data[8 if any(data[:1]) else 6 :]):
            at = {b"\2": 8, b"\3": 10}.get(bytes(content[:1]))
            if kind == b"infe" and at and bytes(content[at : at + 4]) == b"iovl":
                raise SyntaxError("it is laid of other pictures")

    def _references(self, data: memoryview) -> None:
        """Take note of what is made of what (8.11.12), and of what belongs to a picture, like its transparency."""
        width = "I" if any(data[:1]) else "H"
        for kind, content in self._boxes(data[4:]):
            head = struct.calcsize(">" + width + "H")
            if kind not in (b"dimg", b"auxl", b"cdsc") or len(content) < head:
                continue
            item, count = struct.unpack_from(f">{width}H", content)
            self._count(count)
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
        """Add up how many bytes each item has, piece by piece (ISO/IEC 14496-12, 8.11.3). Raises SyntaxError."""
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
            number((2 if version else 0) + 2 + base)
            pieces = number(2)
            self._count(1 + pieces)
            for _ in range(pieces):
                number((index if version else 0) + offset)
                # No length is the rest of the file.
                self.stored[item] = self.stored.get(item, 0) + (number(length) or self.size)

    def _properties(self, data: memoryview) -> Iterator[tuple[int, int]]:
        """Give (item, number of a property) of each property that an item has (9.3)."""
        if len(data) < 8:
            return
        form, width = ">IB" if data[0] else ">HB", 1 + (data[3] & 1)
        (count,), at = struct.unpack_from(">I", data, 4), 8
        self._count(count)
        for _ in range(count):
            after = at + struct.calcsize(form)
            item, number = struct.unpack_from(form, data, at) if after <= len(data) else (0, 0)
            at = after + number * width
            if at > len(data):
                raise SyntaxError("a box promises more properties than it holds")
            # The first bit says whether a reader must know the property.
            for (one,) in struct.iter_unpack(">H" if width == 2 else ">B", data[after:at]):
                yield item, one & (0x7FFF if width == 2 else 0x7F)


def _area(kind: bytes, data: memoryview) -> int:
    """Return the pixels that a property says (6.5.3); 0 of another property."""
    if kind != b"ispe" or len(data) < 12:
        return 0
    width, height = struct.unpack_from(">II", data, 4)
    return width * height
