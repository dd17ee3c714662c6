"""Test HEIF pictures made of others: grids of telephones are read, small files of a thousand pictures are not."""

from __future__ import annotations

import io
import struct
import time
from pathlib import Path

import pytest
from PIL import Image
from pillow_heif import from_pillow

from eichi_utils.files.heif_boxes import MOST_BOXES, check_heif
from eichi_utils.files.heif_items import MOST_ITEMS
from eichi_utils.files.pictures import open_picture
from eichi_utils.problems import UserError
from tests.eichi_utils.boxes import box, full
from tests.eichi_utils.helpers import found

FTYP = box(b"ftyp", b"heic\0\0\0\0mif1heic")
Links = list[tuple[bytes, int, list[int]]]


def coded(side: int) -> tuple[bytes, bytes]:
    """Return the settings box and the coded pixels of a red HEVC picture."""
    stream = io.BytesIO()
    from_pillow(Image.new("RGB", (side, side), (200, 30, 30))).save(stream, quality=50)
    data = stream.getvalue()
    at = data.index(b"hvcC") - 4
    settings = data[at : at + int.from_bytes(data[at : at + 4], "big")]
    return settings, data[data.index(b"mdat") + 4 :]


def heif(side: int, items: list[tuple[bytes, tuple[int, int], bytes]], links: Links, more: bytes = b"") -> bytes:
    """Return a HEIF file whose last item is shown.

    items: kind, size, and bytes; without bytes an item is a coded picture of `side`. links: kind, from, to; items count from 1.
    more: boxes beside those of the head. Equal properties are stored once, as encoders do.
    """
    settings, pixels = coded(side)
    sizes = sorted({size for _, size, _ in items})
    names = b"".join(
        box(b"infe", b"\2\0\0\0" + struct.pack(">HH4s", number, 0, kind) + b"\0") for number, (kind, *_) in enumerate(items, 1)
    )
    content = [data or pixels for *_, data in items]
    gain = full(b"auxC", b"urn:com:apple:photo:2020:aux:hdrgainmap\0")
    aids = {one for kind, one, _ in links if kind == b"auxl"}
    properties = [settings, gain, *(full(b"ispe", struct.pack(">II", *size)) for size in sizes)]
    owned = b""
    for number, (kind, size, _) in enumerate(items, 1):
        own = [3 + sizes.index(size), *([0x81] if kind == b"hvc1" else []), *([2] if number in aids else [])]
        owned += struct.pack(">HB", number, len(own)) + bytes(own)
    references = b"".join(box(kind, struct.pack(f">HH{len(to)}H", one, len(to), *to)) for kind, one, to in links)

    def head(start: int) -> bytes:
        places, known = b"", dict[bytes, int]()
        for number, data in enumerate(content, 1):
            if data not in known:
                known[data] = start
                start += len(data)
            places += struct.pack(">HHHII", number, 0, 1, known[data], len(data))
        return full(
            b"meta",
            full(b"hdlr", bytes(4), b"pict", bytes(13)),
            full(b"pitm", struct.pack(">H", len(items))),
            full(b"iloc", struct.pack(">HH", 0x4400, len(items)), places),
            full(b"iinf", struct.pack(">H", len(items)), names),
            full(b"iref", references),
            box(b"iprp", box(b"ipco", *properties), full(b"ipma", struct.pack(">I", len(items)), owned)),
            more,
        )

    return FTYP + head(len(FTYP) + len(head(0)) + 8) + box(b"mdat", *dict.fromkeys(content))


def grid(across: int, down: int, width: int, height: int) -> bytes:
    return struct.pack(">4BHH", 0, 0, down - 1, across - 1, width, height)


def overlay(count: int) -> bytes:
    return struct.pack(">BB6H", 0, 0, 65535, 65535, 65535, 65535, 64, 64) + struct.pack(">hh", 32, 32) * count


def test_a_telephone_s_grid(tmp_path: Path) -> None:
    """48 tiles, a small picture, and how bright and how far things are: such a file is a photo like any other."""
    tiles = [(b"hvc1", (64, 64), b"")] * 48
    items = [*tiles, *tiles[:4], (b"grid", (500, 370), grid(8, 6, 500, 370))]
    links: Links = [(b"dimg", 53, list(range(1, 49))), (b"thmb", 49, [53]), *((b"auxl", one, [53]) for one in (50, 51, 52))]
    path = tmp_path / "a.heic"
    path.write_bytes(heif(64, items, links))
    picture = open_picture(path)
    assert picture.size == (500, 370)
    assert all(abs(a - b) < 8 for a, b in zip(picture.getpixel((499, 369)), (200, 30, 30), strict=True))


