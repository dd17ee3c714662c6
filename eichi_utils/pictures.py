"""Users' pictures: what can be read, and how everything readable becomes upright 8-bit RGB."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from diffusers_helper.buckets import bucket
from eichi_utils.problems import Problem, UserError
from eichi_utils.safe_reading import open_regular

# Below this a picture has less detail than one cell of the model's patch grid (16 pixels).
MIN_SIDE = 16
# 100 megapixels decode to 300 MB; more is a scan or an accident, and costs more memory than the model's own buffers.
MAX_PIXELS = 100_000_000
# A camera's 45 megapixels are 15 to 100 MB, as JPEG or PNG; the model looks at one megapixel.
MAX_BYTES = 150 * 2**20
# Pillow's names; without such a list it hands PostScript to Ghostscript, and reads forty formats that nobody tries.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PSD")
# EXIF orientations in which the stored picture lies on its side.
LYING = (5, 6, 7, 8)


@contextmanager
def opened(source: str | Path | BinaryIO) -> Iterator[Image.Image]:
    """Open a picture without decoding it, if it has one of the formats that this program reads.

    source: a path, which must be a regular file's, or a stream of bytes. Raises what Pillow raises, and UnsafeError.
    """
    with ExitStack() as stack:
        file = stack.enter_context(open_regular(source)) if isinstance(source, (str, Path)) else source
        yield stack.enter_context(Image.open(file, formats=FORMATS))


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
    try:
        open_picture(path)
    except UserError as error:
        return error.problems[0]
    return None


def fitted_size(path: str | Path, size: int) -> tuple[int, int]:
    """(height, width) a film from this picture would have; reads only the file's head. Raises OSError or ValueError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with opened(path) as picture:
                width, height = picture.size
                if picture.getexif().get(ExifTags.Base.Orientation, 1) in LYING:
                    width, height = height, width
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None
    return bucket(size, height, width)


def open_picture(path: str | Path, field: str = "image") -> Image.Image:
    """The picture as upright RGB: EXIF orientation applied, transparency laid on white, 16 bits scaled to 8, first frame
    of an animation. Raises UserError with the reason if the file cannot be used."""
    picture = _load(path, field)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture = _to_8_bits(picture)
    if picture.mode in ("P", "PA", "LA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    if picture.mode == "RGBA":
        ground = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(ground, picture)
    return picture.convert("RGB")


def open_mask(path: str | Path, field: str = "mask") -> Image.Image:
    """A mask as upright 8-bit grey: white keeps, black hides. Where a picture has transparent parts, its alpha is the mask."""
    picture = _load(path, field)
    if picture.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in picture.info:
        alpha = picture.convert("RGBA").getchannel("A")
        # Paint programs save black-and-white masks with an alpha channel that is opaque everywhere.
        if alpha.getextrema()[0] < 255:
            return alpha
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture = _to_8_bits(picture)
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB").convert("L")


def _load(path: str | Path, field: str) -> Image.Image:
    path = Path(path)
    values: dict[str, Any] = {"file": str(path)}
    try:
        if not path.is_file():
            raise UserError([Problem(field, "picture_missing", values)])
        size = path.stat().st_size
        if size == 0:
            raise UserError([Problem(field, "picture_empty", values)])
        if size > MAX_BYTES:
            sizes = {"size": size // 2**20, "limit": MAX_BYTES // 2**20}
            raise UserError([Problem(field, "picture_too_many_bytes", {**values, **sizes})])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with opened(path) as picture:
                width, height = picture.size
                values |= {"width": width, "height": height}
                if width * height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                if min(width, height) < MIN_SIDE:
                    raise UserError([Problem(field, "picture_too_small", {**values, "min": MIN_SIDE})])
                picture.load()
                return ImageOps.exif_transpose(picture)
    except Image.DecompressionBombError:
        limit = {"limit": MAX_PIXELS // 1_000_000}
        raise UserError([Problem(field, "picture_too_large", {"file": str(path), **limit})]) from None
    except UnidentifiedImageError:
        raise UserError([Problem(field, "picture_unknown_format", values)]) from None
    except PermissionError:
        raise UserError([Problem(field, "picture_no_permission", values)]) from None
    # Pillow's decoders report damaged files with any of these.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, RuntimeError) as error:
        raise UserError([Problem(field, "picture_damaged", {**values, "reason": str(error)[:200]})]) from None


def _to_8_bits(picture: Image.Image) -> Image.Image:
    values = numpy.asarray(picture).astype(numpy.float64)
    # Integer pictures hold 16 bits whatever container they use; floating-point ones hold 0 to 1 by convention.
    values = values * 255.0 if picture.mode == "F" and values.max() <= 1.0 else values / 257.0
    return Image.fromarray(values.clip(0, 255).round().astype(numpy.uint8))
