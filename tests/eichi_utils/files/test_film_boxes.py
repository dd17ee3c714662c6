"""Test that films whose tables claim more than the file holds are refused before FFmpeg allocates memory for it."""

from __future__ import annotations

import io
import struct
import time
from pathlib import Path

import numpy
import pytest

from eichi_utils.exchange import video
from eichi_utils.exchange.film_texts import film_texts
from eichi_utils.exchange.video import encode_h264
from eichi_utils.files import film_boxes
from eichi_utils.files.film_boxes import MOST_TRACKS, FilmLimitError, check_boxes
from eichi_utils.files.safe_reading import UnsafeError
from tests.eichi_utils.boxes import FTYP, MDAT, box, film, full, head, table, track

MILLIONS = 80_000_000
EDITS = box(b"edts", full(b"elst", struct.pack(">I", 5000), struct.pack(">IIi", 100, 0, 0x10000)[:12] * 5000))


def piece(count: int, flags: int, content: bytes = b"") -> bytes:
    """Return a fragment (moof box) of a film."""
    run = box(b"trun", struct.pack(">II", flags, count), content)
    return box(b"moof", full(b"mfhd", bytes(4)), box(b"traf", full(b"tfhd", b"\0\0\0\1"), run))


BAD = {
    "one size": film(MILLIONS),
    "no size": film(3, table(b"stsz", 0, MILLIONS)),
    "times": film(3, table(b"ctts", 1, MILLIONS, 1)),
    "more than the file": film(3_000_000),
    "four milliards": film(2**32 - 1, size=0),
    "half bytes": film(3, full(b"stz2", struct.pack(">II", 4, 5000))),
    "chunks": film(3, table(b"stco", 2000, 1)),
    "far chunks": film(3, table(b"co64", 2, 0, 0)),
    "chunks of samples": film(3, table(b"stsc", 2, 1, 1, 1)),
    "edits": film(3, edits=box(b"edts", table(b"elst", 2, 0, 0, 0))),
    "each edit has all samples": film(2000, table(b"stts", 1, 2000, 1), edits=EDITS, size=0).replace(
        table(b"stsz", 0, 2000), table(b"stsz", 0, 2000, *range(2000))
    ),
    "pieces": film(3) + piece(MILLIONS, 0),
    "a piece's table": film(3) + piece(2000, 0x300, bytes(24)),
    "an index": film(3) + full(b"sidx", bytes(16), struct.pack(">HH", 0, 500)),
    "a large box": FTYP + struct.pack(">I4sQ", 1, b"moov", 16 + len(track(MILLIONS))) + track(MILLIONS),
    "a box to the end": FTYP + struct.pack(">I4s", 0, b"moov") + track(MILLIONS),
    "in a description": FTYP + box(b"moov", head(3), box(b"stsd", bytes(30), table(b"stsz", 1, MILLIONS))),
    "in texts": FTYP + box(b"moov", head(3), box(b"udta", box(b"meta", table(b"hdlr", 0, 0), track(MILLIONS)))),
    "packed": FTYP + box(b"moov", box(b"cmov", bytes(30))),
    "deep": FTYP + b"".join(struct.pack(">I4s", 1000 - 8 * n, b"udta") for n in range(50)),
    "sound and not": film(MILLIONS, handler=b"soun", kind=b"raw ").replace(
        table(b"stts", 1, MILLIONS, 1), table(b"stts", 1, MILLIONS, 2)
    ),
}


def listed(kind: bytes, version: int, at: int, width: int, count: int) -> bytes:
    """Return a table of three 12-byte entries that claims to have `count`, in `width` bytes at offset `at`."""
    return box(kind, bytes((version, 0, 0, 0)).ljust(at, b"\0"), count.to_bytes(width, "big"), bytes(36))


# Kind, version, offset and width of the count, as FFmpeg reads each version.
LISTS = [(b"keys", 0, 4, 4), (b"keys", 9, 4, 4), (b"iinf", 0, 4, 2), (b"iinf", 1, 4, 4), (b"iinf", 255, 4, 4)]
LISTS += [(b"iloc", 0, 6, 2), (b"iloc", 1, 6, 2), (b"iloc", 2, 6, 4), (b"iloc", 255, 6, 4)]


@pytest.mark.parametrize("place", [b"", b"moov", b"meta", b"stsd"])
@pytest.mark.parametrize(("kind", "version", "at", "width"), LISTS)
def test_lists_that_promise_too_much(kind: bytes, version: int, at: int, width: int, place: bytes) -> None:
    """204 bytes took 2 GB: FFmpeg makes room for as many names or pieces as a count says, and writes all of it."""

    def placed(count: int) -> io.BytesIO:
        part = listed(kind, version, at, width, count)
        if place == b"meta":
            part = table(b"hdlr", 0, 0) + part
        return io.BytesIO(FTYP + box(b"moov", head(3), box(place, part) if place else part))

    if place != b"stsd":
        check_boxes(placed(3))
    with pytest.raises(UnsafeError):
        check_boxes(placed(2 ** (8 * width) - 1))