@pytest.mark.slow
def test_overlays_of_overlays(tmp_path: Path) -> None:
    """125 decoded pictures of four megapixels in 1.7 kB took 16 seconds, and an overlay says itself how large it is."""
    items = [(b"hvc1", (2048, 2048), b""), *[(b"iovl", (64, 64), overlay(5))] * 3]
    path = tmp_path / "a.heic"
    path.write_bytes(heif(2048, items, [(b"dimg", number + 1, [number] * 5) for number in (1, 2, 3)]))
    began = time.process_time()
    with pytest.raises(UserError) as raised:
        open_picture(path)
    assert found(raised.value.problems) == {("image", "picture_damaged")}
    assert time.process_time() - began < 0.5


ONE = [(b"hvc1", (4000, 4000), b""), (b"grid", (64, 64), grid(4, 3, 64, 64))]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (heif(64, ONE, [(b"dimg", 2, [1] * 12)]), "megapixels"),
        (heif(64, ONE, [(b"dimg", 2, [1] * 4)] * 3), "megapixels"),
        (heif(64, ONE, [(b"dimg", 2, [1]), *[(b"auxl", 1, [2])] * 11]), "megapixels"),
        (heif(64, [(b"hvc1", (64, 64), b"")] * 2, [(b"dimg", 2, [1] * 10_000)]), "megapixels"),
        (heif(64, ONE, [(b"dimg", 2, [1]), (b"dimg", 1, [2])]), "of others"),
        (heif(64, ONE, [(b"dimg", number + 1, [number]) for number in range(1, 8)]), "of others"),
        (heif(64, ONE, [(b"dimg", 2, [1] * (MOST_ITEMS + 1))]), "more than"),
        (heif(64, ONE, [], more=box(b"free") * MOST_ITEMS), "more than"),
        (heif(64, ONE, [], more=full(b"iref", box(b"dimg", struct.pack(">HHH", 2, 9, 1)))), "promises"),
        (heif(64, ONE, [], more=box(b"iprp", full(b"ipma", struct.pack(">IHB", 1, 1, 9)))), "promises"),
        (heif(64, ONE, [], more=struct.pack(">I4s", 99, b"iref")), "no room"),
        (FTYP + box(b"free") * MOST_BOXES + heif(64, ONE, []), "boxes"),
        (FTYP + struct.pack(">I4s", 9 * 2**20, b"meta") + bytes(9 * 2**20), "bytes"),
    ],
)
def test_what_is_refused(data: bytes, reason: str) -> None:
    """Whatever is named often, by one box or by many, before libheif sees it."""
    with pytest.raises(SyntaxError, match=reason):
        check_heif(io.BytesIO(data))


EXIF = (b"Exif", (64, 64), b"\0\0\0\6Exif\0\0II*\0" + bytes(2**18))


def test_exif_of_many_pictures() -> None:
    """4 MB took 1.7 GB: what tells about 400 pictures, or their profile, was copied for each of them."""
    many = [*[(b"hvc1", (64, 64), b"")] * 300, EXIF, (b"hvc1", (64, 64), b"")]
    about: Links = [(b"cdsc", 301, list(range(1, 301)))]
    check_heif(io.BytesIO(heif(64, many[-2:], [(b"cdsc", 1, [2])])))
    own = b"".join(struct.pack(">HBB", number, 1, 4) for number in range(1, 302))
    profile = box(b"ipco", box(b"colr", b"prof" + bytes(2**18))), full(b"ipma", struct.pack(">I", 301), own)
    piece = struct.pack(">HHHII", 1, 0, 20, 0, 2**18) + struct.pack(">II", 0, 2**18) * 19
    places = full(b"iloc", struct.pack(">HH", 0x4400, 1), piece)
    for data in (heif(64, many, about), heif(64, many[:1], [], more=box(b"iprp", *profile)), heif(64, [EXIF], [], more=places)):
        with pytest.raises(SyntaxError, match="more than the file"):
            check_heif(io.BytesIO(data))


def test_wide_names() -> None:
    """Items may be numbered in four bytes, and properties in two."""
    wide = struct.pack(">IBHH", 70_000, 2, 0x8001, 2)
    more = box(b"iprp", box(b"ipco", full(b"free"), full(b"ispe", struct.pack(">II", 9000, 9000))))
    more += box(b"iprp", box(b"ipma", b"\1\0\0\1" + struct.pack(">I", 1) + wide))
    more += box(b"iref", b"\1\0\0\0", box(b"dimg", struct.pack(">IHII", 80_000, 2, 70_000, 70_000)))
    head = full(b"meta", full(b"hdlr", bytes(4), b"pict", bytes(13)), more)
    with pytest.raises(SyntaxError, match="megapixels"):
        check_heif(io.BytesIO(FTYP + head))
