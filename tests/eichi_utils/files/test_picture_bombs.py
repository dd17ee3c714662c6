"""Test that small picture files cannot cost minutes or gigabytes."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageCms
from pillow_heif import from_pillow

from eichi_utils.exchange.picture_text import read_text
from eichi_utils.files.picture_files import opened
from eichi_utils.files.picture_parts import MOST_BLOCKS, MOST_RESOURCES, MOST_SCANS, MOST_SEGMENTS
from eichi_utils.files.pictures import fitted_size, open_picture
from eichi_utils.problems import UserError
from tests.eichi_utils.helpers import found

# 2000 tags that point to the same 20 kB, which a reader of all of them copies to 40 MB.
TAGS, BYTES, MOST = 2000, 20_000, 8 * 2**20
COMMENT = b"ASCII\0\0\0a cat\nSteps: 20, Seed: 7"


def directory(at: int, *entries: tuple[int, int, int, int]) -> bytes:
    """Return a TIFF directory of entries (tag, type, count, value or offset), with no directory after it."""
    return struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *one) for one in entries) + bytes(4)


def bomb(tag: int = 0x0112) -> bytes:
    """Return EXIF data with an orientation and thousands of tags, whose Exif group holds a comment too."""
    many = [(30000 + number, 1, BYTES, 8) for number in range(TAGS)]
    group = 8 + 2 + 12 * (TAGS + 2) + 4
    comment = group + 2 + 12 + 4
    first = directory(8, (tag, 3, 1, 6), *many, (0x8769, 4, 1, group))
    exif = b"II*\0\x08\0\0\0" + first + directory(group, (0x9286, 7, len(COMMENT), comment)) + COMMENT
    # The pointer to the group stands among the first hundreds, as in files of cameras.
    return exif[:22] + exif[22 + 12 * TAGS : 22 + 12 * TAGS + 12] + exif[22 : 22 + 12 * TAGS] + exif[22 + 12 * TAGS + 12 :]


def jpeg(**settings: object) -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(stream, "JPEG", **settings)
    return stream.getvalue()


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def with_bomb(form: str) -> bytes:
    stream, picture = io.BytesIO(), Image.new("RGB", (96, 64), "red")
    if form == "JPEG":
        plain = jpeg()
        return plain[:2] + segment(0xE1, b"Exif\0\0" + bomb()) + plain[2:]
    if form == "PNG":
        picture.save(stream, "PNG")
        body = b"eXIf" + bomb()
        plain = stream.getvalue()
        return plain[:33] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + plain[33:]
    if form == "HEIF":
        from_pillow(picture).save(stream, exif=bomb())
    else:
        # Pillow would write the EXIF of a turned AVIF anew.
        picture.save(stream, form, exif=bomb(0x0111 if form == "AVIF" else 0x0112))
    return stream.getvalue()


def peak(call: Callable[[], object]) -> int:
    """Return the peak bytes of Python objects during a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF"])
def test_thousands_of_tags_of_the_same_bytes(form: str, tmp_path: Path) -> None:
    """0.7 MB of EXIF took 8 GB, because each tag's bytes were copied; orientation and comment are read all the same."""
    path = tmp_path / "a"
    path.write_bytes(with_bomb(form))
    assert peak(lambda: open_picture(path)) < MOST
    assert peak(lambda: fitted_size(path, 640)) < MOST
    assert peak(lambda: read_text(path)) < MOST
    # The AVIF is not turned.
    assert open_picture(path).size == ((96, 64) if form == "AVIF" else (64, 96))
    height, width = fitted_size(path, 640)
    assert (height < width) == (form == "AVIF")
    text = read_text(path)
    assert (text.prompt, text.seed) == ("a cat", 7)


def tiff(*more: tuple[int, int, int, int], behind: bytes = b"") -> bytes:
    """Return a grey TIFF of 64 x 64 pixels with more tags, and with bytes behind its directory."""
    base = ((256, 3, 1, 64), (257, 3, 1, 64), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8))
    base += ((277, 3, 1, 1), (278, 3, 1, 64), (279, 4, 1, 4096))
    return b"II*\0" + struct.pack("<I", 8 + 4096) + b"\x80" * 4096 + directory(8, *base, *more) + behind


