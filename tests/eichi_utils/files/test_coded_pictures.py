"""Test AVIF and HEIC files whose coded pictures differ from their boxes: libraries decode the coded size."""

from __future__ import annotations

import io
import struct
import time
from pathlib import Path

import pytest
from PIL import Image

from eichi_utils.files.coded_pictures import Coded, av1_picture
from eichi_utils.files.heif_boxes import check_heif
from eichi_utils.files.heif_items import BLOCK, MOST_UNITS
from eichi_utils.files.picture_files import opened
from eichi_utils.files.picture_memory import needed_bytes
from eichi_utils.files.pictures import open_picture
from eichi_utils.problems import UserError
from tests.eichi_utils.boxes import box, full
from tests.eichi_utils.files.test_heif_boxes import FTYP, Links, grid, heif
from tests.eichi_utils.helpers import found


def packed(*fields: tuple[int, int]) -> bytes:
    """Pack numbers, each with its count of bits, into bytes."""
    bits = "".join(f"{number:0{count}b}" for number, count in fields if count)
    return int(bits.ljust(len(bits) + 7 & ~7, "0"), 2).to_bytes(len(bits) + 7 >> 3, "big")


def unit(kind: int, data: bytes) -> bytes:
    """Return an AV1 unit with its length (5.3)."""
    return bytes([kind << 3 | 2]) + bytes([len(data) & 127 | 128, len(data) >> 7]) + data


def still(width: int, height: int) -> bytes:
    """Return the sequence header of a still picture (5.5) in 4:2:0, as every AVIF encoder writes it."""
    return unit(1, packed((0, 3), (1, 1), (1, 1), (8, 5), (15, 4), (15, 4), (width - 1, 16), (height - 1, 16), (0, 16)))


def moving(width: int, height: int, deep: int = 0, bits: int = 16) -> bytes:
    """Return the sequence header of a film with every optional field before its size, and behind it up to its colours.

    bits: of each side.
    """
    times = ((1, 1), (1, 32), (30, 32), (0, 1), (1, 1), (9, 5), (1, 32), (9, 5), (7, 5))
    points = ((1, 1), (1, 5), (0, 12), (9, 5), (1, 1), (1, 1), (5, 10), (5, 10), (0, 1), (1, 1), (3, 4))
    points += ((1, 12), (5, 5), (0, 1), (0, 1))
    sides = ((bits - 1, 4), (bits - 1, 4), (width - 1, bits), (height - 1, bits))
    tools = ((1, 1), (3, 4), (2, 3), (0, 3), (0, 4), (1, 1), (0, 2), (1, 1), (1, 1), (6, 3), (0, 3), (deep, 1), (0, 9))
    return unit(1, packed((0, 3), (0, 1), (0, 1), *times, *points, *sides, *tools))


def frame(*, own_size: int = 0, shown: int = 1, kind: int = 0, again: int = 0) -> bytes:
    """Return the beginning of a frame of `moving` (5.9.2)."""
    time_or_later = (77, 8) if shown else (1, 1)
    intra = () if not kind and shown else ((1, 1),)
    return unit(
        6,
        packed((again, 1), (kind, 2), (shown, 1), time_or_later, *intra, (0, 1), (1, 1), (1, 1), (9, 8), (own_size, 1), (0, 9)),
    )


FRAME = unit(6, bytes(9))
LARGE = still(16384, 16384) + FRAME
SMALL = still(64, 64) + FRAME


