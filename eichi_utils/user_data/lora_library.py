"""Look through the user's folder of LoRA files, read what is known of a file, and take uploads into the folder."""

from __future__ import annotations

import base64
import filecmp
import io
import itertools
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from eichi_utils.files.names import MOST_NAME, harmless_name
from eichi_utils.files.picture_files import MAX_PIXELS
from eichi_utils.files.pictures import is_unicode, small_picture
from eichi_utils.files.safe_reading import UnsafeError, parse_json, read_text
from eichi_utils.files.temporary import own_prefix
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests import loras
from eichi_utils.requests.loras import lora_problem
from lora_utils.files import PICKLES, LoraError, read_header

SUFFIX = ".safetensors"
UPLOADS = "uploads"
# Name of an uploaded file whose own name has no usable characters.
UNNAMED = "lora"
# Suffixes of a picture beside `ink.safetensors`; download tools write the second.
PICTURES = (".png", ".preview.png", ".jpg", ".jpeg", ".webp")
THUMBNAIL = 192
# Largest thumbnail in a file's metadata, in characters and pixels; trainers write a hundredth of either.
LONGEST_THUMBNAIL, THUMBNAIL_PIXELS = 4 * 2**20, 4096 * 4096
# Largest text and description files in bytes. Descriptions of download tools hold pages of HTML.
LARGEST_TEXT, LARGEST_DESCRIPTION = 2**16, 2**20
# Largest number of characters of trigger words; a text beside a file may be anything.
LONGEST_WORDS = 600
# Keys of trigger words in a file's metadata: https://github.com/Stability-AI/ModelSpec, and kohya's trainer.
OWN_WORDS = ("modelspec.trigger_phrase", "ss_trigger_words")
OWN_PICTURE = "modelspec.thumbnail"


@dataclass(frozen=True)
class About:
    """Hold what is known of a LoRA file: the words that trigger it, and a thumbnail as WebP (b"" if there is none)."""

    words: str = ""
    picture: bytes = b""


@dataclass(frozen=True)
class Found:
    """List LoRA files by their names below webui/lora, as requests name them, in alphabetical order.

    Sub-folders and links are included. pickles: LoRA in formats that are not opened here, but listed by other programs.
    """

    files: tuple[str, ...]
    pickles: tuple[str, ...]


def look_through() -> Found:
    """List the folder of LoRA files."""
    names = sorted(filter(is_unicode, _walk(loras.LORAS)), key=str.casefold)
    files = tuple(name for name in names if name.lower().endswith(SUFFIX))
    return Found(files, tuple(name for name in names if not name.lower().endswith(SUFFIX)))


def found() -> tuple[str, ...]:
    """Return the names of all files that can be chosen."""
    return look_through().files


def _walk(folder: Path) -> Iterator[str]:
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        # A link may lead to a folder above itself.
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for file in files:
            if file.lower().endswith((SUFFIX, *PICKLES)) and not file.startswith("."):
                yield Path(place, file).relative_to(folder).as_posix()


def about(path: Path) -> About:
    """Return what is known of a LoRA file. It may be missing or damaged: then only the files beside it are used."""
    try:
        state = tuple((file.stat().st_mtime_ns, file.stat().st_size) for file in (path, *_beside(path)))
    except OSError:
        state = ()
    return _about(path, state)


@lru_cache(maxsize=64)
def _about(path: Path, state: tuple) -> About:
    """Return what is known of a file, cached by the state of the files: a page asks again whenever a slot changes."""
    try:
        metadata = read_header(path).metadata
    except LoraError:
        metadata = {}
    sources: tuple[Callable[[], str], ...] = (
        lambda: _described(_with_suffix(path, ".civitai.info"), "trainedWords"),
        lambda: _described(_with_suffix(path, ".json"), "activation text", "trainedWords"),
        lambda: _text(_with_suffix(path, ".txt")),
        lambda: next((metadata[name] for name in OWN_WORDS if metadata.get(name)), ""),
    )
    words = next((" ".join(words.split()) for source in sources if (words := source()).strip()), "")
    return About(words[:LONGEST_WORDS], _picture(path, metadata))