def test_a_tiff_of_tags(tmp_path: Path) -> None:
    """A TIFF of 0.7 MB took 8 GB: its tags, or those of a group in it, held more than the file."""
    path = tmp_path / "a.tif"
    path.write_bytes(tiff((30000, 1, 4096, 8)))
    assert open_picture(path).getpixel((3, 3)) == (128, 128, 128)
    many = tuple((40000 + number, 1, 4000, 8) for number in range(1000))
    after = 8 + 4096 + 2 + 12 * 10 + 4
    for data in (
        tiff(*many),
        tiff((0x8769, 4, 1, after), behind=directory(8, *many)),
        tiff((0x8769, 4, 1, after), behind=directory(8, (0xA005, 4, 1, 9999999), *many)),
        tiff((0x8825, 13, 1, after), behind=directory(8, *many)),
        # A place in two bytes, or elsewhere, is followed too; so is one beside another that leads nowhere.
        tiff((0x8769, 3, 1, after), behind=directory(8, *many)),
        tiff((0x8769, 16, 1, after), behind=struct.pack("<Q", after + 8) + directory(8, *many)),
        tiff((0x8769, 4, 1, after + 12), (0x8825, 4, 1, after + 12 + 12006 - 1), behind=directory(8, *many)),
        tiff(*((40000 + number, 1, 0, 8) for number in range(5000))),
    ):
        path.write_bytes(data)

        def refused() -> None:
            with pytest.raises(UserError) as raised:
                open_picture(path)
            assert found(raised.value.problems) == {("image", "picture_damaged")}
            with pytest.raises(ValueError, match="tags"):
                fitted_size(path, 640)

        assert peak(refused) < 2 * 2**20


def test_a_comment_in_a_tiff(tmp_path: Path) -> None:
    """A comment in a TIFF's own tags is read, because a TIFF is its own EXIF."""
    after = 8 + 4096 + 2 + 12 * 10 + 4
    group = directory(8, (0x9286, 7, len(COMMENT), after + 18))
    (tmp_path / "a.tif").write_bytes(tiff((0x8769, 4, 1, after), behind=group + COMMENT))
    assert read_text(tmp_path / "a.tif").seed == 7


def test_what_is_kept_of_a_jpeg_s_head() -> None:
    """EXIF in 1500 segments was joined anew for each, and a directory of pictures behind the first one was read whole."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = jpeg(icc_profile=profile, comment=b"a comment")
    exif = segment(0xE1, b"Exif\0\0" + bomb())
    more = (
        segment(0xE2, b"MPF\0" + bomb()) + segment(0xED, b"Photoshop 3.0\0" + b"8BIM" * 99) + segment(0xEE, b"Adobe" + bytes(7))
    )
    # Behind bytes that are nothing, padding, and the end of a picture that is none, readers go on.
    data = plain[:2] + exif + b"??" + exif + b"\xff\xff" + exif + b"\xff\xd9" + exif + more + b"\0" * 99 + plain[2:]
    with opened(io.BytesIO(data)) as picture:
        assert {name for name, _ in picture.applist} == {"APP0", "APP2", "APP14"}
        assert picture.info["icc_profile"] == profile and picture.info["exif"] == b"Exif\0\0" + bomb()
        assert "mp" not in picture.info and "comment" not in picture.info
        picture.load()


def test_an_endless_lot_of_segments(tmp_path: Path) -> None:
    """6 MB of segments of one byte kept a reader busy for a minute."""
    plain = jpeg()
    (tmp_path / "a.jpg").write_bytes(plain[:2] + segment(0xE1, b"Exif\0\0a") * MOST_SEGMENTS + plain[2:])
    with pytest.raises(UserError) as raised:
        open_picture(tmp_path / "a.jpg")
    assert found(raised.value.problems) == {("image", "picture_damaged")}


@pytest.mark.parametrize(
    "between", [b"", segment(0xFE, b"\xff\xd9"), b"\xff\x02", b"\xff" * 3], ids=["", "end", "odd", "padding"]
)
def test_an_endless_lot_of_scans(between: bytes) -> None:
    """A progressive JPEG whose last scan came 1500 times took half a minute: each is a way through all pixels."""
    plain = jpeg(progressive=True)
    last = plain.rindex(b"\xff\xda")
    with (
        pytest.raises(SyntaxError, match="scans"),
        opened(io.BytesIO(plain[:-2] + (between + plain[last:-2]) * MOST_SCANS + plain[-2:])),
    ):
        pass


def test_what_stands_behind_a_jpeg() -> None:
    """Telephones write films behind their photos, in which anything may stand; and photos have some scans."""
    plain = jpeg(progressive=True)
    last = plain.rindex(b"\xff\xda")
    with opened(io.BytesIO(plain[:-2] + plain[last:-2] * 20 + plain[-2:] + b"\xff\xda" * 1000)) as picture:
        picture.load()


def test_scans_over_the_borders_of_what_is_read_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A marker, or its length, may stand half in one part and half in the next."""
    plain = jpeg(progressive=True)
    count = plain.count(b"\xff\xda")
    for step in (7, 8, 9, 64):
        monkeypatch.setattr("eichi_utils.files.picture_parts.STEP", step)
        for most in (count - 1, count):
            monkeypatch.setattr("eichi_utils.files.picture_parts.MOST_SCANS", most)
            if most < count:
                with pytest.raises(SyntaxError), opened(io.BytesIO(plain)):
                    pass
            else:
                with opened(io.BytesIO(plain)) as picture:
                    picture.load()