def test_what_is_read_of_av1() -> None:
    """Settings are read bit by bit up to the size, and frames up to where they say another one."""
    for data, coded in (
        (unit(2, b"") + still(300, 200) + FRAME, Coded(300, 200, 1, 3, 3)),
        (moving(300, 200) + frame(), Coded(300, 200, 1, 3, 2)),
        (moving(300, 200, deep=1) + frame(shown=0) + frame(kind=1) + frame(again=1), Coded(300, 200, 2, 6, 4)),
        # Another size may be any that 16 bits hold.
        (moving(300, 200) + frame(own_size=1), Coded(65536, 65536, 1, 3, 2)),
        # Or no more than twice as much each way.
        (moving(300, 300, bits=9) + frame(own_size=1) + frame(), Coded(300, 300, 5, 3, 3)),
        (moving(300, 200) + frame() + moving(200, 400) + frame(), Coded(300, 400, 2, 3, 4)),
        # The last unit needs no length.
        (still(9, 7) + b"\x30abc", Coded(9, 7, 1, 3, 2)),
        (b"", Coded(0, 0, 0, 0, 0)),
    ):
        assert av1_picture(memoryview(data), MOST_UNITS) == coded


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (FRAME, "no settings"),
        (unit(1, b"\0"), "no settings"),
        (still(64, 64)[:-1], "cut off"),
        (b"\x32\xff\xff\xff\xff\xff\xff\xff\xff\xff", "cut off"),
        (unit(2, b"") * (MOST_UNITS + 1), "too many parts"),
    ],
)
def test_av1_that_is_none(data: bytes, reason: str) -> None:
    """Malformed AV1 is refused: a tile without settings of its own would be decoded by those of the tile before it."""
    with pytest.raises(SyntaxError, match=reason):
        av1_picture(memoryview(data), MOST_UNITS)


def test_a_real_picture_that_lies(tmp_path: Path) -> None:
    """3 kB that said 64 x 64 pixels had 16384 x 16384: a gigabyte, and all other requests stood still for 13 seconds."""
    stream = io.BytesIO()
    Image.new("RGB", (1024, 1024), "red").save(stream, "AVIF", speed=10)
    data = bytearray(stream.getvalue())
    path = tmp_path / "a.avif"
    path.write_bytes(data)
    assert open_picture(path).size == (1024, 1024)
    struct.pack_into(">II", data, data.index(b"ispe") + 8, 64, 64)
    path.write_bytes(data)
    with pytest.raises(UserError) as raised:
        open_picture(path)
    assert found(raised.value.problems) == {("image", "picture_damaged")}
    assert "1024 x 1024" in raised.value.problems[0].values["reason"]


TILES: Links = [(b"dimg", 257, list(range(1, 257)))]
PADDED = SMALL + unit(15, bytes(16000)) * 60
ELSEWHERE = (
    full(b"iinf", struct.pack(">H", 1), box(b"infe", b"\2\0\0\0" + struct.pack(">HH4s", 9, 0, b"av01")))
    + box(b"iloc", b"\1\0\0\0", struct.pack(">HHHHHHII", 0x4400, 1, 9, 1, 0, 1, 0, len(LARGE)))
    + box(b"idat", LARGE)
)
TWICE = full(b"iloc", struct.pack(">HH", 0x4400, 1), struct.pack(">HHHII", 1, 0, 1, 0, 8))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (heif(64, [(b"av01", (64, 64), LARGE)], []), "said to have 64 x 64"),
        (heif(64, [*[(b"av01", (64, 64), LARGE)] * 256, (b"grid", (1024, 1024), b"")], TILES), "said to have"),
        (heif(64, [(b"av01", (64, 64), SMALL), (b"av01", (64, 64), LARGE)], [(b"auxl", 2, [1])]), "said to have"),
        (heif(64, [(b"av01", (64, 64), moving(64, 64) + frame(own_size=1))], []), "65536 x 65536"),
        (heif(64, [(b"av01", (64, 64), SMALL + still(64, 64 + BLOCK + 1))], []), "said to have"),
        (heif(64, [(b"av01", (2048, 2048), moving(2048, 2048) + frame(shown=0) * 40)], []), "megapixels"),
        (heif(64, [*[(b"av01", (64, 64), PADDED)] * 256, (b"grid", (1024, 1024), b"")], TILES), "more than the file"),
        (heif(64, [(b"av01", (64, 64), SMALL)], [], more=ELSEWHERE), "said to have 0 x 0"),
        (heif(64, [(b"av01", (64, 64), SMALL)], [], more=TWICE), "not clear"),
        (heif(64, [(b"av01", (64, 64), SMALL[:40])], []).replace(SMALL[:40], SMALL[:9]), "cut off"),
        (heif(512, [(b"hvc1", (128, 128), b"")], []), "512 x 512 pixels, and is said to have 128 x 128"),
        (heif(64, [(b"hvc1", (64, 64), b"\0\0\0\3\x28\1\x80" * 50_000)], []), "too many parts"),
        (heif(64, [(b"hvc1", (64, 64), b"\0\0\0\3\x28\1\x80" * 10_000)], []), "megapixels"),
        (heif(64, [(b"hvc1", (64, 64), b"\0\0\0\3")], []), "cut off"),
        (heif(64, [(b"hvc1", (64, 64), b"")], []).replace(b"hvcC", b"free"), "no settings"),
        (FTYP + full(b"meta") * 2, "two heads"),
    ],
)  # fmt: skip
def test_what_is_refused(data: bytes, reason: str) -> None:
    """Pictures are refused that code more, or more often, than their size needs, or that readers may understand in two ways."""
    began = time.process_time()
    with pytest.raises(SyntaxError, match=reason):
        check_heif(io.BytesIO(data))
    assert time.process_time() - began < 0.5


