"""Check users' pictures, and turn every readable one into upright 8-bit RGB in sRGB."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy
from PIL import Image, UnidentifiedImageError

from diffusers_helper.buckets import bucket
from eichi_utils.files.colours import Conversion, ProfileError
from eichi_utils.files.picture_files import DAMAGE, FORMAT_NAMES, MAX_PIXELS, TURNS, TooManyPixelsError, opened, orientation
from eichi_utils.files.picture_memory import needed_bytes, room
from eichi_utils.problems import Problem, UserError

# Below this a picture has less detail than one cell of the model's patch grid (16 pixels).
MIN_SIDE = 16
# A camera's 45 megapixels are 15 to 100 MB, as JPEG or PNG; the model looks at one megapixel.
MAX_BYTES = 150 * 2**20
# EXIF orientations in which the stored picture lies on its side.
LYING = (5, 6, 7, 8)
# Pixels that are converted at a time: a whole picture in floating point would take eight times the memory of the picture.
STRIP = 2**20
ALPHA = ("LA", "PA", "RGBA", "La", "RGBa")
# Modes with premultiplied or indexed transparency, and 1-bit pictures -> the plain mode they are converted to first.
PLAIN = {"PA": "RGBA", "La": "LA", "RGBa": "RGBA", "1": "L"}


def picture_problem(field: str, path: Any) -> Problem | None:
    """Return why `open_picture(path)` would fail, or None. Decodes the picture, since a truncated file shows only then."""
    if not isinstance(path, (str, Path)):
        return Problem(field, "wrong_type", {"value": str(path)[:80]})
    if not str(path):
        return Problem(field, "picture_needed")
    if not is_unicode(str(path)):
        return Problem(field, "name_not_unicode", {"file": str(path).encode(errors="replace").decode()})
    try:
        state = Path(path).stat()
    except (OSError, ValueError):
        return Problem(field, "picture_missing", {"file": str(path)})
    problem = _judged(str(path), state.st_mtime_ns, state.st_size)
    return problem and replace(problem, field=field)


def is_unicode(text: str) -> bool:
    """Say whether a text has a form in UTF-8, as metadata need; lone surrogates and undecodable file names have none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@lru_cache(maxsize=64)
def _judged(path: str, mtime_ns: int, size: int) -> Problem | None:
    """Return what is wrong with a picture, cached by the file's state.

    A page asks again at every key pressed, and decoding a photo takes a tenth of a second.
    """

    def tried(picture: Image.Image) -> Image.Image:
        # The result is dropped here, so that its memory is free before the next picture is decoded.
        as_rgb(picture)
        return picture

    try:
        _read(path, "image", tried)
    except UserError as error:
        return error.problems[0]
    return None


def fitted_size(path: str | Path, size: int) -> tuple[int, int]:
    """Return the (height, width) of a film made from this picture. Reads only the file's head. Raises OSError or ValueError."""
    try:
        with opened(path) as picture:
            width, height = picture.size
            if orientation(picture) in LYING:
                width, height = height, width
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None
    return bucket(size, height, width)


def open_picture(path: str | Path, field: str = "image") -> Image.Image:
    """Return the picture as upright RGB in sRGB.

    EXIF orientation is applied, colours are converted through the file's profile, transparency is laid on white, 16 bits are
    scaled to 8, and of an animation the first frame is taken. A profile that cannot be used is left out; see `profile_problem`.
    Raises UserError if the file cannot be used.
    """
    return _read(path, field, as_rgb)


def open_mask(path: str | Path, field: str = "mask") -> Image.Image:
    """Return a mask as upright 8-bit grey: white keeps, black hides. Its values are not colours, so no profile is applied.

    If the picture has transparent parts, its alpha is the mask. Raises UserError if the file cannot be used.
    """

    def read(picture: Image.Image) -> Image.Image:
        if picture.mode in ALPHA or "transparency" in picture.info:
            alpha = _in_strips(picture, "L", lambda strip: strip.convert("RGBA").getchannel("A"))
            # Paint programs save black-and-white masks with an alpha channel that is opaque everywhere.
            if _extremes(alpha)[0] < 255:
                return alpha
        white = _white(picture)
        return _in_strips(picture, "L", lambda strip: _grey(_16_bits(strip, white)))

    return _read(path, field, read)


def small_picture(source: str | Path | BinaryIO, side: int, most: int = MAX_PIXELS) -> Image.Image:
    """Return a thumbnail as upright RGB, of at most `side` pixels each way.

    Raises UserError if the picture cannot be read, or has more than `most` pixels.
    """
    return _read(source, "", lambda picture: _shrunk(picture, side), most)


def profile_problem(field: str, path: str | Path) -> Problem | None:
    """Return why a picture's colours are taken as sRGB although its file has a profile, or None. Decodes nothing."""
    try:
        state = Path(path).stat()
    except (OSError, ValueError):
        return None
    reason = _profile_reason(str(path), state.st_mtime_ns, state.st_size)
    return Problem(field, "picture_profile", {"file": str(path), "reason": reason}) if reason else None


@lru_cache(maxsize=64)
def _profile_reason(path: str, mtime_ns: int, size: int) -> str:
    """Return why a picture's profile cannot be used, "" if it can; cached by the file's state, as `_judged`."""
    try:
        with opened(path) as picture:
            Conversion(picture)
    except ProfileError as error:
        return str(error)[:200]
    except (*DAMAGE, Image.DecompressionBombError):
        # `picture_problem` reports other damage.
        pass
    return ""