def gif(before: bytes = b"") -> bytes:
    """Return a GIF with transparent pixels, and with blocks before the one that declares the transparency."""
    stream = io.BytesIO()
    Image.new("P", (64, 64), 1).save(stream, "GIF", transparency=1)
    plain = stream.getvalue()
    at = 13 + (3 << (plain[10] & 7) + 1) if plain[10] & 0x80 else 13
    return plain[:at] + before + plain[at:]


def test_a_gif_s_comments() -> None:
    """A million comments of a byte, or one of ten megabytes, were joined anew for each block."""
    text = b"!\xfe" + (b"\xff" + b"c" * 255) * 400 + b"\0" + b"!\xfe\x01c\0" * 400 + b"?" + b"!\xf9\0"
    with opened(io.BytesIO(gif(text))) as picture:
        assert "comment" not in picture.info and picture.info["transparency"] == 0
        picture.load()
    for many in (b"!\xfe\x01c\0" * MOST_BLOCKS, b"!\xfe" + b"\x01c" * (MOST_BLOCKS + 1) + b"\0"):
        began = time.process_time()
        with pytest.raises(SyntaxError, match="blocks"), opened(io.BytesIO(gif(many))):
            pass
        assert time.process_time() - began < 1


def webp(width: int, height: int) -> bytes:
    """Return the head of a lossless WebP (RFC 9649, 3.4), without pixels."""
    data = b"VP8L" + struct.pack("<I", 14) + b"\x2f" + struct.pack("<I", (height - 1) << 14 | (width - 1)) + bytes(9)
    return b"RIFF" + struct.pack("<I", 4 + len(data)) + b"WEBP" + data


def packed_bmp(width: int, height: int) -> bytes:
    """Return a grey run-length encoded BMP, whose rows end after one run."""
    palette = b"".join(bytes((level, level, level, 0)) for level in range(256))
    data = b"\1\x55\0\0" * height + b"\0\1"
    start = 14 + 40 + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 2835, 2835, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + head + palette + data


