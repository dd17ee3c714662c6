"""Test that every readable picture of a user becomes upright RGB, and every other file a sentence."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageOps

from diffusers_helper.buckets import bucket
from eichi_utils.files import pictures
from eichi_utils.files.pictures import (
    MAX_PIXELS,
    MIN_SIDE,
    fitted_size,
    open_mask,
    open_picture,
    picture_problem,
    small_picture,
)
from eichi_utils.problems import Problem, UserError
from tests.eichi_utils.helpers import found, picture

CASES = Path(__file__).parents[2] / "cases"
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def problem_key(path: str | Path) -> str | None:
    """Return the one problem that both readers and the check find, or None."""
    problem = picture_problem("image", path)
    keys = []
    for read in (open_picture, open_mask):
        try:
            read(path, "image")
            keys.append(None)
        except UserError as error:
            ((field, key),) = found(error.problems)
            assert field == "image"
            keys.append(key)
    assert keys[0] == keys[1] == (problem.key if problem else None)
    return keys[0]


def opening_problem(path: str) -> Problem:
    with pytest.raises(UserError) as error:
        open_picture(path)
    return error.value.problems[0]


def opened(path: Path) -> Image.Image:
    result = open_picture(path)
    assert result.mode == "RGB"
    assert problem_key(path) is None
    return result


def stored(path: Path) -> tuple[str, int]:
    """Return the mode and the number of frames of a picture file."""
    with Image.open(path) as file:
        return file.mode, getattr(file, "n_frames", 1)


def png_of_zeros(path: Path, width: int, height: int) -> Path:
    """Write a 1-bit PNG of any size without the memory for its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    row = bytes(1 + (width + 7) // 8)
    packer = zlib.compressobj()
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def test_what_is_no_file_or_no_picture(tmp_path: Path) -> None:
    """Each way in which a path can be wrong has its own sentence, so that the user knows what to mend."""
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("this is no picture\n" * 50)
    (tmp_path / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>')
    assert problem_key(tmp_path / "gone.png") == "picture_missing"
    assert problem_key(tmp_path) == "picture_missing"
    assert problem_key(tmp_path / "empty.png") == "picture_empty"
    assert problem_key(tmp_path / "text.png") == "picture_unknown_format"
    assert problem_key(tmp_path / "drawing.svg") == "picture_unknown_format"
    for wrong in (5, 1.5, ["a"], {"a": 1}, True):
        assert found([picture_problem("image", wrong)]) == {("image", "wrong_type")}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    """A permission problem is not called a damaged file."""
    path = Path(picture(tmp_path / "a.png"))
    path.chmod(0)
    assert problem_key(path) == "picture_no_permission"


@pytest.mark.parametrize(("name", "settings"), [("a.png", {}), ("a.jpg", {"quality": 95}), ("a.gif", {}), ("a.webp", {})])
def test_a_file_that_was_cut_off(name: str, settings: dict, tmp_path: Path) -> None:
    """A broken download has a good header: only decoding it all finds out, and it must be found before the GPU's work."""
    path = Path(picture(tmp_path / name, 96, 64, **settings))
    whole = path.read_bytes()
    assert problem_key(path) is None
    path.write_bytes(whole[: len(whole) * 6 // 10])
    assert problem_key(path) in ("picture_damaged", "picture_unknown_format")
    assert problem_key(path) == "picture_damaged" or name == "a.webp"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_damage_gets_past_as_a_crash(form: str, tmp_path: Path) -> None:
    """Whatever a decoder stumbles over, the user reads a sentence: 120 damaged files of each format, always the same."""
    pixels = numpy.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=numpy.uint8)
    stream = io.BytesIO()
    try:
        Image.fromarray(pixels).save(stream, form)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {form}")
    whole, chance, path = stream.getvalue(), random.Random(1), tmp_path / "damaged"
    for trial in range(120):
        data = bytearray(whole)
        if trial < 40:
            del data[chance.randrange(1, len(data)) :]
        else:
            for _ in range(chance.randrange(1, 4)):
                data[chance.randrange(min(len(data), 400))] = chance.randrange(256)
        path.write_bytes(bytes(data))
        for read in (open_picture, open_mask):
            try:
                read(path)
            except UserError as error:
                found(error.problems)


def test_too_small_and_too_large(tmp_path: Path) -> None:
    """A 1x1 tracking pixel and a decompression bomb are refused from the header; a long strip is fine."""
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    assert problem_key(tmp_path / "dot.png") == "picture_too_small"
    Image.new("RGB", (MIN_SIDE, MIN_SIDE)).save(tmp_path / "least.png")
    assert problem_key(tmp_path / "least.png") is None
    Image.new("RGB", (MIN_SIDE - 1, 500)).save(tmp_path / "narrow.png")
    assert problem_key(tmp_path / "narrow.png") == "picture_too_small"
    assert problem_key(png_of_zeros(tmp_path / "bomb.png", 20000, 20000)) == "picture_too_large"
    # Between Pillow's warning and its error lies what only our own limit refuses.
    assert MAX_PIXELS < 12000 * 10000 < 2 * Image.MAX_IMAGE_PIXELS
    assert problem_key(png_of_zeros(tmp_path / "large.png", 12000, 10000)) == "picture_too_large"
    strip = png_of_zeros(tmp_path / "strip.png", 20000, 50)
    assert opened(strip).size == (20000, 50)


def test_a_file_of_200_megabytes(tmp_path: Path) -> None:
    """Refused by its size, before anything of it is read."""
    with (tmp_path / "scan.png").open("wb") as file:
        file.truncate(200 * 2**20)
    assert problem_key(tmp_path / "scan.png") == "picture_too_many_bytes"


def test_colour_models(tmp_path: Path) -> None:
    """CMYK, palette, grey, bilevel and 16-bit RGB all arrive in the colours a viewer shows."""
    red = Image.new("RGB", (32, 32), RED)
    red.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert numpy.abs(numpy.asarray(opened(tmp_path / "cmyk.jpg"), int) - RED).max() <= 3
    red.quantize(4).save(tmp_path / "palette.png")
    assert stored(tmp_path / "palette.png") == ("P", 1)
    assert opened(tmp_path / "palette.png").getpixel((5, 5)) == RED
    Image.new("L", (32, 32), 77).save(tmp_path / "grey.png")
    assert opened(tmp_path / "grey.png").getpixel((5, 5)) == (77, 77, 77)
    Image.new("1", (32, 32), 1).save(tmp_path / "bit.png")
    assert opened(tmp_path / "bit.png").getpixel((5, 5)) == WHITE


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    """The transparent index of a palette is white ground, not the colour that happens to stand in the palette."""
    picture = Image.new("P", (32, 32), 0)
    picture.putpalette([*RED, *GREEN])
    picture.paste(1, (16, 0, 32, 32))
    for name in ("a.png", "a.gif"):
        picture.save(tmp_path / name, transparency=0)
        result = opened(tmp_path / name)
        assert (result.getpixel((5, 5)), result.getpixel((20, 5))) == (WHITE, GREEN), name
        # As a mask: transparent hides, opaque keeps.
        mask = open_mask(tmp_path / name)
        assert (mask.mode, mask.getpixel((5, 5)), mask.getpixel((20, 5))) == ("L", 0, 255), name


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    """Cut-out figures (RGBA, LA) get a white ground in proportion to their alpha, not the hidden colour below."""
    Image.new("RGBA", (32, 32), (255, 0, 0, 128)).save(tmp_path / "rgba.png")
    assert opened(tmp_path / "rgba.png").getpixel((3, 3)) == (255, 127, 127)
    Image.new("RGBA", (32, 32), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert opened(tmp_path / "clear.png").getpixel((3, 3)) == WHITE
    Image.new("LA", (32, 32), (0, 64)).save(tmp_path / "la.png")
    assert opened(tmp_path / "la.png").getpixel((3, 3)) == (191, 191, 191)
    Image.new("RGB", (32, 32), BLUE).save(tmp_path / "keyed.png", transparency=BLUE)
    assert opened(tmp_path / "keyed.png").getpixel((3, 3)) == WHITE


def test_16_bit_grey_is_scaled_not_cut(tmp_path: Path) -> None:
    """65535 is white and 257 v is v: Pillow's own conversion would clip everything above 255 to white."""
    values = numpy.repeat(numpy.arange(0, 256, dtype=numpy.uint16) * 257, 16).reshape(256, 16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert stored(tmp_path / "deep.png")[0].startswith("I")
    result = numpy.asarray(opened(tmp_path / "deep.png"))
    expected = numpy.arange(256, dtype=numpy.uint8)[:, None, None].repeat(16, 1).repeat(3, 2)
    assert (result == expected).all()
    assert (numpy.asarray(open_mask(tmp_path / "deep.png")) == expected[..., 0]).all()


def test_floating_point_pictures(tmp_path: Path) -> None:
    """TIFFs from editors hold 0 to 1."""
    Image.fromarray(numpy.full((32, 32), 0.5, numpy.float32)).save(tmp_path / "float.tif")
    assert opened(tmp_path / "float.tif").getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_the_first_frame_of_an_animation(name: str, tmp_path: Path) -> None:
    """A dropped GIF, WebP or APNG starts the film with what it starts with."""
    frames = [Image.new("RGB", (32, 32), colour) for colour in (RED, GREEN, BLUE)]
    settings = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=50, loop=0, **settings)
    assert stored(tmp_path / name)[1] == 3
    assert opened(tmp_path / name).getpixel((4, 4)) == RED


@pytest.mark.parametrize("orientation", range(1, 9))
def test_phone_photos_stand_upright(orientation: int, tmp_path: Path) -> None:
    """All eight EXIF orientations show what the camera saw: red above green, blue above white (the existing program lies)."""
    seen = Image.new("RGB", (64, 48), WHITE)
    seen.paste(RED, (0, 0, 32, 24))
    seen.paste(BLUE, (32, 0, 64, 24))
    seen.paste(GREEN, (0, 24, 32, 48))
    turn = Image.Transpose
    # Turn `seen` into the stored picture from which a viewer that follows the orientation tag gets it.
    turns = {
        1: (), 2: (turn.FLIP_LEFT_RIGHT,), 3: (turn.ROTATE_180,), 4: (turn.FLIP_TOP_BOTTOM,),
        5: (turn.TRANSPOSE,), 6: (turn.ROTATE_90,), 7: (turn.TRANSVERSE,), 8: (turn.ROTATE_270,),
    }[orientation]  # fmt: skip
    raw = seen
    for step in turns:
        raw = raw.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw.save(tmp_path / "phone.png", exif=exif)
    raw.save(tmp_path / "phone.jpg", exif=exif, quality=100, subsampling=0)
    assert opened(tmp_path / "phone.png").tobytes() == seen.tobytes()
    assert open_mask(tmp_path / "phone.png").size == (64, 48)
    result = numpy.asarray(opened(tmp_path / "phone.jpg"), int)
    assert result.shape == (48, 64, 3)
    assert numpy.abs(result - numpy.asarray(seen, int)).mean() < 4


@pytest.mark.parametrize("name", ["exif_negative_rational.jpg", "exif_xres_as_ascii.jpg"])
def test_exif_that_can_be_read_but_not_written(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cameras write resolutions that no writer of EXIF takes; turning the picture wrote all of it anew, and failed."""
    monkeypatch.setattr(Image.Exif, "tobytes", lambda *_: pytest.fail("EXIF is written"))
    with Image.open(CASES / name) as stored:
        stored.load()
        wanted = stored.transpose(Image.Transpose.ROTATE_270)
    assert opened(CASES / name).tobytes() == wanted.tobytes()
    assert open_mask(CASES / name).tobytes() == wanted.convert("L").tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_strip_by_strip(orientation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large pictures are converted in strips, each of which is turned and laid where it belongs."""
    monkeypatch.setattr(pictures, "STRIP", 40 * 7)
    pixels = numpy.random.default_rng(0).integers(0, 256, (53, 40, 3), dtype=numpy.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as stored:
        wanted = ImageOps.exif_transpose(stored)
    result = opened(tmp_path / "a.png")
    assert (result.size, result.tobytes()) == (wanted.size, wanted.tobytes())


@pytest.mark.parametrize("name", ["emf_zero_size.emf", "eps_endless_loop_named.png", "png_palette_tRNS_too_long.png"])
def test_hostile_pictures(name: str) -> None:
    """PostScript started Ghostscript, and stayed as a process; the others were a traceback."""
    assert problem_key(CASES / "hostile" / name) in ("picture_unknown_format", "picture_damaged")


def test_pictures_with_much_metadata() -> None:
    """Good pictures with more than a megabyte beside the pixels were "damaged or cut off"."""
    for name in ("png_icc_1500kB.png", "png_xmp_2MB_compressed.png"):
        assert opened(CASES / name).size == (64, 64)


def test_a_telephone_s_photo(tmp_path: Path) -> None:
    """HEIC, also where only its name was changed, as start picture and as mask; its size is known from its head."""
    for name in ("a.heic", "a.jpg"):
        shutil.copyfile(CASES / "iphone_photo.heic", tmp_path / name)
        assert opened(tmp_path / name).size == (256, 256)
        assert fitted_size(tmp_path / name, 128) == (128, 128)


@pytest.mark.process
def test_deep_pictures_in_little_memory(tmp_path: Path) -> None:
    """A picture of 16 bits became floating-point numbers as a whole: 100 megapixels were 3 GB. Here 16 are to take 130 MB."""
    resource = pytest.importorskip("resource")
    rows = numpy.zeros((4000, 4000), numpy.uint16)
    Image.fromarray(rows).save(tmp_path / "deep.png", compress_level=1)
    code = (
        "import resource, sys; from eichi_utils.files.pictures import open_picture, open_mask\n"
        "most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = most(); open_picture(sys.argv[1]); print(most() - before)"
    )
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path / "deep.png")], capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert resource and int(found.stdout) * unit < 180 * 2**20


def test_thumbnails(tmp_path: Path) -> None:
    """Small, upright, in sRGB, from a file or from bytes; what is no picture is a problem like any other."""
    for source in (CASES / "exif_xres_as_ascii.jpg", io.BytesIO((CASES / "camera_adobe_rgb.jpg").read_bytes())):
        small = small_picture(source, 32)
        assert (small.mode, max(small.size), "icc_profile" in small.info) == ("RGB", 32, False)
    with pytest.raises(UserError):
        small_picture(io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0"), 32)


def test_masks(tmp_path: Path) -> None:
    """White keeps and black hides; an alpha channel counts where it hides something, and not where it is opaque all over."""
    grey = Image.new("L", (32, 32), 0)
    grey.paste(200, (16, 0, 32, 32))
    grey.save(tmp_path / "grey.png")
    grey.convert("RGB").save(tmp_path / "rgb.png")
    opaque = grey.convert("RGBA")
    opaque.save(tmp_path / "opaque.png")
    alpha = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    alpha.paste((0, 0, 0, 200), (16, 0, 32, 32))
    alpha.save(tmp_path / "alpha.png")
    for name in ("grey", "rgb", "opaque", "alpha"):
        mask = open_mask(tmp_path / f"{name}.png")
        assert mask.mode == "L"
        assert mask.tobytes() == grey.tobytes(), name


def test_the_reader_keeps_no_file_open(tmp_path: Path) -> None:
    """The reader closes each file, because on Windows an open file cannot be deleted or replaced."""
    path = Path(picture(tmp_path / "a.png"))
    result = open_picture(path)
    path.unlink()
    assert result.getpixel((0, 0))


@pytest.mark.parametrize("path", ["a\0b.png", "x" * 5000])
def test_names_that_no_system_accepts(path: str) -> None:
    """HTTP and JSON can carry any string as a path: it is a missing or damaged file, not a crash."""
    for key in (picture_problem("image", path).key, opening_problem(path).key):
        assert key in ("picture_missing", "picture_damaged")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp", "a.avif"])
def test_the_size_before_the_pixels_are_read(name: str, orientation: int, tmp_path: Path) -> None:
    """A lying TIFF was promised a lying film: its reader had turned the size already."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (96, 64)).save(tmp_path / name, exif=exif)
    width, height = open_picture(tmp_path / name).size
    assert (width > height) == (orientation < 5)
    assert fitted_size(tmp_path / name, 640) == bucket(640, height, width)