def as_rgb(picture: Image.Image) -> Image.Image:
    """Return a loaded picture as upright RGB in sRGB. Of its EXIF only the orientation is used."""
    try:
        convert = Conversion(picture)
    except ProfileError:
        convert = Conversion.without_profile(picture)
    white = _white(picture)

    def converted(strip: Image.Image) -> Image.Image:
        if strip.mode == "P" or "transparency" in strip.info:
            strip = strip.convert("RGBA" if "transparency" in strip.info else "RGB")
        strip = strip.convert(PLAIN.get(strip.mode, strip.mode))
        if strip.mode not in ("LA", "RGBA"):
            return convert(_16_bits(strip, white))
        ground = Image.new("RGB", strip.size, "white")
        ground.paste(convert(strip.convert(strip.mode[:-1])), mask=strip.getchannel("A"))
        return ground

    return _in_strips(picture, "RGB", converted)


def _read(
    source: str | Path | BinaryIO, field: str, read: Callable[[Image.Image], Image.Image], most: int = MAX_PIXELS
) -> Image.Image:
    """Return the result of `read` for a loaded picture. Raises UserError if it cannot be loaded or converted."""
    values: dict[str, Any] = {"file": str(source) if isinstance(source, (str, Path)) else ""}
    try:
        if isinstance(source, (str, Path)):
            _check_file(Path(source), field, values)
        with opened(source) as picture:
            width, height = picture.size
            if min(width, height) < MIN_SIDE:
                sizes = {"width": width, "height": height, "min": MIN_SIDE}
                raise UserError([Problem(field, "picture_too_small", {**values, **sizes})])
            if width * height > most:
                raise TooManyPixelsError(width, height, most)
            with room().taken(needed_bytes(picture)):
                try:
                    picture.load()
                    return read(picture)
                finally:
                    # Otherwise its pixels would stay in memory until the caller is done.
                    picture.close()
    except Image.DecompressionBombError as error:
        limit = error.most if isinstance(error, TooManyPixelsError) else most
        raise UserError([Problem(field, "picture_too_large", {**values, "limit": limit // 1_000_000})]) from None
    except UnidentifiedImageError:
        raise UserError([Problem(field, "picture_unknown_format", {**values, "formats": FORMAT_NAMES})]) from None
    except PermissionError:
        raise UserError([Problem(field, "picture_no_permission", values)]) from None
    except DAMAGE as error:
        raise UserError([Problem(field, "picture_damaged", {**values, "reason": str(error)[:200]})]) from None


def _check_file(path: Path, field: str, values: dict[str, Any]) -> None:
    if not path.is_file():
        raise UserError([Problem(field, "picture_missing", values)])
    size = path.stat().st_size
    if size == 0:
        raise UserError([Problem(field, "picture_empty", values)])
    if size > MAX_BYTES:
        sizes = {"size": size // 2**20, "limit": MAX_BYTES // 2**20}
        raise UserError([Problem(field, "picture_too_many_bytes", {**values, **sizes})])


def _in_strips(picture: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Return an upright picture of `mode` made of strips that `convert` returns; only one strip is in memory besides."""
    turned = orientation(picture)
    width, height = picture.size
    result = Image.new(mode, (height, width) if turned in LYING else (width, height))
    rows = max(1, STRIP // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strip = convert(picture.crop((0, top, width, bottom)))
        # Orientations that move the first row to the bottom or to the right reverse the order of the strips.
        at = height - bottom if turned in (3, 4, 6, 7) else top
        upright = strip.transpose(TURNS[turned]) if turned in TURNS else strip
        result.paste(upright, (at, 0) if turned in LYING else (0, at))
    return result


def _shrunk(picture: Image.Image, side: int) -> Image.Image:
    small = as_rgb(picture)
    small.thumbnail((side, side))
    return small


def _grey(strip: Image.Image) -> Image.Image:
    if strip.mode == "I;16":
        strip = Conversion.without_profile(strip)(strip)
    return strip.convert("L" if strip.mode in ("1", "L") else "RGB").convert("L")


def _white(picture: Image.Image) -> float:
    """Return the value of white in a picture of 16-bit integers or floating-point numbers; 0 for other modes.

    Integer pictures hold 16 bits, whatever their container; floating-point ones hold 0 to 1 by convention.
    """
    if picture.mode == "F":
        return 1.0 if _extremes(picture)[1] <= 1.0 else 65535.0
    return 65535.0 if picture.mode == "I" or picture.mode.startswith("I;16") else 0.0


def _extremes(picture: Image.Image) -> tuple[float, float]:
    """Return the smallest and the largest value of a picture with one band. Raises ValueError for several bands."""
    least, greatest = picture.getextrema()
    if isinstance(least, tuple) or isinstance(greatest, tuple):
        raise ValueError(f"a picture of mode {picture.mode} has several bands")
    return least, greatest


def _16_bits(strip: Image.Image, white: float) -> Image.Image:
    if not white:
        return strip
    numbers = numpy.nan_to_num(numpy.asarray(strip).astype(numpy.float32) * (65535.0 / white))
    return Image.fromarray(numbers.clip(0, 65535).round().astype(numpy.uint16))
