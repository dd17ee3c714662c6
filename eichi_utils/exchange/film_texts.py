"""Read the texts of a film's container: MP4, MOV, Matroska and WebM, whatever its name ends with.

FFmpeg looks into a film's pictures as soon as it opens it: one frame of a small file may take gigabytes. So it gets the texts
alone, without any track.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import av

from eichi_utils.exchange.video import NO_DECODER
from eichi_utils.files.encodings import likeliest
from eichi_utils.files.film_boxes import check_boxes, text_boxes
from eichi_utils.files.film_elements import HEADER, text_elements
from eichi_utils.files.png_chunks import MOST_TEXT
from eichi_utils.files.safe_reading import UnsafeError, open_regular

SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm")
# Kinds of the first box of an MP4 or MOV; older cameras write no `ftyp`.
BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


class NoFilmError(UnsafeError):
    """Say that a file is no film of these kinds, whatever its name ends with."""


@dataclass
class FilmTexts:
    """texts: tag in lower case -> text; Matroska writes tags in capitals. rate: frames a second, 0 if nobody says.

    too_large: tags that were left out.
    """

    texts: dict[str, str] = field(default_factory=dict)
    rate: float = 0.0
    too_large: list[str] = field(default_factory=list)


def film_texts(path: str | Path) -> FilmTexts:
    """Return a film's tags. Raises OSError or FFmpegError, and UnsafeError for what is not read here."""
    kind, data, rate = _texts_alone(path)
    found, stream = FilmTexts(rate=rate), io.BytesIO(data)
    # What errors call it.
    stream.name = str(path)
    with av.open(stream, "r", format=kind, options=dict(NO_DECODER), metadata_errors="surrogateescape") as container:
        for tag, text in container.metadata.items():
            if len(text) > MOST_TEXT:
                found.too_large.append(_whole(tag)[:80])
            else:
                found.texts[_whole(tag).lower()] = _whole(text)
    return found


def _whole(text: str) -> str:
    """A text that stands in it as bytes of another encoding than UTF-8."""
    if text.isascii():
        return text
    data = text.encode(errors="surrogateescape")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode(likeliest(data), "replace")


def _texts_alone(path: str | Path) -> tuple[str, bytes, float]:
    """(FFmpeg's name of the kind, a film of the same texts, frames a second or 0)."""
    with open_regular(path) as file:
        head = file.read(12)
        if head.startswith(HEADER):
            return "matroska", *text_elements(file)
        if head[4:8] not in BOXES:
            raise NoFilmError("it is no film of a kind that is read here: MP4, MOV, MKV or WebM")
        rate = check_boxes(file)
        return "mov", text_boxes(file), rate
