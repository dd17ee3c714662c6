"""Read the texts of a film's container: MP4, MOV, Matroska and WebM, whatever the file's suffix is.

FFmpeg decodes frames of a film as soon as it opens it, and one frame of a small file may take gigabytes. It is therefore given
only the texts, without any track.
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
# Types of the first box of an MP4 or MOV; older cameras write no `ftyp`.
BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


class NoFilmError(UnsafeError):
    """Say that a file is no film of these formats, whatever its suffix is."""


@dataclass
class FilmTexts:
    """Hold the tags of a film.

    texts: tag in lower case -> text (Matroska writes tags in capitals). rate: frames per second, 0 if unknown.
    too_large: tags that were left out for their length.
    """

    texts: dict[str, str] = field(default_factory=dict)
    rate: float = 0.0
    too_large: list[str] = field(default_factory=list)


def film_texts(path: str | Path) -> FilmTexts:
    """Return a film's tags. Raises OSError, FFmpegError, or UnsafeError for a file that cannot be read here."""
    kind, data, rate = _texts_alone(path)
    found, stream = FilmTexts(rate=rate), io.BytesIO(data)
    # FFmpeg's errors name the file by this.
    stream.name = str(path)
    with av.open(stream, "r", format=kind, options=dict(NO_DECODER), metadata_errors="surrogateescape") as container:
        for tag, text in container.metadata.items():
            if len(text) > MOST_TEXT:
                found.too_large.append(_whole(tag)[:80])
            else:
                found.texts[_whole(tag).lower()] = _whole(text)
    return found


def _whole(text: str) -> str:
    """Return a text with its surrogate-escaped bytes decoded; those are of another encoding than UTF-8."""
    if text.isascii():
        return text
    data = text.encode(errors="surrogateescape")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode(likeliest(data), "replace")


def _texts_alone(path: str | Path) -> tuple[str, bytes, float]:
    """Return FFmpeg's name of the format, a film with the same texts and no tracks, and frames per second (0 if unknown)."""
    with open_regular(path) as file:
        head = file.read(12)
        if head.startswith(HEADER):
            return "matroska", *text_elements(file)
        if head[4:8] not in BOXES:
            raise NoFilmError("it is no film of a kind that is read here: MP4, MOV, MKV or WebM")
        rate = check_boxes(file)
        return "mov", text_boxes(file), rate
