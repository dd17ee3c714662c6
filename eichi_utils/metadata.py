"""The request inside every PNG and MP4, and reading it back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from eichi_utils.loras import named_beside
from eichi_utils.media import open_container
from eichi_utils.paths import KEY
from eichi_utils.pictures import opened
from eichi_utils.problems import Problem, UserError
from eichi_utils.request import Request, to_json
from eichi_utils.request_files import map_pictures


def document_of(request: Request) -> str:
    """The request as one line of JSON."""
    return json.dumps(to_json(request), ensure_ascii=False, allow_nan=False)


def png_info(request: Request, section: int | None = None, frame: int | None = None) -> PngInfo:
    """Text chunks of a PNG: the request, and the `parameters` text of the existing program. frame: its place in the film."""
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
    """Tags of an MP4 container; written with `movflags=use_metadata_tags`, which keeps names of our own."""
    return {KEY: document_of(request)}


def read_document(path: str | Path) -> Any:
    """The JSON document of a request from a `.json`, `.png` or `.mp4` file. Raises UserError if there is none."""
    path = Path(path)
    values = {"file": str(path)}
    try:
        if not path.is_file():
            raise UserError([Problem("request", "request_missing", values)])
        text = _READERS.get(path.suffix.lower(), _read_json)(path)
        if not text:
            raise UserError([Problem("request", "request_not_in_file", values)])
        return json.loads(text, parse_constant=float)
    except (OSError, ValueError, SyntaxError, RecursionError, Image.DecompressionBombError, av.FFmpegError) as error:
        raise UserError([Problem("request", "request_damaged", {**values, "reason": str(error)[:200]})]) from None


def read_placed_document(path: str | Path) -> Any:
    """The same with absolute paths: those in a file are relative to it, and LoRA that lie beside it are meant."""
    document = read_document(path)
    if not isinstance(document, Mapping):
        return document
    folder = Path(path).resolve().parent
    return named_beside(map_pictures(document, lambda picture: os.path.abspath(folder / picture)), folder)


def _read_json(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")


def _read_png(path: Path) -> str:
    with opened(path) as picture:
        picture.load()
        return picture.info.get(KEY, "")


def _read_mp4(path: Path) -> str:
    with open_container(path) as container:
        return container.metadata.get(KEY, "")


_READERS = {".png": _read_png, ".mp4": _read_mp4}
