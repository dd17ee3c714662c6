"""Users' pictures: what can be read, and how everything readable becomes upright 8-bit RGB in sRGB."""

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
# Pixels that are converted at a time: floating-point numbers of a whole picture would be eight times the picture.
STRIP = 2**20
ALPHA = ("LA", "PA", "RGBA", "La", "RGBa")
# What each way to store transparency is read as before anything is done with it.
PLAIN = {"PA": "RGBA", "La": "LA", "RGBa": "RGBA", "1": "L"}


def picture_problem(field: str, path: Any) -> Problem | None:
    """None if `open_picture(path)` will work, otherwise what is wrong with the file. Decodes it, to find truncation."""
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
    """Whether UTF-8, and so a file's metadata, can hold the text; half a surrogate pair or a byte of a file name cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@lru_cache(maxsize=64)
def _judged(path: str, mtime_ns: int, size: int) -> Problem | None:
    """Kept by file state: a page asks again at every key the user presses, and decoding a photo takes a tenth of a second."""

    def tried(picture: Image.Image) -> Image.Image:
        # Nobody keeps the result, which is to be gone before the next one takes the room.
        as_rgb(picture)
        return picture

    try:
        _read(path, "image", tried)
    except UserError as error:
        return error.problems[0]
    return None


def fitted_size(path: str | Path, size: int) -> tuple[int, int]:
    """(height, width) a film from this picture would have; reads only the file's head. Raises OSError or ValueError."""
    try:
        with opened(path) as picture:
            width, height = picture.size
            if orientation(picture) in LYING:
                width, height = height, width
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None
    return bucket(size, height, width)


def open_picture(path: str | Path, field: str = "image") -> Image.Image:
    """Return the picture as upright RGB in sRGB: EXIF orientation applied, colours converted through the file's profile,
    transparency laid on white, 16 bits scaled to 8, first frame of an animation.

    A profile that cannot be used is left out; see `profile_problem`. Raises UserError if the file cannot be used.
    """
    return _read(path, field, as_rgb)


def open_mask(path: str | Path, field: str = "mask") -> Image.Image:
    """Return a mask as upright 8-bit grey: white keeps, black hides; its numbers are no colours, and no profile changes them.

    Where a picture has transparent parts, its alpha is the mask.
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

    Raises UserError if there is none to be made, or the picture has more than `most` pixels.
    """
    return _read(source, "", lambda picture: _shrunk(picture, side), most)


def profile_problem(field: str, path: str | Path) -> Problem | None:
    """Return why a picture's colours are taken for sRGB although its file has a profile, or None. Decodes nothing."""
    try:
        state = Path(path).stat()
    except (OSError, ValueError):
        return None
    reason = _profile_reason(str(path), state.st_mtime_ns, state.st_size)
    return Problem(field, "picture_profile", {"file": str(path), "reason": reason}) if reason else None


@lru_cache(maxsize=64)
def _profile_reason(path: str, mtime_ns: int, size: int) -> str:
    """Kept by file state, as `_judged`."""
    try:
        with opened(path) as picture:
            Conversion(picture)
    except ProfileError as error:
        return str(error)[:200]
    except (*DAMAGE, Image.DecompressionBombError):
        # What else is wrong, `picture_problem` says.
        pass
    return ""


def as_rgb(picture: Image.Image) -> Image.Image:
    """Return a loaded picture as upright RGB in sRGB; nothing else of EXIF than its orientation is looked at."""
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
    """Return what is made of a loaded picture. Raises UserError if it cannot be loaded or made."""
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
                    # Else its pixels would stay until the caller is done.
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
    """Return a picture of another mode, upright, made of `convert`ed strips; only one needs room beside the two pictures."""
    turned = orientation(picture)
    width, height = picture.size
    result = Image.new(mode, (height, width) if turned in LYING else (width, height))
    rows = max(1, STRIP // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strip = convert(picture.crop((0, top, width, bottom)))
        # Where EXIF turns the first row to the bottom or to the right, strips come in reverse.
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
    """Return the number that is white in a picture of numbers; 0 in others.

    Integer pictures hold 16 bits whatever container they use; floating-point ones hold 0 to 1 by convention.
    """
    if picture.mode == "F":
        return 1.0 if _extremes(picture)[1] <= 1.0 else 65535.0
    return 65535.0 if picture.mode == "I" or picture.mode.startswith("I;16") else 0.0


def _extremes(picture: Image.Image) -> tuple[float, float]:
    """Return the least and the greatest number of a picture of one band. Raises ValueError for one of several."""
    least, greatest = picture.getextrema()
    if isinstance(least, tuple) or isinstance(greatest, tuple):
        raise ValueError(f"a picture of mode {picture.mode} has several bands")
    return least, greatest


def _16_bits(strip: Image.Image, white: float) -> Image.Image:
    if not white:
        return strip
    numbers = numpy.nan_to_num(numpy.asarray(strip).astype(numpy.float32) * (65535.0 / white))
    return Image.fromarray(numbers.clip(0, 65535).round().astype(numpy.uint16))
