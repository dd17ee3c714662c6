"""Test colour profiles: those of devices are exact to the level, and none keeps the program busy."""

from __future__ import annotations

import io
import struct
import time
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageCms

from eichi_utils.files.colour_profile import MOST_BYTES, MOST_NUMBERS, judged_profile
from eichi_utils.files.colours import SRGB_PRIMARIES, _profile_of
from eichi_utils.files.picture_files import opened
from eichi_utils.files.pictures import open_picture, profile_problem
from tests.eichi_utils.files.test_colours import COLOURS, grey_profile, iccp, near, png, seen
from tests.eichi_utils.files.test_picture_files import CASES

PROPHOTO = (0.3457, 0.3585, 0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001)
WHITE = b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061)
GAMMA = b"para\0\0\0\0" + struct.pack(">HHi", 0, 0, 65536 * 2)
STRAIGHT = b"curv" + bytes(8)
ONE = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)


def profile(tags: dict[bytes, bytes], space: bytes = b"RGB ", form: bytes = b"prtr") -> bytes:
    """Return a colour profile with these tags, whose tables give Lab."""
    table, data, at = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", at + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    head = struct.pack(">I4xI4s4s4s12x4s28x", at + len(data), 0x04300000, form, space, b"Lab ", b"acsp")
    head += WHITE[8:]
    return head + bytes(128 - len(head)) + table + data


def colours(channels: int, grid: int) -> numpy.ndarray:
    """Return 16-bit Lab for each point of a grid: bright with much light (RGB), dark with much ink (CMYK)."""
    levels = numpy.stack(numpy.meshgrid(*[numpy.linspace(0, 1, grid)] * channels, indexing="ij"), -1)
    bright = levels.mean(-1) if channels == 3 else (1 - levels[..., :3].mean(-1)) * (1 - levels[..., 3])
    return numpy.stack([bright * 65280, 32896 + 4000 * levels[..., 0], 32896 - 4000 * levels[..., 1]], -1).astype(">u2")


def old_table(channels: int, grid: int, points: int = 2) -> bytes:
    """Return a lookup table of 16 bits, type mft2 (ICC.1:2022, 10.10)."""
    ramp = numpy.linspace(0, 65535, points).astype(">u2").tobytes()
    head = struct.pack(">4s4xBBBx", b"mft2", channels, 3, grid) + ONE + struct.pack(">HH", points, points)
    return head + ramp * channels + colours(channels, grid).tobytes() + ramp * 3


def new_table(channels: int, grid: int, curve: bytes = GAMMA) -> bytes:
    """Return a lookup table with curves around it, type mAB (10.12)."""
    curve += bytes(-len(curve) % 4)
    table = bytes([grid] * channels).ljust(16, b"\0") + b"\2\0\0\0" + colours(channels, grid).tobytes()
    table += bytes(-len(table) % 4)
    matrix, three = 32 + 3 * len(STRAIGHT), ONE + bytes(12)
    between = matrix + len(three)
    inner = between + 3 * len(curve)
    first = inner + len(table)
    head = struct.pack(">4s4xBB2x5I", b"mAB ", channels, 3, 32, matrix, between, inner, first)
    return head + STRAIGHT * 3 + three + curve * 3 + table + curve * channels


def device(table: bytes, channels: int) -> bytes:
    return profile({b"wtpt": WHITE, b"A2B0": table, b"A2B1": table}, b"CMYK" if channels == 4 else b"RGB ")


def embedded(name: str) -> bytes:
    with opened(CASES / name) as picture:
        return picture.info["icc_profile"]


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
HONEST = {
    "display p3": ("RGB", embedded("iphone_display_p3.jpg")),
    "adobe rgb": ("RGB", embedded("camera_adobe_rgb.jpg")),
    "prints": ("CMYK", embedded("print_cmyk_with_profile.jpg")),
    "1500 kB": ("RGB", embedded("png_icc_1500kB.png")),
    "srgb of version 4": ("RGB", SRGB),
    "srgb of version 2": ("RGB", SRGB[:8] + b"\2\x10" + SRGB[10:]),
    "prophoto": ("RGB", _profile_of(PROPHOTO, 1.8)),
    "grey": ("L", grey_profile(2.2)),
    "ink, 16 bits": ("CMYK", device(old_table(4, 9, 256), 4)),
    "ink, as large as they come": ("CMYK", device(old_table(4, 17, 4096), 4)),
    "ink, curves around": ("CMYK", device(new_table(4, 9), 4)),
    "scanner": ("RGB", device(new_table(3, 33), 3)),
}


@pytest.mark.parametrize("kind", HONEST)
def test_profiles_of_devices(kind: str) -> None:
    """Leaving parts out of a device's colour profile changes no colour."""
    mode, data = HONEST[kind]
    pixels = numpy.random.default_rng(0).integers(0, 256, (16, 16, len(mode)), dtype=numpy.uint8)
    picture = Image.fromarray(pixels.squeeze(), mode)
    results = []
    for one in (data, judged_profile(data)):
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(one)), ImageCms.createProfile("sRGB"), mode, "RGB"
        )
        results.append(ImageCms.applyTransform(picture, transform).tobytes())
    assert results[0] == results[1] and len(set(results[0])) > 20


