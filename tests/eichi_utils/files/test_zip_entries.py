"""Test entries of ZIPs: names in the encoding of every system, and how much each compression may unpack to."""

from __future__ import annotations

import io
import os
import resource
import struct
import time
import zipfile
import zlib
from pathlib import Path

import pytest

from eichi_utils.exchange.section_zip import import_sections
from eichi_utils.files import zip_reading
from eichi_utils.files.zip_reading import opened
from eichi_utils.problems import UserError
from tests.eichi_utils.helpers import found, say_everything
from tests.eichi_utils.zips import MINIMAL, packed, png
from tests.eichi_utils.zips import place as place

CASES = Path(__file__).parents[2] / "cases"

pytestmark = pytest.mark.usefixtures("place")


def renamed(path: Path, names: dict[str, bytes]) -> Path:
    """Rename a ZIP's entries to bytes of the same length, without the mark for UTF-8."""
    data = path.read_bytes()
    for name, other in names.items():
        assert len(name) == len(other)
        data = data.replace(name.encode(), other)
    path.write_bytes(data)
    return path


def with_names(path: Path, encoding: str, *names: str) -> Path:
    """Write a ZIP whose pictures have names in an encoding that the ZIP does not declare."""
    raw = [name.encode(encoding) for name in names]
    stands = [f"{'x' * (len(name) - 2)}{number:02d}" for number, name in enumerate(raw)]
    packed(
        path,
        {"sections.yaml": MINIMAL, **{stand: png(colour=("red", "blue", "lime")[n % 3]) for n, stand in enumerate(stands)}},
    )
    return renamed(path, dict(zip(stands, raw, strict=True)))


def test_the_case_of_a_japanese_windows(place: Path) -> None:
    """Second bytes 0x5C of Japanese characters were taken for backslashes, so a picture's name was that of a folder and
    half a name: start picture, final frame and keyframe were lost."""
    request, notes = import_sections(CASES / "section_zip_cp932_names_with_byte_5C_from_infozip.zip", uploads=place / "uploads")
    assert request.prompt == "\u732b\u304c\u8d70\u308b" and request.section_prompts == {0: "\u591c\u306e\u6d77"}
    assert request.seed == 7 and notes == ()
    assert [Path(file).name.split("_", 1)[1] for file in (request.image, request.end_image, request.keyframes[0])] == [
        "start_\u8868\u7d19.png",
        "end_\u5341\u4eba.png",
        "000_\u30bd\u30d5\u30a1.png",
    ]


@pytest.mark.parametrize(
    ("encoding", "names"),
    [
        ("cp932", ("素材/start_表紙.png", "素材/end_十人.png", "素材/000_ソフト.png")),
        ("gbk", ("图片/start_封面.png", "图片/end_结尾.png", "图片/000_第一.png")),
        ("big5", ("圖片/start_功能.png", "圖片/end_許可.png", "圖片/000_封面.png")),
        ("cp1251", ("кадры/start_обложка.png", "кадры/end_конец.png", "кадры/000_кадр.png")),
        ("cp866", ("кадры/start_обложка.png", "кадры/end_конец.png", "кадры/000_кадр.png")),
        ("utf-8", ("素材/start_表紙.png", "кадры/end_конец.png", "图片/000_第一.png")),
        ("cp932", ("素材\\start_表紙.png", "素材\\end_十人.png", "素材\\000_ソフト.png")),
    ],
    ids=["cp932", "gbk", "big5", "cp1251", "cp866", "utf-8", "backslashes"],
)
def test_names_without_a_mark_of_their_encoding(encoding: str, names: tuple[str, ...], place: Path) -> None:
    """Explorer writes names in the system's code page, and other packers in UTF-8 without saying so."""
    with opened(with_names(place / "a.zip", encoding, *names)) as file:
        assert set(file.entries) == {"sections.yaml", *(name.replace("\\", "/") for name in names)}
    request, notes = import_sections(place / "a.zip", uploads=place / "uploads")
    assert request.image and request.end_image and set(request.keyframes) == {0} and notes == ()


def test_names_in_two_encodings_are_all_read(place: Path) -> None:
    """Names in two encodings are all read; one that no encoding explains keeps its beginning and its suffix, which suffice."""
    path = with_names(place / "a.zip", "latin-1", "start_\xff\xfe.png", "001_\x81\x9f\xff.png", "\x80\x81\xff.txt")
    request, notes = import_sections(path, uploads=place / "uploads")
    assert request.image and set(request.keyframes) == {1}
    assert found(notes) == {("sections", "zip_unused")} and ".txt" in notes[0].values["names"]


