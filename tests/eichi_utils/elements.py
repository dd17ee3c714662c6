"""Write Matroska files element by element, such as no ordinary program would write."""

from __future__ import annotations


def element(kind: str, *content: bytes) -> bytes:
    """Return an element with an eight-byte size. kind: its identifier in hexadecimal digits."""
    inside = b"".join(content)
    return bytes.fromhex(kind) + b"\x01" + len(inside).to_bytes(7, "big") + inside


def number(kind: str, value: int) -> bytes:
    return element(kind, value.to_bytes(8, "big"))


HEADER = element(
    "1A45DFA3", number("42F2", 4), number("42F3", 8), element("4282", b"matroska"), number("4287", 4), number("4285", 2)
)
INFO = element("1549A966", number("2AD7B1", 1_000_000), element("7BA9", b"a title"))
CLUSTER = element("1F43B675", number("E7", 0))
# A content encoding: the codec's private data is compressed with zlib.
PACKED = element(
    "6D80", element("6240", number("5031", 0), number("5032", 2), number("5033", 0), element("5034", number("4254", 0)))
)


def track(index: int, *more: bytes, codec: bytes = b"V_MPEG4/ISO/AVC") -> bytes:
    """Return a video track of 64 x 64 pixels. more: further elements of the track entry."""
    size = element("E0", number("B0", 64), number("BA", 64))
    return element("AE", number("D7", index), number("73C5", index), number("83", 1), element("86", codec), size, *more)


def tracks(*entries: bytes) -> bytes:
    return element("1654AE6B", *entries)


def tags(*texts: bytes) -> bytes:
    return element("1254C367", element("7373", *texts))


def text(name: bytes, value: bytes) -> bytes:
    return element("67C8", element("45A3", name), element("4487", value))


def matroska(*parts: bytes) -> bytes:
    return HEADER + element("18538067", INFO, *parts)
