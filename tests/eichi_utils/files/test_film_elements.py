"""Test that FFmpeg gets only the texts of a Matroska file, so that nothing else in it can do harm."""

from __future__ import annotations

import io
import time
import zlib
from pathlib import Path

import pytest

from eichi_utils.exchange.film_texts import film_texts
from eichi_utils.files import film_elements
from eichi_utils.files.film_boxes import FilmLimitError
from eichi_utils.files.film_elements import text_elements
from eichi_utils.files.safe_reading import UnsafeError
from tests.eichi_utils.elements import CLUSTER, HEADER, INFO, PACKED, element, matroska, number, tags, text, track, tracks

HELLO = tags(text(b"COMMENT", b"hello"))
VIDEO = tracks(track(1, number("23E383", 41_666_666)))
ENDLESS = b"\x01" + b"\xff" * 7
# A live recording: neither the segment nor its clusters declare their sizes.
LIVE = (
    HEADER
    + bytes.fromhex("18538067")
    + ENDLESS
    + INFO
    + VIDEO
    + 3 * (bytes.fromhex("1F43B675") + ENDLESS + number("E7", 0))
    + HELLO
)
GOOD = {
    "before": matroska(HELLO, VIDEO, CLUSTER),
    "behind": matroska(VIDEO, *[CLUSTER] * 50, HELLO),
    "live": LIVE,
    "padded": matroska(VIDEO, element("EC", bytes(300)), element("1C53BB6B", element("BB") * 1000), HELLO),
    "cut off": matroska(HELLO, VIDEO, CLUSTER)[:-5],
}


@pytest.mark.parametrize("name", GOOD)
def test_texts_and_rate(name: str, tmp_path: Path) -> None:
    """Texts stand before or behind the pictures, of which nothing is read."""
    (tmp_path / "a.mkv").write_bytes(GOOD[name])
    found = film_texts(tmp_path / "a.mkv")
    assert found.texts == {"title": "a title", "comment": "hello"} and found.rate == 24


def test_the_rate_is_that_of_the_first_pictures() -> None:
    """Sound has a frame's time as well, and 29.97 frames a second are 30000 in 1001."""
    sound = element("AE", number("D7", 1), element("83", b"\2"), number("23E383", 20_000_000))
    shown = element("AE", element("83", b"\1"), element("23E383", (33_366_667).to_bytes(4, "big")))
    data = matroska(tracks(sound, shown, track(3, number("23E383", 10**7))), HELLO)
    assert text_elements(io.BytesIO(data))[1] == 30000 / 1001
    assert text_elements(io.BytesIO(matroska(tracks(track(1, number("23E383", 0))))))[1] == 0


@pytest.mark.parametrize(
    "part",
    [
        tracks(*[element("AE")] * 100_000),
        element("1043A770", element("45B9", *[element("B6")] * 100_000)),
        element("1941A469", *[element("61A7")] * 100_000),
        element("EC") * 300_000,
    ],
)
def test_elements_without_end(part: bytes) -> None:
    """Empty ones took FFmpeg thirty times their size; none of these is text."""
    began = time.process_time()
    data, _ = text_elements(io.BytesIO(matroska(HELLO, part)))
    assert len(data) < 1000 and b"hello" in data
    assert time.process_time() - began < 2


def test_too_many_texts(tmp_path: Path) -> None:
    """100,000 texts, 1.6 MB, took FFmpeg more than a minute and a half: it compares each name with all before it."""
    path = tmp_path / "a.mkv"
    path.write_bytes(matroska(tags(*[text(b"K%d" % each, b"v") for each in range(900)])))
    assert film_texts(path).texts["k899"] == "v"
    many = [text(b"K%d" % each, b"v") for each in range(100_000)]
    for part in (tags(*many), element("1254C367", *[element("7373")] * 2000), tags(text(b"A", b"v") + many[0]) * 600):
        path.write_bytes(matroska(part))
        with pytest.raises(FilmLimitError) as error:
            film_texts(path)
        assert error.value.what == "texts"
    with pytest.raises(FilmLimitError):
        text_elements(io.BytesIO(matroska(*[element("1254C367")] * 1001)))


def long_names(length: int, *around: bytes) -> bytes:
    """Return 500 texts whose names have `length` characters, or which lie beside the elements `around`."""
    if not around:
        return tags(*[text(b"%0*d" % (length, each), b"v") for each in range(500)])
    return element("1254C367", element("7373", *around, *[text(b"%d" % each, b"v") for each in range(500)]))


@pytest.mark.parametrize(
    "part",
    [
        long_names(1000),
        long_names(0, element("63C0", element("63CA", b"T" * 1000))),
        tags(element("67C8", element("45A3", b"P" * 1000), *[text(b"%d" % each, b"v") for each in range(500)])),
    ],
    ids=("own", "of the target", "of the tag around"),
)
def test_long_names(part: bytes) -> None:
    """990 texts with names of 1,000 characters and a language took FFmpeg 5 seconds; the name of what is around counts too."""
    with pytest.raises(FilmLimitError):
        text_elements(io.BytesIO(matroska(part)))


def test_names_that_are_long_enough(tmp_path: Path) -> None:
    """The limit for names of elements is far above what programs write."""
    (tmp_path / "a.mkv").write_bytes(matroska(long_names(200)))
    assert len(film_texts(tmp_path / "a.mkv").texts) == 501


def test_texts_that_do_not_fit_into_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that do not fit into their elements, or lie too deep, are refused: what is counted must be what FFmpeg reads."""
    deep = text(b"A", b"v")
    for _ in range(30):
        deep = element("67C8", deep)
    for inside in (element("67C8", b"\x45\xa3\x88x"), b"\0\0\0", bytes.fromhex("67C8") + ENDLESS, deep):
        with pytest.raises(UnsafeError, match="damaged"):
            text_elements(io.BytesIO(matroska(tags(inside))))
    monkeypatch.setattr(film_elements, "MOST_TEXT_BYTES", 2**20)
    with pytest.raises(UnsafeError, match="1 MB"):
        text_elements(io.BytesIO(matroska(*[tags(text(b"A", bytes(400_000)))] * 3)))


def test_private_data_that_unpacks(tmp_path: Path) -> None:
    """Ten kilobytes in each of 200 tracks unpacked to 7.5 GB."""
    private = element("63A2", zlib.compress(bytes(9_900_000)))
    (tmp_path / "a.mkv").write_bytes(matroska(tracks(*(track(each, private, PACKED) for each in range(1, 60))), HELLO, CLUSTER))
    began = time.process_time()
    assert film_texts(tmp_path / "a.mkv").texts["comment"] == "hello"
    assert time.process_time() - began < 0.5
