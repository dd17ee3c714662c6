"""Read a file of latents' size and origin from its header, and check that its values are finite. Works without torch.

Pages call this at every key pressed. Files are the existing program's (key `history_latents`; its tensor `metadata` is not
reliable), or ours, which carry the request that made them, or those of their parts (see latent_files.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy

from diffusers_helper.checkpoints.files import FORMAT, CheckpointError, read_header
from diffusers_helper.vae.frames import FPS, frames_of
from diffusers_helper.vae.preview import CHANNELS
from eichi_utils.files.paths import KEY
from eichi_utils.files.pictures import is_unicode
from eichi_utils.files.safe_reading import UnsafeError, parse_json
from eichi_utils.problems import Problem, UserError

LATENTS, SIZES = "history_latents", "metadata"
# Our second entry in the header: what a joined or trimmed file was made of.
PARTS = f"{KEY}_parts"
# Pixels of height and width per latent value.
CELL = 8
# The format's name of a type -> numpy's. numpy has no bfloat16; its bits are enough here.
DTYPES = {"F32": numpy.float32, "F16": numpy.float16, "BF16": numpy.uint16}
# Exponent bits of a bfloat16; all are set in infinity and NaN.
BF16_EXPONENT = 0x7F80
# Values that are checked at a time.
AT_ONCE = 2**22
# Largest number of characters shown of a missing file's name, which may be any text.
LONGEST_SHOWN = 300


@dataclass(frozen=True)
class LatentInfo:
    """Describe a file of latents.

    height, width: in pixels. dtype: the format's name. request: the JSON document of the film's request, or None.
    parts: what a joined file was made of, each with `file`, `latents` and `request`; empty for one film.
    """

    file: str
    latents: int
    height: int
    width: int
    dtype: str
    bytes: int
    request: Mapping[str, Any] | None = None
    parts: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def frames(self) -> int:
        """Return the number of frames that the latents decode to."""
        return frames_of(self.latents)

    @property
    def seconds(self) -> float:
        """Return the length of the decoded film."""
        return self.frames / FPS

    @property
    def requests(self) -> tuple[Mapping[str, Any], ...]:
        """Return the requests of the file and of its parts."""
        return tuple(_requests({"request": self.request, "parts": self.parts}))

    @property
    def model(self) -> str:
        """Return the name of the model that made the latents, "" if unknown."""
        models = (document.get("model") for document in self.requests)
        return next((model for model in models if isinstance(model, str)), "")


def _requests(part: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the requests of a part and of the parts that it was made of."""
    if isinstance(request := part.get("request"), Mapping):
        yield request
    inner = part.get("parts")
    for other in inner if isinstance(inner, (list, tuple)) else ():
        if isinstance(other, Mapping):
            yield from _requests(other)


def read_info(path: str | Path, where: str = "append_latents") -> LatentInfo:
    """Return the description of a file of latents. Raises UserError, for the field `where`, if it cannot be used."""
    problem = latents_problem(where, path)
    if problem:
        raise UserError([problem])
    return _info(str(path))


def latents_problem(where: str, path: Any) -> Problem | None:
    """Return what is wrong with a file of latents, or None if all its latents are finite."""
    if not isinstance(path, (str, Path)):
        return Problem(where, "wrong_type", {"value": str(path)[:80]})
    if not is_unicode(str(path)):
        return Problem(where, "name_not_unicode", {"file": str(path).encode(errors="replace").decode()})
    try:
        state = Path(path).stat()
    except (OSError, ValueError):
        return Problem(where, "latents_missing", {"file": str(path)[:LONGEST_SHOWN]})
    problem = _judged(str(path), state.st_mtime_ns, state.st_size)
    return problem and replace(problem, field=where)


@lru_cache(maxsize=64)
def _judged(path: str, mtime_ns: int, size: int) -> Problem | None:
    """Return what is wrong with a file, cached by its state: a film of two minutes has 350 MB of latents."""
    try:
        info = _info(path)
        if not _finite(path, info):
            raise UserError([Problem("", "latents_not_finite", {"file": path})])
    except UserError as error:
        return error.problems[0]
    except CheckpointError as error:
        # The file is being changed at this moment.
        return damaged("", path, error)
    except OSError as error:
        return Problem("", "latents_damaged", {"file": path, "reason": error.strerror or str(error)})
    return None


def damaged(where: str, path: str | Path, error: CheckpointError) -> Problem:
    """Return the problem, for the field `where`, that tells why a file cannot be read."""
    expected, actual = error.values.get("expected"), error.values.get("actual")
    reason = "it is no regular file" if error.key == "file_missing" else "its header makes no sense"
    if isinstance(expected, int):
        reason = f"{actual} bytes instead of {expected}"
    elif expected not in (None, FORMAT):
        reason = str(expected)
    return Problem(where, "latents_damaged", {"file": str(path), "reason": reason})


def _info(path: str) -> LatentInfo:
    values = {"file": path}
    try:
        header = read_header(Path(path))
    except CheckpointError as error:
        raise UserError([damaged("", path, error)]) from None
    if LATENTS not in header.shapes:
        raise UserError([Problem("", "latents_none", {**values, "name": LATENTS})])
    shape, dtype = header.shapes[LATENTS], header.dtypes[LATENTS]
    if dtype not in DTYPES:
        raise UserError([Problem("", "latents_dtype", {**values, "dtype": dtype})])
    if len(shape) != 5 or shape[:2] != (1, CHANNELS) or 0 in shape:
        shown = " x ".join(map(str, shape))
        raise UserError([Problem("", "latents_shape", {**values, "shape": shown, "channels": CHANNELS})])
    _, _, latents, rows, columns = shape
    try:
        request, parts = (_read(header.metadata.get(name, "")) for name in (KEY, PARTS))
    except UnsafeError as error:
        raise UserError([Problem("", "latents_unsafe", {**values, "reason": str(error)})]) from None
    return LatentInfo(
        file=path,
        latents=latents,
        height=rows * CELL,
        width=columns * CELL,
        dtype=dtype,
        bytes=Path(path).stat().st_size,
        request=request if isinstance(request, Mapping) else None,
        parts=tuple(part for part in parts if isinstance(part, Mapping)) if isinstance(parts, list) else (),
    )


def _read(text: str) -> Any:
    """Return the JSON value in a header's text, None if it is no JSON. Raises UnsafeError if it is beyond the limits."""
    try:
        return parse_json(text) if text else None
    except UnsafeError:
        raise
    except ValueError:
        return None


def _finite(path: str, info: LatentInfo) -> bool:
    """Say whether all latents are finite. Raises OSError and CheckpointError.

    The file is read and not mapped, because a mapped file that is cut meanwhile kills the process.
    """
    kind, (begin, end) = numpy.dtype(DTYPES[info.dtype]), read_header(Path(path)).places[LATENTS]
    buffer = bytearray(AT_ONCE * kind.itemsize)
    with Path(path).open("rb") as file:
        file.seek(begin)
        while begin < end:
            count = file.readinto(memoryview(buffer)[: min(len(buffer), end - begin)])
            if not count:
                raise OSError("it became shorter while it was read")
            begin += count
            piece = numpy.frombuffer(buffer, kind, count // kind.itemsize)
            if info.dtype == "BF16" and ((piece & BF16_EXPONENT) == BF16_EXPONENT).any():
                return False
            if info.dtype != "BF16" and not numpy.isfinite(piece).all():
                return False
    return True