@pytest.mark.parametrize("right", [True, False])
def test_a_name_in_unicode_beside_the_other(right: bool, place: Path) -> None:
    """Info-ZIP writes the name a second time in UTF-8, with a checksum of the first one, which tells if it is of another."""
    old = "001_\u00e4.png"
    extra = struct.pack("<BI", 1, zlib.crc32(old.encode("cp437")) ^ (not right)) + "start_猫.png".encode()
    with zipfile.ZipFile(place / "a.zip", "w") as written:
        written.writestr("sections.yaml", MINIMAL)
        entry = zipfile.ZipInfo("001_X.png")
        entry.extra = struct.pack("<HH", 0x7075, len(extra)) + extra
        written.writestr(entry, png())
    data = (place / "a.zip").read_bytes().replace(b"001_X.png", old.encode("cp437"))
    (place / "a.zip").write_bytes(data)
    with opened(place / "a.zip") as file:
        assert ("start_猫.png" in file.entries) == right


def test_an_entry_without_a_name(place: Path) -> None:
    """An entry without a name is no crash: zipfile ends a name at its first NUL, and asks for the last character of nothing."""
    path = renamed(packed(place / "a.zip", {"sections.yaml": MINIMAL}), {"sections.yaml": b"\0ections.yaml"})
    for zip_file in (path, CASES / "hostile" / "sections_entry_with_empty_name.zip"):
        with pytest.raises(UserError) as error:
            import_sections(zip_file, uploads=place / "uploads")
        assert found(error.value.problems) == {("sections", "zip_damaged")}


def test_two_entries_of_one_name_and_hidden_files_are_named(place: Path) -> None:
    """Two entries of one name, and hidden files such as `.start.png`, are named; they were lost without a word."""
    with zipfile.ZipFile(place / "a.zip", "w") as written, pytest.warns(UserWarning, match="Duplicate"):
        for name, data in (
            ("sections.yaml", MINIMAL),
            ("start.png", png()),
            ("start.png", png(colour="blue")),
            (".x.png", png()),
        ):
            written.writestr(name, data)
    request, notes = import_sections(place / "a.zip", uploads=place / "uploads")
    assert request.image and found(notes) == {("sections", "zip_unused")}
    assert notes[0].values["names"] == ".x.png, start.png (2)"


def test_a_long_list_of_unused_entries_says_how_many_more(place: Path) -> None:
    names = [f"note\x1b[2J {number:03d}.txt" for number in range(60)]
    path = packed(place / "a.zip", {"sections.yaml": MINIMAL, **dict.fromkeys(names, b"x")})
    (note,) = say_everything(import_sections(path, uploads=place / "uploads")[1])
    assert "049.txt" in note.values["names"] and note.values["names"].endswith("(+10)") and "\x1b" not in note.values["names"]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_every_compression_is_read(method: int, place: Path) -> None:
    noise = bytes(range(256)) * 5000 + png()
    with zipfile.ZipFile(place / "a.zip", "w", method) as written:
        for name, data in {"sections.yaml": MINIMAL, "noise": noise, "empty": b"", "start.png": png()}.items():
            written.writestr(name, data)
    with opened(place / "a.zip") as file:
        assert file.read("noise") == noise and file.read("empty") == b"" and file.read("start.png") == png()
    assert import_sections(place / "a.zip", uploads=place / "uploads")[0].image


class Zeros(io.RawIOBase):
    """Give as many zeros as are asked for, without the memory for them."""

    def __init__(self, size: int):
        self.left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        count = min(len(buffer), self.left)
        buffer[:count] = bytes(count)
        self.left -= count
        return count