def _beside(path: Path) -> list[Path]:
    names = (*PICTURES, ".civitai.info", ".json", ".txt")
    return [file for suffix in names if os.path.isfile(file := _with_suffix(path, suffix))]


def _with_suffix(path: Path, suffix: str) -> Path:
    """Return the path with this suffix, or with the suffix in capitals if only that file exists."""
    plain, loud = path.with_suffix(suffix), path.with_suffix(suffix.upper())
    return loud if not os.path.isfile(plain) and os.path.isfile(loud) else plain


def _text(path: Path) -> str:
    """Return the text of a file in any usual encoding, "" if it is missing or larger than `LARGEST_TEXT`."""
    try:
        return read_text(path, LARGEST_TEXT)
    except (OSError, UnsafeError):
        return ""


def _described(path: Path, *keys: str) -> str:
    """Return the words under the first of these keys in a download tool's JSON file: a text, or a list of texts."""
    try:
        document: Any = parse_json(read_text(path, LARGEST_DESCRIPTION))
    except (OSError, ValueError):
        return ""
    values = [document.get(key) for key in keys] if isinstance(document, dict) else []
    texts = [value if isinstance(value, list) else [value] for value in values]
    return next((", ".join(map(str, parts)) for parts in texts if parts and all(isinstance(p, str) and p for p in parts)), "")


def _picture(path: Path, metadata: Mapping[str, str]) -> bytes:
    for suffix in PICTURES:
        if os.path.isfile(file := _with_suffix(path, suffix)):
            try:
                return _small(file)
            except UserError:
                continue
    _, _, data = metadata.get(OWN_PICTURE, "").partition(";base64,")
    if len(data) > LONGEST_THUMBNAIL:
        return b""
    try:
        return _small(io.BytesIO(base64.b64decode(data)), THUMBNAIL_PIXELS)
    except (ValueError, UserError):
        return b""


def _small(source: Path | BinaryIO, most: int = MAX_PIXELS) -> bytes:
    """Return a thumbnail as WebP. Raises UserError for a file that is no picture, or has more than `most` pixels."""
    data = io.BytesIO()
    small_picture(source, THUMBNAIL, most).save(data, "WEBP", quality=80)
    return data.getvalue()


def keep_upload(path: Path) -> str:
    """Copy an uploaded file to webui/lora/uploads, and return its name in a request.

    If the same file is there already, its name is returned; another file of the same name gets a number. Raises UserError,
    before anything is copied, for a file that is no complete .safetensors.
    """
    try:
        read_header(path)
    except LoraError as error:
        values = {**error.values, "file": path.name}
        raise UserError([lora_problem("loras", LoraError(error.key, **values))]) from None
    folder = loras.LORAS / UPLOADS
    temporary = folder / f"{own_prefix()}{secrets.token_hex(8)}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = (_numbered(path, f"-{number}" if number > 1 else "") for number in itertools.count(1))
        try:
            return f"{UPLOADS}/{next(name for name in names if _brought(path, temporary, folder / name))}"
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        values = {"folder": str(folder), "reason": error.strerror or str(error)}
        raise UserError([Problem("loras", "lora_folder_not_writable", values)]) from None


def _brought(path: Path, temporary: Path, target: Path) -> bool:
    """Give a copy of a file the name `target`, unless it is taken. Return whether `target` now has the file's content."""
    if not target.exists():
        if not temporary.exists():
            shutil.copyfile(path, temporary)
        if _named(temporary, target):
            return True
    # Files get their names here only when they are complete.
    return target.exists() and filecmp.cmp(path, target, shallow=False)


def _numbered(path: Path, number: str) -> str:
    ending = f"{number}{path.suffix}"
    return (harmless_name(path.stem, MOST_NAME - len(ending.encode())) or UNNAMED) + ending


def _named(temporary: Path, target: Path) -> bool:
    """Rename a file unless the name is taken, even if it is taken at this moment. Return whether it worked. Raises OSError."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError:
        # File systems without hard links, such as exFAT: an empty file takes the name first.
        try:
            target.open("xb").close()
        except FileExistsError:
            return False
        temporary.replace(target)
    return True
