"""Write the request into every PNG and MP4, and read it back.

Files that others may get name the request's own files by name and content, never by path (see named_files.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from av.error import FFmpegError
from PIL.PngImagePlugin import PngInfo

from eichi_utils.exchange.film_texts import SUFFIXES, film_texts
from eichi_utils.exchange.named_files import is_file, with_paths, without_paths
from eichi_utils.files.film_boxes import FilmLimitError
from eichi_utils.files.paths import DEFAULT_UPLOADS, KEY, place
from eichi_utils.files.png_chunks import png_texts
from eichi_utils.files.safe_reading import parse_json, read_json
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests import modes
from eichi_utils.requests.loras import named_beside
from eichi_utils.requests.request import Request, to_json

# A tag that every container has. FFmpeg drops our own tag when a film is copied without `use_metadata_tags`.
COMMON_TAG = "comment"


def document_of(request: Request) -> str:
    """Return the request as one line of JSON without paths, as it is written into files for others."""
    return text_of(without_paths(to_json(request)))


def text_of(document: Any) -> str:
    """Return a JSON document as one line."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False)


def png_info(request: Request, section: int | None = None, frame: int | None = None) -> PngInfo:
    """Return a PNG's text chunks: the request, and the `parameters` text of the existing program.

    section: number of the section that the picture is from. frame: its number in the film.
    """
    lines = [request.prompt, f"Seed: {request.seed}"]
    if section is not None:
        own = getattr(request, "section_prompts", {}).get(section, "")
        lines += [f"Section Prompt: {own}"] if own else []
        lines += [f"Section Number: {section}"]
    lines += [f"Frame Number: {frame}"] if frame is not None else []
    info = PngInfo()
    for name, text in (("parameters", "\n".join(lines).strip()), (KEY, document_of(request))):
        info.add_text(name, text) if text.isascii() else info.add_itxt(name, text)
    return info


def mp4_tags(request: Request) -> dict[str, str]:
    """Return the tags of an MP4 container; written with `movflags=use_metadata_tags`, which keeps names of our own."""
    return film_tags(document_of(request))


def film_tags(document: str) -> dict[str, str]:
    """Return the tags that hold a request's line of JSON: our own one, and one that copies of the film keep."""
    return {KEY: document, COMMON_TAG: document}


def read_document(path: str | Path) -> Any:
    """Return the JSON document of a request from a `.json`, `.png` or film file. Raises UserError if there is none."""
    path = Path(path)
    values = {"file": str(path)}
    try:
        if not is_file(path):
            raise UserError([Problem("request", "request_missing", values)])
        return _READERS.get(path.suffix.lower(), _read_json)(path)
    except FilmLimitError as error:
        raise UserError([error.problem("request", str(path))]) from None
    except (OSError, ValueError, FFmpegError) as error:
        raise UserError([Problem("request", "request_damaged", {**values, "reason": str(error)[:200]})]) from None


def read_placed_document(path: str | Path, folders: Iterable[Path] = ()) -> Any:
    """Return a request's JSON document, as `read_document`, with absolute paths.

    Paths in the file are relative to its folder, and LoRA files that lie there are used. Files that are named by content are
    looked for in that folder, in `folders`, in the current one, and among the pictures that pages kept.
    """
    document = read_document(path)
    if not isinstance(document, Mapping):
        return document
    folder = Path(path).resolve().parent
    placed = with_paths(document, (folder, *folders, Path.cwd(), place(DEFAULT_UPLOADS)), folder)
    return named_beside(placed, folder)


def document_among(texts: Mapping[str, str]) -> Any:
    """Return the request's JSON document among the texts of a picture or film, or None.

    Raises ValueError if it is damaged.
    """
    if KEY in texts:
        return parse_json(texts[KEY])
    try:
        document = parse_json(texts.get(COMMON_TAG, ""))
    except ValueError:
        return None
    return document if is_ours(document) else None


def is_ours(document: Any) -> bool:
    """Say whether a JSON document is a request of this program."""
    return isinstance(document, Mapping) and document.get("mode") in tuple(modes.MODES)


def _read_json(path: Path) -> Any:
    return read_json(path) if path.stat().st_size else _nothing(path)


def _read_png(path: Path) -> Any:
    return document_among(png_texts(path).texts) or _nothing(path)


def _read_film(path: Path) -> Any:
    return document_among(film_texts(path).texts) or _nothing(path)


def _nothing(path: Path) -> Any:
    raise UserError([Problem("request", "request_not_in_file", {"file": str(path)})])


_READERS = {".png": _read_png, **dict.fromkeys(SUFFIXES, _read_film)}
