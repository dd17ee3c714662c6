"""Test that a picture is read in the colours that a browser shows, whatever its file says of them."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageCms

from eichi_utils.files.colours import SRGB_PRIMARIES, Conversion, ProfileError, _profile_of
from eichi_utils.files.pictures import open_mask, open_picture, profile_problem
from tests.eichi_utils.files.test_picture_files import CASES, chunk
from tests.eichi_utils.helpers import say_everything

P3 = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
COLOURS = [(220, 30, 30), (30, 200, 60), (40, 60, 210), (128, 128, 128), (20, 20, 20), (200, 180, 90), (250, 250, 250)]
GREYS = [(0,), (10,), (40,), (80,), (128,), (180,), (255,)]
# What Chromium and Firefox show of COLOURS and GREYS, up to one level.
GAMMA_1 = [(239, 96, 96), (96, 229, 133), (110, 133, 234), (188, 188, 188), (79, 79, 79), (229, 219, 160), (253, 253, 253)]
GAMMA_1_GREY = [(v, v, v) for v in (0, 56, 110, 152, 188, 219, 255)]
ADOBE = [(255, 24, 24), (0, 201, 36), (20, 57, 215), (129, 129, 129), (12, 12, 12), (208, 181, 83), (250, 250, 250)]


def png(path: Path, colours: list[tuple[int, ...]], *chunks: bytes, depth: int = 8) -> Path:
    """Write a PNG of squares side by side, of 16 pixels each way, with these colours."""
    width = 16 * len(colours)
    numbers = [level * (257 if depth == 16 else 1) for colour in colours for level in colour * 16]
    row = b"\0" + b"".join(number.to_bytes(depth // 8, "big") for number in numbers)
    kind = {1: 0, 3: 2}[len(colours[0])]
    head = width.to_bytes(4, "big") + (16).to_bytes(4, "big") + bytes([depth, kind, 0, 0, 0])
    parts = [chunk(b"IHDR", head), *chunks, chunk(b"IDAT", zlib.compress(row * 16)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def gama(gamma: float) -> bytes:
    return chunk(b"gAMA", round(gamma * 100_000).to_bytes(4, "big"))


def chrm(primaries: tuple[float, ...]) -> bytes:
    return chunk(b"cHRM", b"".join(round(number * 100_000).to_bytes(4, "big") for number in primaries))


def iccp(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"profile\0\0" + zlib.compress(profile))


def grey_profile(gamma: float) -> bytes:
    """Return a grey profile with a power curve, as scanners and paint programs embed it."""
    colour = _profile_of(SRGB_PRIMARIES, gamma)
    at, size = (
        int.from_bytes(colour[start : start + 4], "big") for start in (colour.index(b"rTRC") + 4, colour.index(b"rTRC") + 8)
    )
    white = colour[colour.index(b"wtpt") + 4 :]
    point = colour[int.from_bytes(white[:4], "big") :][:20]
    table = (2).to_bytes(4, "big") + b"wtpt" + (156).to_bytes(4, "big") + (20).to_bytes(4, "big")
    table += b"kTRC" + (176).to_bytes(4, "big") + size.to_bytes(4, "big")
    data = colour[4:16] + b"GRAY" + colour[20:128] + table + point + colour[at : at + size]
    return (len(data) + 4).to_bytes(4, "big") + data


def seen(path: Path) -> list[tuple[int, int, int]]:
    picture = open_picture(path)
    return [picture.getpixel((column * 16 + 8, 8)) for column in range(picture.width // 16)]


def near(found: list, wanted: list, levels: int = 1) -> bool:
    return bool(numpy.abs(numpy.array(found) - numpy.array(wanted)).max() <= levels)


@pytest.mark.parametrize("name", ["iphone_display_p3.jpg", "camera_adobe_rgb.jpg", "print_cmyk_with_profile.jpg"])
def test_embedded_profiles(name: str) -> None:
    """The profile was dropped, so a camera's or telephone's picture was 3 to 16 levels off."""
    with Image.open(CASES / name) as picture:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(picture.info["icc_profile"]))
        wanted = ImageCms.profileToProfile(picture, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        plain = numpy.asarray(picture.convert("RGB")).astype(int)
    result = open_picture(CASES / name)
    assert near(result, wanted)
    assert numpy.abs(numpy.asarray(result) - plain).max() > 3
    assert "icc_profile" not in result.info, "it would be written into our own files"


def test_what_a_png_says_without_a_profile(tmp_path: Path) -> None:
    """Gamma, and primaries beside it, count as in browsers; an sRGB chunk goes before them; primaries alone say nothing."""
    path = tmp_path / "a.png"
    assert near(seen(png(path, COLOURS, gama(1))), GAMMA_1)
    assert near(seen(png(path, GREYS, gama(1))), GAMMA_1_GREY)
    assert seen(png(path, COLOURS, chunk(b"sRGB", b"\0"), gama(1))) == COLOURS
    assert seen(png(path, COLOURS, gama(0.45455))) == COLOURS
    assert seen(png(path, COLOURS, chrm(P3))) == COLOURS
    assert near(seen(png(path, COLOURS[:1] + COLOURS[3:5], gama(0.45455), chrm(P3))), [(241, 0, 0), (129,) * 3, (12,) * 3])
    for nonsense in ((0,) * 8, (0.3, 0.3) * 4, (1, 0) * 4):
        assert seen(png(path, COLOURS, gama(0.45455), chrm(nonsense))) == COLOURS


@pytest.mark.parametrize("depth", [8, 16])
def test_colour_and_grey_of_8_and_16_bits(depth: int, tmp_path: Path) -> None:
    """A profile counts for pictures of 16 bits and for grey ones too, also where a grey picture has one for colours."""
    path = tmp_path / "a.png"
    adobe = _profile_of((0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06), 2.19921875)
    assert near(seen(png(path, COLOURS, iccp(adobe), depth=depth)), ADOBE)
    assert near(seen(png(path, GREYS, iccp(grey_profile(1.0)), depth=depth)), GAMMA_1_GREY)
    assert near(seen(png(path, GREYS, iccp(_profile_of(SRGB_PRIMARIES, 1.0)), depth=depth)), GAMMA_1_GREY)


def test_masks_are_numbers(tmp_path: Path) -> None:
    """Masks are numbers: half is half, whatever colour profile a paint program stored."""
    path = png(tmp_path / "a.png", GREYS, iccp(grey_profile(1.0)))
    mask = open_mask(path)
    assert [(mask.getpixel((column * 16 + 8, 8)),) for column in range(len(GREYS))] == GREYS


def test_profiles_of_srgb_are_passed_over() -> None:
    """Most profiles are sRGB's: such pictures stay as they are, to the level, and cost nothing."""
    picture = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=numpy.uint8))
    for profile in (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), _profile_of(SRGB_PRIMARIES, None)):
        picture.info["icc_profile"] = profile
        assert Conversion(picture)(picture).tobytes() == picture.tobytes()


