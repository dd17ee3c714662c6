"""Test TIFFs of one strip and of many: what libtiff would read again and again is counted before it does."""

from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image

from eichi_utils.files.picture_files import opened
from eichi_utils.files.picture_memory import BESIDE
from eichi_utils.files.pictures import open_picture
from eichi_utils.files.tiff_tags import MOST_STRIPS, check_tiff
from eichi_utils.problems import UserError
from tests.eichi_utils.files.test_picture_bombs import jpeg, segment
from tests.eichi_utils.files.test_picture_memory import scans
from tests.eichi_utils.helpers import found

FORMS = {1: "B", 3: "H", 4: "I", 11: "f", 16: "Q"}
PLACES, LENGTHS, TILE_PLACES, TILE_LENGTHS = 273, 279, 324, 325
Tags = dict[int, tuple[int, list[int]]]


def tiff(data: bytes, tags: Tags, *, large: bool = False) -> bytes:
    """Return a TIFF of data and tags, each a type and numbers; offsets count from the data's first byte."""
    place, count, entry, room = ("Q", "Q", "HHQ", 8) if large else ("I", "H", "HHI", 4)
    extra, entries = b"", b""
    at = 16 + len(data)
    behind = at + struct.calcsize("<" + count + place) + len(tags) * (struct.calcsize("<" + entry) + room)
    for tag, (kind, values) in sorted(tags.items()):
        numbers = [16 + value for value in values] if tag in (PLACES, TILE_PLACES) else values
        own = struct.pack(f"<{len(numbers)}{FORMS[kind]}", *numbers)
        entries += struct.pack("<" + entry, tag, kind, len(numbers))
        if len(own) > room:
            entries += struct.pack("<" + place, behind + len(extra))
            extra += own
        else:
            entries += own.ljust(room, b"\0")
    head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, at) if large else struct.pack("<2sHI8x", b"II", 42, at)
    return head + data + struct.pack("<" + count, len(tags)) + entries + struct.pack("<" + place, 0) + extra


def grey(width: int, height: int, rows: int, compression: int, kind: int = 3, samples: int = 1) -> Tags:
    """Return the tags of a grey picture, or of one of several planes, in strips of `rows` rows."""
    light = {1: 1, 3: 2, 4: 5}[samples]
    tags: Tags = {256: (4, [width]), 257: (4, [height]), 258: (3, [8] * samples), 259: (kind, [compression]), 262: (3, [light])}
    return {**tags, 277: (3, [samples]), 278: (4, [rows]), 284: (3, [2 if samples > 1 else 1])}


ROW = zlib.compress(bytes(16)) + bytes(1000)


@pytest.mark.parametrize("kind", [1, 3, 11])
@pytest.mark.parametrize("large", [False, True])
def test_strips_over_each_other(kind: int, large: bool, tmp_path: Path) -> None:
    """A megabyte took 17 seconds: 20,000 strips were one and the same, and each time all of its bits were turned over."""
    tags = grey(16, 64, 1, 8, kind) | {266: (3, [2])}
    (tmp_path / "a.tif").write_bytes(tiff(ROW, tags | {PLACES: (4, [0] * 64), LENGTHS: (4, [len(ROW)] * 64)}, large=large))
    with pytest.raises(UserError) as raised:
        open_picture(tmp_path / "a.tif")
    assert found(raised.value.problems) == {("image", "picture_damaged")}
    assert raised.value.problems[0].values["reason"] == "its strips hold more than the file"


def test_strips_beside_each_other() -> None:
    """Strips in a row are read, in types of one, two and eight bytes; of pixels that are not packed no length is looked at."""
    row = zlib.compress(bytes([9] * 16))
    places = {PLACES: (4, [len(row) * number for number in range(64)])}
    for kind, large in ((1, False), (3, False), (16, True)):
        data = tiff(row * 64, grey(16, 64, 1, 8) | places | {LENGTHS: (kind, [len(row)] * 64)}, large=large)
        with opened(io.BytesIO(data)) as picture:
            assert picture.getpixel((15, 63)) == 9
    plain = tiff(bytes([9] * 1024), grey(16, 64, 64, 1) | {PLACES: (4, [0]), LENGTHS: (4, [9999])})
    with opened(io.BytesIO(plain)) as picture:
        assert picture.getpixel((15, 63)) == 9


@pytest.mark.parametrize("compression", [1, 8])
def test_a_strip_for_each_row(compression: int) -> None:
    """A million rows of 8 MB took 11 seconds and 400 MB: each strip is an object of Pillow's."""
    count = MOST_STRIPS + 1
    data = tiff(ROW, grey(16, count, 1, compression) | {PLACES: (4, [0] * count), LENGTHS: (4, [0] * count)})
    began = time.process_time()
    with pytest.raises(SyntaxError, match="strips"), opened(io.BytesIO(data)):
        pass
    assert time.process_time() - began < 0.5


