"""The user's folder of LoRA files: what is in it, what lies beside a file or in its metadata, and uploads into it."""

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
# What a file is called there of whose own name nothing is left.
UNNAMED = "lora"
# A picture beside `ink.safetensors`; the second kind is what download tools write.
PICTURES = (".png", ".preview.png", ".jpg", ".jpeg", ".webp")
THUMBNAIL = 192
# Of one in a file's metadata, characters and pixels: those that trainers write have a hundredth of either.
LONGEST_THUMBNAIL, THUMBNAIL_PIXELS = 4 * 2**20, 4096 * 4096
# Bytes. Descriptions of download tools hold pages of HTML.
LARGEST_TEXT, LARGEST_DESCRIPTION = 2**16, 2**20
# Characters; a text beside a file may be anything.
LONGEST_WORDS = 600
# Trigger words in a file's own metadata: https://github.com/Stability-AI/ModelSpec, and kohya's trainer.
OWN_WORDS = ("modelspec.trigger_phrase", "ss_trigger_words")
OWN_PICTURE = "modelspec.thumbnail"


@dataclass(frozen=True)
class About:
    """What is known of a file besides its numbers. words: that trigger it. picture: WebP, or b"" without one."""

    words: str = ""
    picture: bytes = b""


@dataclass(frozen=True)
class Found:
    """Names below webui/lora, sub-folders and links included, by the alphabet; as a request names them.

    pickles: LoRA of formats that are not opened, which other programs list.
    """

    files: tuple[str, ...]
    pickles: tuple[str, ...]


def look_through() -> Found:
    """Look through the folder of LoRA files, in which a link may lead to a folder above itself."""
    names = sorted(filter(is_unicode, _walk(loras.LORAS)), key=str.casefold)
    files = tuple(name for name in names if name.lower().endswith(SUFFIX))
    return Found(files, tuple(name for name in names if not name.lower().endswith(SUFFIX)))


def found() -> tuple[str, ...]:
    """The names of all files that can be chosen."""
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
    """Of a file that may be missing or damaged: then as much as lies beside it."""
    try:
        state = tuple((file.stat().st_mtime_ns, file.stat().st_size) for file in (path, *_beside(path)))
    except OSError:
        state = ()
    return _about(path, state)


@lru_cache(maxsize=64)
def _about(path: Path, state: tuple) -> About:
    """Kept by the files' state: a page asks again whenever a slot changes."""
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
    """The file beside this one that ends so; in capitals too, as some cameras and systems write it."""
    plain, loud = path.with_suffix(suffix), path.with_suffix(suffix.upper())
    return loud if not os.path.isfile(plain) and os.path.isfile(loud) else plain


def _text(path: Path) -> str:
    """In whatever encoding the user's editor wrote it; what is far too long holds no words."""
    try:
        return read_text(path, LARGEST_TEXT)
    except (OSError, UnsafeError):
        return ""


def _described(path: Path, *keys: str) -> str:
    """Words in a JSON file of a download tool: a text, or a list of texts."""
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
    """Return a thumbnail as WebP. Raises UserError for what is no picture, or has more than `most` pixels."""
    data = io.BytesIO()
    small_picture(source, THUMBNAIL, most).save(data, "WEBP", quality=80)
    return data.getvalue()


def keep_upload(path: Path) -> str:
    """Copies a file that came through a page to webui/lora/uploads, and says how a request names it.

    A file that is there already is found again; another one of the same name gets a number. Raises UserError, before anything
    is copied, for a file that is no whole .safetensors.
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
    """Give a copy of a file the name `target`, unless another file has it. True if what has it now has the file's content."""
    if not target.exists():
        if not temporary.exists():
            shutil.copyfile(path, temporary)
        if _named(temporary, target):
            return True
    # What lies there is whole: it got its name when it was.
    return target.exists() and filecmp.cmp(path, target, shallow=False)


def _numbered(path: Path, number: str) -> str:
    ending = f"{number}{path.suffix}"
    return (harmless_name(path.stem, MOST_NAME - len(ending.encode())) or UNNAMED) + ending


def _named(temporary: Path, target: Path) -> bool:
    """Give a file this name, unless another has it, even if that came this moment. Raises OSError."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError:
        # A file system without links, such as exFAT: the name is taken first.
        try:
            target.open("xb").close()
        except FileExistsError:
            return False
        temporary.replace(target)
    return True