@pytest.mark.parametrize("kind", ["noise", "cut", "other space"])
def test_a_broken_profile_is_said_and_left_out(kind: str, tmp_path: Path) -> None:
    """The picture is taken for sRGB then, and the user reads why."""
    profile = {"noise": b"no profile at all", "cut": _profile_of(P3, 2.2)[:150], "other space": grey_profile(2.2)}[kind]
    path = png(tmp_path / "a.png", COLOURS, iccp(profile))
    assert seen(path) == COLOURS
    problem = profile_problem("image", path)
    say_everything([problem])
    assert (problem.field, problem.key) == ("image", "picture_profile")
    with pytest.raises(ProfileError), Image.open(path) as picture:
        Conversion(picture)
    assert profile_problem("image", png(tmp_path / "b.png", COLOURS)) is None


def test_lab(tmp_path: Path) -> None:
    """A LAB picture is read, although Pillow itself cannot show such a TIFF."""
    Image.new("LAB", (32, 32), (128, 128, 128)).save(tmp_path / "a.tif")
    assert near([open_picture(tmp_path / "a.tif").getpixel((3, 3))], [(119, 119, 119)])


def test_transparent_pictures_with_a_profile(tmp_path: Path) -> None:
    """Colours are converted before they are laid on white, not after."""
    profile = _profile_of(SRGB_PRIMARIES, 1.0)
    Image.new("RGBA", (32, 32), (128, 40, 0, 128)).save(tmp_path / "a.png", icc_profile=profile)
    assert near([open_picture(tmp_path / "a.png").getpixel((3, 3))], [(221, 182, 127)])