@pytest.mark.parametrize(
    ("data", "limit"),
    [(webp(10000, 9990), 52), (webp(10000, 5201), 52), (packed_bmp(6_250_000, 16), 5)],
    ids=["webp", "webp of a little more", "bmp"],
)
def test_limits_of_single_formats(data: bytes, limit: int, tmp_path: Path) -> None:
    """A WebP of 100 megapixels took 1.5 GB where other pictures take half; a BMP of a kilobyte took 19 seconds."""
    (tmp_path / "a").write_bytes(data)
    began = time.process_time()
    with pytest.raises(UserError) as raised:
        open_picture(tmp_path / "a")
    assert found(raised.value.problems) == {("image", "picture_too_large")}
    assert raised.value.problems[0].values["limit"] == limit
    assert time.process_time() - began < 1


def test_within_the_limits(tmp_path: Path) -> None:
    """Small BMPs are read however they are packed, and what is refused of a WebP in its limits is not its size."""
    (tmp_path / "a.bmp").write_bytes(packed_bmp(64, 32))
    assert open_picture(tmp_path / "a.bmp").getpixel((0, 3)) == (0x55, 0x55, 0x55)
    with opened(io.BytesIO(webp(10000, 5200))) as picture:
        assert picture.size == (10000, 5200)


def psd(resources: bytes, side: int = 64, mode: int = 3, colours: bytes = b"", height: int = 0) -> bytes:
    """Return a red PSD whose pixels are not compressed, or one with a palette."""
    channels = 3 if mode == 3 else 1
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, channels, height or side, side, 8, mode)
    planes = b"\xc8" * side**2 + b"\x1e" * side**2 * 2 if channels == 3 else b"\1" * side**2
    parts = struct.pack(">I", len(colours)) + colours + struct.pack(">I", len(resources)) + resources
    return head + parts + struct.pack(">IH", 0, 0) + planes


def resource(number: int, data: bytes, name: bytes = b"") -> bytes:
    named = bytes([len(name)]) + name
    return (
        b"8BIM"
        + struct.pack(">H", number)
        + named
        + bytes(len(named) % 2)
        + struct.pack(">I", len(data))
        + data
        + bytes(len(data) % 2)
    )


def test_resources_of_a_psd() -> None:
    """150 MB of resources took 27 seconds and 900 MB, because all of them were kept; the profile among them counts."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    many = resource(1000, b"odd", b"a name") + resource(1039, profile) + resource(1060, bytes(2 * MOST)) + resource(2000, b"")
    data = psd(many)

    def read() -> None:
        with opened(io.BytesIO(data)) as picture:
            assert picture.resources == [] and picture.info["icc_profile"] == profile
            picture.load()
            assert picture.getpixel((63, 63)) == (0xC8, 0x1E, 0x1E)

    assert peak(read) < MOST
    palette = bytes(256) + bytes(range(256)) + bytes(256)
    with opened(io.BytesIO(psd(many, mode=2, colours=palette))) as picture:
        assert picture.convert("RGB").getpixel((3, 3)) == (0, 1, 0)


@pytest.mark.parametrize(
    "data",
    [psd(resource(1000, b"") * (MOST_RESOURCES + 1)), psd(b"", side=16, height=6_250_000), psd(b"")[:29], psd(b"")[:33]],
    ids=["resources", "rows", "cut off", "cut off later"],
)
def test_an_endless_psd(data: bytes) -> None:
    """A million resources of nothing, or six million rows, each of which Pillow looks at one by one."""
    began = time.process_time()
    with pytest.raises((SyntaxError, OSError, struct.error)), opened(io.BytesIO(data)):
        pass
    assert time.process_time() - began < 0.5


def test_a_png_without_most_of_its_pixels(tmp_path: Path) -> None:
    """A PNG of 17 packed bytes said that it is 20 x 4,194,324: Pillow takes what it finds and 380 MB for the rest."""
    one_colour = io.BytesIO()
    Image.new("L", (3000, 2500), 7).save(one_colour, "PNG", compress_level=9)
    data = bytearray(one_colour.getvalue())
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    assert open_picture(path, "image").getpixel((2999, 2499)) == (7, 7, 7)
    struct.pack_into(">II", data, 16, 3000, 4 * 2500)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with pytest.raises(UserError) as raised:
        open_picture(path, "image")
    (problem,) = raised.value.problems
    assert (problem.key, problem.values["reason"]) == ("picture_damaged", "most of its pixels are missing")
