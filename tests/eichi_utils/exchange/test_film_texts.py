"""Test that reading a film's texts takes neither memory nor time for its pictures."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy
import pytest

from eichi_utils.exchange.picture_text import read_text
from eichi_utils.problems import UserError
from tests.eichi_utils import elements
from tests.eichi_utils.boxes import FTYP, MDAT, box, head, track
from tests.eichi_utils.helpers import found

SIDE = 8000
# Limits beyond what the process needs before, when interpreter, FFmpeg and NumPy are loaded.
MOST_MB, MOST_SECONDS = 40, 1.0
CHILD = """
import resource, sys, time
from eichi_utils.exchange.film_texts import film_texts
film_texts(sys.argv[1])
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.process_time()
assert film_texts(sys.argv[2]).texts["comment"] == "hello"
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most) / 1024, time.process_time() - began)
"""


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def large_picture() -> bytes:
    """Return a black PNG of 64 megapixels in some 60 KB."""
    size = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((SIDE + 1) * SIDE), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def film(path: Path, picture: bytes, tracks: int) -> Path:
    """Write a film with some tracks, each of which has a picture as its only frame."""
    numbers = range(1, tracks + 1)
    if path.suffix == ".mkv":
        codec = struct.pack("<IiiHH4sIiiII", 40, SIDE, SIDE, 1, 8, b"MPNG", 0, 0, 0, 0, 0)
        entries = [elements.track(each, elements.element("63A2", codec), codec=b"V_MS/VFW/FOURCC") for each in numbers]
        blocks = [elements.element("A3", bytes([0x80 + each, 0, 0, 0x80]), picture) for each in numbers]
        texts = elements.tags(elements.text(b"COMMENT", b"hello"))
        cluster = elements.element("1F43B675", elements.number("E7", 0), *blocks)
        path.write_bytes(elements.matroska(elements.tracks(*entries), texts, cluster))
        return path
    with av.open(str(path), "w", options={"movflags": "use_metadata_tags"}) as container:
        container.metadata["comment"] = "hello"
        streams = [container.add_stream("png", rate=25) for _ in numbers]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "gray"
        for stream in streams:
            packet = av.Packet(picture)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, Fraction(1, 25)
            packet.is_keyframe = True
            container.mux(packet)
    return path


def small(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(numpy.zeros((16, 16, 3), numpy.uint8), format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.process
@pytest.mark.parametrize("suffix", [".mov", ".mkv"])
@pytest.mark.skipif(sys.platform == "win32", reason="what a process used at most is asked for as on Unix")
def test_texts_take_no_pictures(suffix: str, tmp_path: Path) -> None:
    """A picture of 16000 x 16000 pixels as a film's frame, 750 KB, took 736 MB; in six tracks, 4.4 GB and 15 s."""
    large = film(tmp_path / f"a{suffix}", large_picture(), 6)
    assert large.stat().st_size < 4 * 2**20
    command = [sys.executable, "-c", CHILD, str(small(tmp_path / f"b{suffix}")), str(large)]
    megabytes, seconds = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert megabytes < MOST_MB and seconds < MOST_SECONDS


def test_what_is_too_much_is_said(tmp_path: Path) -> None:
    """What is wrong with a file is told in the user's language; the reason that FFmpeg gives is passed on as it is."""
    path = tmp_path / "a.mp4"
    path.write_bytes(FTYP + box(b"moov", head(3), *(track(3) for _ in range(200))) + MDAT)
    with pytest.raises(UserError) as error:
        read_text(path)
    assert found(error.value.problems) == {("request", "film_too_many_tracks")}
    (problem,) = error.value.problems
    assert problem.values["file"] == str(path)
    texts = Path(__file__).parents[3] / "locales"
    for language in ("en", "ja", "zh-tw", "ru"):
        sentence = json.loads((texts / f"{language}.json").read_text(encoding="utf-8"))[f"problem.{problem.key}"]
        assert "64" in sentence.format(**problem.values)
