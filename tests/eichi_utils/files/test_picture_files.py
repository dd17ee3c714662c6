"""Test picture files of other programs: what is opened, what is left out, and what never runs."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy
import pytest
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from eichi_utils.files import picture_files
from eichi_utils.files.picture_files import MOST_UNPACKED, opened, orientation
from eichi_utils.files.safe_reading import UnsafeError

CASES = Path(__file__).parents[2] / "cases"


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def with_chunks(before: bytes = b"", after: bytes = b"") -> bytes:
    """Return a PNG of 32 x 32 red pixels with chunks before and after its pixels."""
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(stream, "PNG")
    whole = stream.getvalue()
    return whole[:33] + before + whole[33:-12] + after + whole[-12:]


def tags(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Return a TIFF directory, as in EXIF, of entries (tag, type, count, value bytes)."""
    return (
        b"II*\0\x08\0\0\0"
        + struct.pack("<H", len(entries))
        + b"".join(struct.pack("<HHI4s", *one) for one in entries)
        + bytes(4)
    )


def test_postscript_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An EPS under a picture's name was handed to Ghostscript, and an endless loop in it stayed as a process."""

    def run(*args: object, **settings: object) -> None:
        raise AssertionError(f"a program was started: {args}")

    monkeypatch.setattr(subprocess, "Popen", run)
    with pytest.raises(UnidentifiedImageError), opened(CASES / "hostile" / "eps_endless_loop_named.png") as picture:
        picture.load()


@pytest.mark.parametrize("name", ["photo.heic", "photo.jpg", "photo"])
def test_a_telephone_s_photo(name: str, tmp_path: Path) -> None:
    """HEIC was "not a picture this program can read"; programs that only rename it call it .jpg."""
    shutil.copyfile(CASES / "iphone_photo.heic", tmp_path / name)
    with opened(tmp_path / name) as picture:
        picture.load()
        assert (picture.format, picture.mode, picture.size) == ("HEIF", "RGB", (256, 256))
        assert numpy.asarray(picture).std() > 20


def test_importing_changes_nothing_of_pillow() -> None:
    """HEIF is opened by its content, not by a reader that Pillow then has everywhere."""
    assert "HEIF" not in Image.OPEN


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_the_list_of_formats(form: str) -> None:
    """Everything of the list is read under any name."""
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(stream, form)
    with opened(io.BytesIO(stream.getvalue())) as picture:
        picture.load()
        assert picture.format == form


def test_the_composite_of_a_psd() -> None:
    """Paint programs' own files have a flat picture behind their layers."""
    head = b"8BPS" + (1).to_bytes(2, "big") + bytes(6) + (3).to_bytes(2, "big") + (32).to_bytes(4, "big") * 2
    head += (8).to_bytes(2, "big") + (3).to_bytes(2, "big")
    pixels = b"".join(bytes([level]) * 32 * 32 for level in (200, 100, 50))
    with opened(io.BytesIO(head + bytes(12) + bytes(2) + pixels)) as picture:
        assert picture.convert("RGB").getpixel((3, 3)) == (200, 100, 50)


@pytest.mark.parametrize("form", ["PPM", "TGA", "ICO", "PCX", "EPS", "DDS"])
def test_no_other_format(form: str) -> None:
    """Formats that nobody tries are where a library's faults are."""
    stream = io.BytesIO()
    Image.new("RGB", (32, 32)).save(stream, form)
    with pytest.raises(UnidentifiedImageError), opened(io.BytesIO(stream.getvalue())):
        pass


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_only_regular_files(tmp_path: Path) -> None:
    """Opening a pipe that nobody writes to waited for ever."""
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UnsafeError), opened(tmp_path / "a.png"):
        pass


@pytest.mark.parametrize(("name", "profile"), [("png_icc_1500kB.png", 1520420), ("png_xmp_2MB_compressed.png", 0)])
def test_large_metadata(name: str, profile: int) -> None:
    """A good PNG with more than a megabyte of metadata was "damaged or cut off". A large profile is a profile all the same."""
    with opened(CASES / name) as picture:
        picture.load()
        assert len(picture.info.get("icc_profile", b"")) == profile


@pytest.mark.parametrize("place", ["before", "after"])
def test_what_stands_beside_the_pixels(place: str) -> None:
    """A text or a private chunk of any size, before or after the pixels, does not make the picture unreadable."""
    huge = zlib.compress(b"x" * (MOST_UNPACKED + 1))
    chunks = chunk(b"tEXt", b"plain\0" + b"y" * 2**21) + chunk(b"zTXt", b"huge\0\0" + huge)
    chunks += chunk(b"iTXt", b"wide\0\1\0en\0\0" + huge) + chunk(b"prVt", b"z" * (MOST_UNPACKED + 1))
    with opened(io.BytesIO(with_chunks(**{place: chunks}))) as picture:
        picture.load()
        assert picture.getpixel((5, 5)) == (255, 0, 0)
    assert PngImagePlugin.MAX_TEXT_CHUNK == MOST_UNPACKED, "Pillow's limit, left as it is"


def test_an_animation_beside_texts() -> None:
    """Frames are parts like others; the first is the picture."""
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a" * 2**21, zip=True)
    stream = io.BytesIO()
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:], pnginfo=info)
    with opened(io.BytesIO(stream.getvalue())) as picture:
        assert picture.n_frames == 2 and picture.getpixel((5, 5)) == (255, 0, 0)
        picture.seek(1)
        assert picture.getpixel((5, 5)) == (0, 0, 255)


def test_an_endless_lot_of_chunks() -> None:
    """Megabytes of empty chunks kept a reader busy for minutes."""
    with pytest.raises(SyntaxError), opened(io.BytesIO(with_chunks(chunk(b"prVt", b"") * picture_files.MOST_CHUNKS))):
        pass


def tiled_tiff(side: int, tile: int) -> bytes:
    """Return a compressed grey TIFF whose only tile claims to have `tile` pixels each way."""
    data = zlib.compress(bytes(64 * 64))
    entries = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 8, 325: len(data)}
    head = b"II*\0" + (8 + len(data)).to_bytes(4, "little") + data + len(entries).to_bytes(2, "little")
    return head + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items()) + bytes(4)


def test_declared_sizes() -> None:
    """A head of a few bytes that promises a gigapixel, or a tile of one, is refused before anything is decoded."""
    with opened(io.BytesIO(tiled_tiff(64, 64))) as picture:
        picture.load()
    for data in (
        tiled_tiff(64, 30000),
        tiled_tiff(30000, 64),
        b"GIF89a" + (60000).to_bytes(2, "little") * 2 + bytes(3) + b"\x2c" + bytes(4) + b"\1\0\1\0\0\2\2\x44\1\0;",
    ):
        with pytest.raises(Image.DecompressionBombError), opened(io.BytesIO(data)):
            pass


@pytest.mark.parametrize("value", [0, 9, 255, "6", None])
def test_orientations_that_are_none(value: object) -> None:
    """Only the orientations 2 to 8 turn a picture; other values are ignored."""
    picture = Image.new("RGB", (8, 8))
    if value is not None:
        kind, stored = (2, str(value).encode()) if isinstance(value, str) else (3, struct.pack("<H", int(str(value))))
        picture.info["exif"] = tags((0x0112, kind, 1, stored))
    assert orientation(picture) == 1
    picture.info["exif"] = tags((0x0112, 3, 1, b"\6\0"))
    assert orientation(picture) == 6