def elements(count: int) -> bytes:
    """Return a tag of processing elements that all lie at one place (10.17)."""
    matrix = b"matf" + struct.pack(">4xHH12f", 3, 3, 1.0001, 0, 0, 0, 1, 0, 0, 0, 1, 0.00001, 0, 0)
    return struct.pack(">4s4xHHI", b"mpet", 3, 3, count) + struct.pack(">II", 16 + 8 * count, len(matrix)) * count + matrix


def test_elements_that_lie_at_one_place(tmp_path: Path) -> None:
    """A PNG of 469 bytes, whose profile names one element 10,000 times, took 20 seconds; of 1.5 kB, minutes."""
    data = profile({b"D2B0": elements(10_000), b"wtpt": WHITE})
    path = png(tmp_path / "a.png", COLOURS, iccp(data))
    began = time.process_time()
    assert seen(path) == COLOURS
    assert profile_problem("image", path).key == "picture_profile"
    assert time.process_time() - began < 1
    # Beside what browsers know, it is passed over.
    both = profile({b"D2B0": elements(10_000), b"A2B0": old_table(3, 9), b"wtpt": WHITE})
    path = png(tmp_path / "b.png", COLOURS, iccp(both))
    assert seen(path) == seen(png(tmp_path / "c.png", COLOURS, iccp(device(old_table(3, 9), 3)))) != COLOURS
    assert profile_problem("image", path) is None


LARGE = struct.pack(">4s4xBBBx", b"mft1", 3, 3, 100) + ONE


@pytest.mark.parametrize(
    "data",
    [
        profile({b"A2B0": elements(3), b"wtpt": WHITE}),
        profile({b"A2B0": LARGE + bytes(3 * 100**3 + 6 * 256), b"wtpt": WHITE}),
        profile({b"A2B0": LARGE + bytes(999), b"wtpt": WHITE}),
        profile({b"A2B0": new_table(3, 9)[:-200], b"wtpt": WHITE}),
        profile({b"A2B0": old_table(4, 9)[:9] + b"\xff" + old_table(4, 9)[10:], b"wtpt": WHITE}, b"CMYK"),
        profile({b"rTRC": STRAIGHT, b"gTRC": b"curv\0\0\0\0" + struct.pack(">I", 9999) + bytes(99), b"wtpt": WHITE}),
        profile({b"rXYZ": WHITE, b"chad": b"sf32" + bytes(8)}),
        profile({b"A2B0": old_table(3, 9)}, form=b"link"),
        profile(dict.fromkeys((b"%04d" % number for number in range(101)), STRAIGHT)),
        SRGB + bytes(MOST_BYTES),
        SRGB[:130],
        b"",
    ],
)
def test_what_is_refused(data: bytes) -> None:
    """More numbers than any device has, tables that are cut off or of another kind, and what is no device's."""
    with pytest.raises(ValueError, match=r"it |its |a "):
        judged_profile(data)


@pytest.mark.slow
def test_the_largest_profiles(tmp_path: Path) -> None:
    """Whatever passes is read within a second, picture and all."""
    curve = b"curv\0\0\0\0" + struct.pack(">I", 0x7FFF) + numpy.arange(0x7FFF, dtype=">u2").tobytes()
    for table, channels in ((new_table(4, 28, curve), 4), (new_table(3, 85, curve), 3), (new_table(4, 28), 4)):
        data = profile({b"A2B0": table, b"wtpt": WHITE}, b"CMYK" if channels == 4 else b"RGB ")
        assert len(table) / 2 > MOST_NUMBERS * 0.7
        Image.new("CMYK" if channels == 4 else "RGB", (64, 64), (30, 60, 90)).save(tmp_path / "a.tif", icc_profile=data)
        began = time.process_time()
        open_picture(tmp_path / "a.tif")
        assert time.process_time() - began < 1
        assert profile_problem("image", tmp_path / "a.tif") is None


def test_a_grey_picture_of_its_space(tmp_path: Path) -> None:
    """Three curves at one place are honest: this is how sRGB is written everywhere."""
    data = _profile_of(SRGB_PRIMARIES, 1.0)
    assert near(seen(png(tmp_path / "a.png", [(128, 128, 128)], iccp(data))), [(188, 188, 188)])


def test_a_png_of_profiles(tmp_path: Path) -> None:
    """200 profiles of 1.5 MB took two seconds, and there may be 200,000: the first one counts."""
    large = _profile_of(SRGB_PRIMARIES, 1.0) + bytes(1_000_000)
    path = png(tmp_path / "a.png", [(128, 128, 128)], iccp(large), *[iccp(bytes(2_000_000))] * 1000)
    began = time.process_time()
    assert near(seen(path), [(188, 188, 188)])
    assert time.process_time() - began < 1
