"""Write MP4 files box by box, with tables that no ordinary program would write."""

from __future__ import annotations

import struct


def box(kind: bytes, *content: bytes) -> bytes:
    inside = b"".join(content)
    return struct.pack(">I", 8 + len(inside)) + kind + inside


def full(kind: bytes, *content: bytes) -> bytes:
    """Return a full box with version 0 and no flags."""
    return box(kind, bytes(4), *content)


def table(kind: bytes, *numbers: int) -> bytes:
    return full(kind, struct.pack(f">{len(numbers)}I", *numbers))


MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
FTYP = box(b"ftyp", b"isom\0\0\2\0isommp41")
MDAT = box(b"mdat", bytes(100))


def head(samples: int) -> bytes:
    return full(
        b"mvhd", struct.pack(">4I", 0, 0, 30, samples), b"\0\1\0\0\1\0", bytes(10), MATRIX, bytes(24), struct.pack(">I", 2)
    )


def entry(kind: bytes = b"avc1") -> bytes:
    """Return a sample description table for pictures of 64 x 64 pixels, or with kind "raw " for 8-bit sound."""
    if kind == b"raw ":
        return full(
            b"stsd", struct.pack(">I", 1), box(kind, bytes(7), b"\1", bytes(8), struct.pack(">HHIHH", 1, 8, 0, 8000, 0))
        )
    size = struct.pack(">HHIIIH", 64, 64, 0x480000, 0x480000, 0, 1)
    return full(
        b"stsd", struct.pack(">I", 1), box(kind, bytes(7), b"\1", bytes(16), size, bytes(32), struct.pack(">Hh", 24, -1))
    )


def track(
    samples: int, *more: bytes, size: int = 1, edits: bytes = b"", handler: bytes = b"vide", kind: bytes = b"avc1"
) -> bytes:
    """Return a track of samples that all have one size and lie in one chunk.

    more: further boxes of the sample table. edits: an edit list box.
    """
    tables = box(
        b"stbl",
        entry(kind),
        table(b"stts", 1, samples, 1),
        table(b"stsc", 1, 1, samples, 1),
        table(b"stsz", size, samples),
        table(b"stco", 1, 40),
        *more,
    )
    shown = struct.pack(">5I", 0, 0, 1, 0, samples), bytes(16), MATRIX, struct.pack(">II", 64 << 16, 64 << 16)
    media = box(
        b"mdia",
        full(b"mdhd", struct.pack(">4IHH", 0, 0, 30, samples, 0x55C4, 0)),
        full(b"hdlr", bytes(4), handler, bytes(12), b"x\0"),
        box(
            b"minf",
            full(b"vmhd", bytes(8)),
            box(b"dinf", full(b"dref", struct.pack(">I", 1), box(b"url ", b"\0\0\0\1"))),
            tables,
        ),
    )
    return box(b"trak", box(b"tkhd", b"\0\0\0\7", *shown), edits, media)


def film(samples: int, *more: bytes, **settings) -> bytes:
    return FTYP + box(b"moov", head(samples), track(samples, *more, **settings)) + MDAT