def parts(*places: int, length: int) -> Tags:
    return {PLACES: (4, list(places)), LENGTHS: (4, [length] * len(places))}


MANY, SOME = scans(5000, 5000, 1, 99), scans(5000, 5000, 1, 20)
SAME = SOME + bytes(9999)
ONCE, FOUR_TIMES = parts(0, length=len(MANY)), parts(0, 0, 0, 0, length=len(SOME))
BESIDE_EACH_OTHER = parts(*(len(SOME) * number for number in range(4)), length=len(SOME))
TILES = {322: (4, [5000]), 323: (4, [5000]), TILE_PLACES: FOUR_TIMES[PLACES], TILE_LENGTHS: FOUR_TIMES[LENGTHS]}


@pytest.mark.parametrize(
    ("data", "tags"),
    [
        (MANY, grey(5000, 5000, 5000, 7) | ONCE),
        (SOME * 4, grey(5000, 20000, 5000, 7) | BESIDE_EACH_OTHER),
        (SAME, grey(5000, 20000, 5000, 7) | FOUR_TIMES),
        (SAME, grey(5000, 5000, 5000, 7, samples=4) | FOUR_TIMES),
        (SAME, grey(5000, 20000, 5000, 7) | TILES),
        # libtiff takes the rest of the file.
        (MANY, grey(5000, 5000, 5000, 7) | {PLACES: (4, [0])}),
    ],
    ids=["one", "several", "one place", "planes", "tiles", "no length"],
)
def test_scans_of_a_jpeg_in_a_tiff(data: bytes, tags: Tags) -> None:
    """5 kB took 75 seconds: scans of JPEGs in a TIFF were not counted, and libtiff allows a hundred for each strip."""
    began = time.process_time()
    with pytest.raises(SyntaxError, match="more scans"), opened(io.BytesIO(tiff(data, tags))):
        pass
    assert time.process_time() - began < 0.5


def test_markers_of_a_jpeg_in_a_tiff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of nothing but comments would keep the one busy who counts scans."""
    monkeypatch.setattr("eichi_utils.files.tiff_tags.MOST_MARKERS", 1000)
    for data, allowed in ((segment(0xFE, b"") * 999, True), (segment(0xFE, b"") * 1001, False)):
        file = io.BytesIO(tiff(data, grey(16, 16, 16, 7) | {PLACES: (4, [0]), LENGTHS: (4, [len(data)])}))
        if allowed:
            check_tiff(file)
        else:
            with pytest.raises(SyntaxError, match="segments"):
                check_tiff(file)


def test_memory_of_a_jpeg_in_a_tiff() -> None:
    """A progressive JPEG keeps its numbers until the last scan, in a TIFF too; a plain one keeps nothing."""
    for data, kept in ((jpeg(progressive=True, subsampling=0), 6 * 96 * 64), (jpeg(subsampling=0), 0)):
        tags = grey(96, 64, 64, 7) | {
            258: (3, [8] * 3),
            262: (3, [6]),
            277: (3, [3]),
            PLACES: (4, [0]),
            LENGTHS: (4, [len(data)]),
        }
        with opened(io.BytesIO(tiff(data, tags))) as picture:
            assert picture.info[BESIDE] == kept
            picture.load()


def test_tiles_over_the_edges() -> None:
    """Nine tiles of 25 megapixels make one picture of 100: what stands over its edges is decoded as well."""
    tile = {322: (4, [4992]), 323: (4, [4992]), TILE_PLACES: (4, [0] * 9), TILE_LENGTHS: (4, [9] * 9)}
    with pytest.raises(Image.DecompressionBombError), opened(io.BytesIO(tiff(bytes(99), grey(10000, 10000, 1, 8) | tile))):
        pass
    tile |= {322: (4, [512]), 323: (4, [512])}
    with opened(io.BytesIO(tiff(bytes(99), grey(10000, 10000, 1, 8) | tile))):
        pass


@pytest.mark.parametrize("compression", ["tiff_adobe_deflate", "tiff_lzw", "packbits", "jpeg", "zstd", "lzma", None])
@pytest.mark.parametrize("pages", [1, 3])
def test_what_pillow_writes(compression: str | None, pages: int) -> None:
    """Strips of every packing, and pages, fit into their file."""
    stream, picture = io.BytesIO(), Image.linear_gradient("L").resize((300, 900)).convert("RGB")
    picture.save(stream, "TIFF", compression=compression, save_all=True, append_images=[picture] * (pages - 1))
    with opened(io.BytesIO(stream.getvalue())) as shown:
        assert abs(shown.getpixel((9, 450))[0] - 127) < 4