def track(sample: bytes, *more: bytes, size: int = 64, frames: int = 1) -> bytes:
    """Return an animation of one track, which begins with a frame."""
    ftyp = box(b"ftyp", b"avis\0\0\0\0avis")
    tables = box(b"stsd", bytes(4), struct.pack(">I", 1), box(b"av01", bytes(78)))
    tables += full(b"stsz", struct.pack(">II", len(sample), frames)) + full(b"stsc", struct.pack(">IIII", 1, 1, frames, 1))
    tables += full(b"stco", struct.pack(">II", 1, len(ftyp) + 8)) + b"".join(more)
    header = full(b"tkhd", bytes(72), struct.pack(">II", size << 16, size << 16))
    film = box(b"moov", box(b"trak", header, box(b"mdia", box(b"minf", box(b"stbl", tables)))))
    return ftyp + box(b"mdat", sample) + film


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (track(LARGE), "said to have 64 x 64"),
        (track(moving(4096, 4096) + frame(shown=0) * 12, size=4096), "megapixels"),
        (track(SMALL, frames=2_000_000), "frames"),
        (track(SMALL, full(b"stsz", struct.pack(">II", 9, 1))), "two tables"),
        (track(SMALL, full(b"co64", struct.pack(">IQ", 1, 9))), "two tables"),
        (track(SMALL).replace(struct.pack(">I", len(SMALL)) + b"\0\0\0\1", b"\x7f\0\0\0\0\0\0\1"), "larger than the file"),
        (track(FRAME), "no settings"),
    ],
)
def test_animations_that_are_refused(data: bytes, reason: str) -> None:
    """Animations whose frames or tables are larger than they say, or that contradict themselves, are refused: a table of two
    million frames takes 300 MB."""
    check_heif(io.BytesIO(track(SMALL)))
    with pytest.raises(SyntaxError, match=reason), opened(io.BytesIO(data)):
        pass


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4", "4:0:0"])
def test_honest_ones(mode: str, frames: int, subsampling: str) -> None:
    """Pictures, transparent ones and animations are read, and take the memory that they took."""
    stream, picture = io.BytesIO(), Image.new(mode, (70, 51), "#808080")
    others = [Image.new(mode, (70, 51), "red")] * (frames - 1)
    picture.save(stream, "AVIF", save_all=True, append_images=others, subsampling=subsampling, speed=10)
    with opened(io.BytesIO(stream.getvalue())) as shown:
        assert needed_bytes(shown) == (13 if shown.mode == "L" else 16) * 70 * 51
        assert all(abs(level - 128) < 5 for level in shown.convert("RGB").getpixel((69, 50)))


def test_memory_of_tiles_and_frames() -> None:
    """Tiles are decoded all of them before they are put together, and frames that nobody sees are kept for others."""
    side = 512 * 512
    tiles = [*[(b"av01", (512, 512), still(512, 512) + FRAME)] * 4, (b"grid", (1024, 1024), grid(2, 2, 1024, 1024))]
    assert check_heif(io.BytesIO(heif(64, tiles, [(b"dimg", 5, [1, 2, 3, 4])]))) == (4 + 4) * 3 * side
    film = moving(512, 512, deep=1) + frame(shown=0) * 6 + frame()
    assert check_heif(io.BytesIO(heif(64, [(b"av01", (512, 512), film)], []))) == 7 * 6 * side
    assert check_heif(io.BytesIO(track(film, size=512))) == 7 * 6 * side