def declared(path: Path, name: str, size: int) -> None:
    """Change the size of an entry in the ZIP's directory and in the entry's own header."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.rindex(b"PK\x01\x02", 0, data.rindex(name.encode())) + 24, size)
    struct.pack_into("<I", data, data.rindex(b"PK\x03\x04", 0, data.index(name.encode())) + 22, size)
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_entry_that_holds_more_than_it_declares(method: int, place: Path) -> None:
    """zipfile hands bzip2 and LZMA 4 kB at once and takes whatever comes of it: 6 GB of a file of 4.5 kB."""
    archive = zipfile.ZipFile(place / "a.zip", "w", method, compresslevel=1)
    with archive as written, written.open("sections.yaml", "w") as target:
        zeros = Zeros(30 * 2**20)
        while piece := zeros.read(2**20):
            target.write(piece)
    declared(place / "a.zip", "sections.yaml", 100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as error:
        import_sections(place / "a.zip", uploads=place / "uploads")
    assert found(error.value.problems) == {("sections", "zip_damaged")}
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 60 * 2**20


def test_the_case_of_six_gigabytes(place: Path) -> None:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(UserError) as error:
        import_sections(CASES / "hostile" / "zip_entry_bz2_declares_100_bytes_holds_6_GB.zip", uploads=place / "uploads")
    assert found(error.value.problems) == {("sections", "zip_damaged")}
    assert time.process_time() - began < 1.0
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 60 * 2**20


def test_lzma_with_a_dictionary_of_four_gigabytes(place: Path) -> None:
    with zipfile.ZipFile(place / "a.zip", "w", zipfile.ZIP_LZMA) as written:
        written.writestr("sections.yaml", MINIMAL)
    data = bytearray((place / "a.zip").read_bytes())
    at = data.index(b"sections.yaml") + len("sections.yaml")
    assert data[at + 2 : at + 4] == b"\x05\x00"
    data[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    (place / "a.zip").write_bytes(data)
    with pytest.raises(UserError) as error:
        import_sections(place / "a.zip", uploads=place / "uploads")
    assert found(error.value.problems) == {("sections", "zip_damaged")}


def test_entries_over_each_other(place: Path) -> None:
    """A thousand entries over the same data: small on the disk, each within its limits, and 2 GB of pictures."""
    path = packed(place / "a.zip", {"sections.yaml": MINIMAL, **{f"{number:03d}.png": png() for number in range(3)}})
    data = bytearray(path.read_bytes())
    first = data.index(b"PK\x03\x04", 10)
    for name in (b"001.png", b"002.png"):
        struct.pack_into("<I", data, data.rindex(b"PK\x01\x02", 0, data.rindex(name)) + 42, first)
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        import_sections(path, uploads=place / "uploads")
    assert found(error.value.problems) == {("sections", "zip_damaged")}


def test_a_compression_that_nobody_reads(place: Path) -> None:
    data = bytearray(packed(place / "a.zip", {"sections.yaml": MINIMAL}).read_bytes())
    for mark, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        struct.pack_into("<H", data, data.index(mark) + at, 98)
    (place / "a.zip").write_bytes(data)
    with pytest.raises(UserError) as error:
        import_sections(place / "a.zip", uploads=place / "uploads")
    assert found(error.value.problems) == {("sections", "zip_damaged")}
    assert "98" in error.value.problems[0].values["reason"]


def test_cut_and_changed_streams(place: Path) -> None:
    """Every decompressor's own errors, and one that never comes to its end."""
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(place / "a.zip", "w", method) as written:
            written.writestr("sections.yaml", MINIMAL * 20)
        whole = (place / "a.zip").read_bytes()
        start, end = whole.index(b"sections.yaml") + 13, whole.index(b"PK\x01\x02")
        for at in range(start, end, 2):
            (place / "a.zip").write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
            try:
                import_sections(place / "a.zip", uploads=place / "uploads")
            except UserError as error:
                assert found(error.problems) == {("sections", "zip_damaged")}


@pytest.mark.slow
def test_ninety_thousand_entries_are_counted_in_a_moment(place: Path) -> None:
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 0, 20, 0, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    count = zip_reading.MAX_READ // len(entry)
    directory = entry * count
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count & 0xFFFF, count & 0xFFFF, len(directory), 0, 0)
    (place / "a.zip").write_bytes(directory + end)
    began = time.process_time()
    with pytest.raises(UserError) as error:
        import_sections(place / "a.zip", uploads=place / "uploads")
    assert {problem.key for problem in error.value.problems} <= {"zip_entries", "zip_damaged"}
    assert time.process_time() - began < 2.0


def test_a_pipe_in_the_place_of_a_zip(place: Path) -> None:
    os.mkfifo(place / "a.zip")
    with pytest.raises(UserError) as error:
        import_sections(place / "a.zip", uploads=place / "uploads")
    assert found(error.value.problems) == {("sections", "zip_damaged")}
