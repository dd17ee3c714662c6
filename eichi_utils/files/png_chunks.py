"""Read the texts of a PNG without decoding its pixels, each under a limit.

Pillow refuses a whole picture for one text of more than a megabyte, and decodes all pixels before it reads a text after them.
Here a text is at most as large as its limit, however well it is packed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from eichi_utils.files.safe_reading import UnsafeError, open_regular

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Largest size in bytes of a text and of all texts; other programs write graphs of up to five megabytes.
MOST_TEXT, MOST_TEXTS = 6 * 2**20, 16 * 2**20
# Largest number of chunks. A chunk has at least 12 bytes, so more of them are over a megabyte, and no program writes so many.
MOST_CHUNKS = 100_000
TEXT_KINDS = (b"tEXt", b"zTXt", b"iTXt")


@dataclass
class PngTexts:
    """Hold the texts of a PNG.

    texts: keyword -> text. exif: the EXIF block, or b"". too_large: keywords of texts that were left out.
    """

    texts: dict[str, str] = field(default_factory=dict)
    exif: bytes = b""
    too_large: list[str] = field(default_factory=list)


def is_png(path: str | Path) -> bool:
    """Say whether a file begins as a PNG does. Raises OSError or UnsafeError."""
    with open_regular(path) as file:
        return file.read(len(SIGNATURE)) == SIGNATURE


def png_texts(path: str | Path) -> PngTexts:
    """Return the text chunks of a PNG, before and after its pixels.

    A truncated file gives what can be read. Raises OSError, and UnsafeError if it is no PNG or is truncated before any text.
    """
    found, room = PngTexts(), MOST_TEXTS
    with open_regular(path) as file:
        if file.read(len(SIGNATURE)) != SIGNATURE:
            raise UnsafeError("it is no PNG")
        whole = False
        for kind, length in _chunks(file):
            whole = kind == b"IEND"
            if kind not in (*TEXT_KINDS, b"eXIf"):
                continue
            if length > min(room, MOST_TEXT):
                found.too_large.append(_keyword(file.read(80)))
                continue
            data = file.read(length)
            if len(data) < length:
                break
            if kind == b"eXIf":
                found.exif = data
                continue
            name, text, size = _text(kind, data, min(room, MOST_TEXT))
            # Texts that were unpacked and left out count too, because they took time.
            room -= size
            if text is None:
                found.too_large.append(name)
            else:
                found.texts[name] = text
    if not whole and not (found.texts or found.too_large or found.exif):
        raise UnsafeError("it is cut off")
    return found


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield each chunk's type and length, with the file at its data; ends with the file, or after IEND."""
    for _ in range(MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        here = file.tell()
        yield kind, length
        if kind == b"IEND":
            return
        # Four bytes of check sum follow the data.
        file.seek(here + length + 4)


def _keyword(data: bytes) -> str:
    return data.partition(b"\0")[0][:79].decode("latin-1")


def _text(kind: bytes, data: bytes, most: int) -> tuple[str, str | None, int]:
    """Return a chunk's keyword, text and size in bytes (PNG 3rd edition, 11.3.3); None for a text that is too large."""
    keyword, _, rest = data.partition(b"\0")
    name, packed, coding = _keyword(keyword), False, "latin-1"
    if kind == b"zTXt":
        packed, rest = True, rest[1:]
    elif kind == b"iTXt":
        packed, coding = rest[:1] == b"\1", "utf-8"
        rest = rest[2:].split(b"\0", 2)[-1]
    if packed:
        unpacker = zlib.decompressobj()
        try:
            rest = unpacker.decompress(rest, most)
        except zlib.error:
            rest = b""
        if unpacker.unconsumed_tail:
            return name, None, len(rest)
    return name, rest.decode(coding, "replace"), len(rest)