@pytest.mark.parametrize("name", BAD)
def test_tables_that_promise_too_much(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that promise 80 million frames in 688 bytes took 2.9 GB and four seconds as soon as a page had the film."""
    monkeypatch.setattr(video.av, "open", lambda *_, **__: pytest.fail("FFmpeg was asked"))
    (tmp_path / "a.mp4").write_bytes(BAD[name])
    began = time.process_time()
    for read in (film_texts, video.last_frame):
        with pytest.raises(UnsafeError):
            read(tmp_path / "a.mp4")
    assert time.process_time() - began < 0.5


def test_boxes_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film_boxes, "MOST_BOXES", 100)
    for data in (FTYP + box(b"free") * 200, FTYP + box(b"moov", box(b"free") * 200)):
        with pytest.raises(UnsafeError, match="boxes"):
            check_boxes(io.BytesIO(data))
    monkeypatch.setattr(film_boxes, "MOST_BYTES", 100)
    with pytest.raises(UnsafeError, match="MB"):
        check_boxes(io.BytesIO(FTYP + box(b"moov", bytes(200))))


def test_tracks_and_pieces_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of all tracks and fragments count together: a thousand of them may each be within the limit."""
    monkeypatch.setattr(film_boxes, "MOST_SAMPLES", 100)
    tracks = FTYP + box(b"moov", head(60), track(60), track(60)) + MDAT
    for data in (tracks, film(3) + piece(60, 0) * 2):
        with pytest.raises(UnsafeError, match="at most 100"):
            check_boxes(io.BytesIO(data))
    check_boxes(io.BytesIO(film(60)))


def test_what_is_no_mp4_or_is_cut_off_passes() -> None:
    """A file that is no MP4, or is cut off, passes the check of tables; FFmpeg judges it."""
    for data in (b"", b"\x1aE\xdf\xa3" + bytes(30), b"RIFF\0\0\0\0AVI ", b"GIF89a", bytes(100), film(3)[:200], film(3)[:-50]):
        check_boxes(io.BytesIO(data))


def test_sound_that_is_not_compressed_has_a_sample_each_tick() -> None:
    """Ten minutes are 28 million samples, of which FFmpeg makes 28,000 entries."""
    check_boxes(io.BytesIO(film(28_800_000, size=2, handler=b"soun", kind=b"raw ")))


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".mp4", "faststart"),
        (".mp4", "frag_keyframe+empty_moov"),
        (".mp4", "frag_every_frame+dash"),
        (".mov", "use_metadata_tags"),
    ],
)
def test_films_of_every_kind_pass(suffix: str, options: str, tmp_path: Path) -> None:
    """Whole films, and those in pieces, as players that stream write them."""
    frames = numpy.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), numpy.uint8)
    encode_h264(tmp_path / "a.mp4", frames, 20)
    settings, copy = {"movflags": options}, tmp_path / f"b{suffix}"
    with video.open_container(tmp_path / "a.mp4") as source, video.av.open(str(copy), "w", options=settings) as to:
        stream = to.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                to.mux(packet)
    assert video.last_frame(copy).size == (32, 32)
    assert film_texts(copy).rate == 30


def named(count: int, name: bytes = b"k%d") -> bytes:
    """Return a film with `count` texts under names of their own, as QuickTime writes them."""
    names = [box(b"mdta", name % number) for number in range(count)]
    items = [struct.pack(">II", 25, number + 1) + struct.pack(">I4sII", 17, b"data", 1, 0) + b"v" for number in range(count)]
    keys = full(b"keys", struct.pack(">I", count), *names)
    meta = full(b"meta", full(b"hdlr", bytes(4), b"mdta", bytes(13)), keys, box(b"ilst", *items))
    return FTYP + box(b"moov", head(3), track(3), box(b"udta", meta)) + MDAT


def test_texts_whose_names_are_compared(tmp_path: Path) -> None:
    """FFmpeg compares each name with all before it: 100,000 of them, 4 MB, took it minutes."""
    path = tmp_path / "a.mp4"
    path.write_bytes(named(900))
    assert film_texts(path).texts["k899"] == "v"
    began = time.process_time()
    for data in (named(100_000), named(2000), named(30, b"%d" + b"k" * 20_000)):
        path.write_bytes(data)
        with pytest.raises(FilmLimitError) as error:
            film_texts(path)
        assert error.value.what == "texts"
    assert time.process_time() - began < 2


def test_tracks_without_end(tmp_path: Path) -> None:
    """The number of tracks is limited: each costs FFmpeg twenty kilobytes, and honest films have a few."""
    for count, passes in ((MOST_TRACKS, True), (MOST_TRACKS + 1, False)):
        data = FTYP + box(b"moov", head(3), *(track(3) for _ in range(count))) + MDAT
        if passes:
            check_boxes(io.BytesIO(data))
        else:
            with pytest.raises(FilmLimitError, match="tracks"):
                check_boxes(io.BytesIO(data))


def test_texts_behind_a_late_handler(tmp_path: Path) -> None:
    """A `meta` box was looked for in its first bytes only, but FFmpeg looks further, so that its boxes went unseen."""
    handler = full(b"hdlr", bytes(4), b"mdta", bytes(13))
    meta = box(b"meta", bytes(4), b"?" * 96, handler, box(b"trak", table(b"stsz", 0, MILLIONS)))
    with pytest.raises(UnsafeError):
        check_boxes(io.BytesIO(FTYP + box(b"moov", head(3), track(3), box(b"udta", meta))))
