"""Test damaged and hostile ZIPs: each is refused with one sentence, and leaves nothing behind."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from PIL import Image

from eichi_utils.exchange import section_zip
from eichi_utils.exchange.section_zip import export_sections, import_sections
from eichi_utils.files import copies as kept
from eichi_utils.files import zip_reading
from eichi_utils.files.copies import keep
from eichi_utils.files.safe_reading import MOST_NODES
from eichi_utils.problems import UserError
from tests.eichi_utils.helpers import found, names_in, request
from tests.eichi_utils.zips import COMPAT, MINIMAL, packed, png
from tests.eichi_utils.zips import place as place

pytestmark = pytest.mark.usefixtures("place")


def refused(path: Path, key: str, place: Path, **settings: Any) -> None:
    """Check that the import fails with one problem and leaves nothing behind."""
    before = names_in(place)
    with pytest.raises(UserError) as error:
        import_sections(path, uploads=place / "uploads", **settings)
    assert {name for _, name in found(error.value.problems)} == {key}
    assert names_in(place) == before


@pytest.mark.parametrize(
    "name",
    ["../evil.png", "a/../../evil.png", "/etc/evil.png", "..\\evil.png", "C:\\evil.png", "c:evil.png", "\\\\host\\a.png"],
)
def test_names_outside_the_folder(name: str, place: Path) -> None:
    refused(packed(place / "a.zip", {"sections.yaml": MINIMAL, "start.png": png(), name: png()}), "zip_name", place)


def test_links_and_devices(place: Path) -> None:
    for number, kind in enumerate((stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR)):
        path = place / f"{number}.zip"
        with zipfile.ZipFile(path, "w") as written:
            written.writestr("sections.yaml", MINIMAL)
            entry = zipfile.ZipInfo("start.png")
            entry.create_system, entry.external_attr = 3, (kind | 0o777) << 16
            written.writestr(entry, "/etc/passwd")
        refused(path, "zip_link", place)


@pytest.mark.slow
def test_ten_thousand_entries(place: Path) -> None:
    files = {"sections.yaml": MINIMAL, **{f"{number:05d}.png": b"" for number in range(10_000)}}
    refused(packed(place / "a.zip", files), "zip_entries", place)


def test_a_directory_of_any_size_is_read_only_so_far(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty million entries would fill the memory before they are counted."""
    monkeypatch.setattr(zip_reading, "MAX_READ", 2**16)
    files = {"sections.yaml": MINIMAL, **{f"{number:05d}.png": b"" for number in range(10_000)}}
    refused(packed(place / "a.zip", files), "zip_damaged", place)


def test_a_bomb_is_refused_by_its_directory(place: Path) -> None:
    """300 MB of zeros in 300 kB; and many of them below the limit of one."""
    with zipfile.ZipFile(place / "a.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as written:
        written.writestr("sections.yaml", MINIMAL)
        with written.open("start.png", "w", force_zip64=True) as file:
            for _ in range(300):
                file.write(bytes(2**20))
    assert (place / "a.zip").stat().st_size < 3 * 2**20
    refused(place / "a.zip", "zip_entry_size", place)


def resized(path: Path, name: str, size: int) -> Path:
    """Change the size of an entry in the ZIP's directory."""
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(name.encode()))
    struct.pack_into("<I", data, at + 24, size)
    path.write_bytes(data)
    return path


def test_many_bombs_below_the_limit_of_one(place: Path) -> None:
    names = [f"{number:03d}.png" for number in range(20)]
    path = packed(place / "a.zip", {"sections.yaml": MINIMAL, **{name: b"x" for name in names}})
    for name in names:
        resized(path, name, 149 * 2**20)
    refused(path, "zip_total_size", place)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_honest_bombs(method: int, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten entries said truly that they have 190 MB each: 4.5 kB of bzip2, nine seconds, and 2 GB on the disk."""
    monkeypatch.setattr(zip_reading, "FREE_BYTES", 2**20)
    monkeypatch.setattr(zip_reading.Archive, "_pieces", lambda *_: pytest.fail("something was unpacked"))
    with zipfile.ZipFile(place / "a.zip", "w", method) as written:
        for name, data in (("sections.yaml", MINIMAL), ("000.png", bytes(2**20)), ("001.png", bytes(2**20))):
            written.writestr(name, data)
    refused(place / "a.zip", "zip_total_size", place)


def test_large_pictures_in_few_bytes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten pictures of 100 megapixels of one colour, each one good: 90 kB, and eleven seconds of decoding."""
    monkeypatch.setattr(section_zip, "FREE_PIXELS", 2_000_000)
    with zipfile.ZipFile(place / "a.zip", "w", zipfile.ZIP_DEFLATED) as written:
        for name, data in (("sections.yaml", MINIMAL), *((f"{n:03d}.png", png((1500, 1000))) for n in range(2))):
            written.writestr(name, data)
    with monkeypatch.context() as patch:
        patch.setattr(section_zip, "picture_problem", lambda *_: pytest.fail("a picture was decoded"))
        refused(place / "a.zip", "zip_total_size", place)
    monkeypatch.setattr(section_zip, "FREE_PIXELS", 3_000_000)
    assert len(import_sections(place / "a.zip", uploads=place / "uploads")[0].keyframes) == 2


def test_pictures_and_latents_as_they_are_packed_pass(place: Path) -> None:
    """A PNG without compression in a ZIP with it, and latents of zeros, are no bombs."""
    plain = io.BytesIO()
    Image.new("RGB", (2000, 1500)).save(plain, "PNG", compress_level=0)
    with zipfile.ZipFile(place / "a.zip", "w", zipfile.ZIP_DEFLATED) as written:
        for name, data in (("sections.yaml", MINIMAL), ("start.png", plain.getvalue()), ("x.safetensors", bytes(2**24))):
            written.writestr(name, data)
    with zip_reading.opened(place / "a.zip") as opened:
        assert sum(entry.file_size for entry in opened.entries.values()) > 100 * (place / "a.zip").stat().st_size
    assert import_sections(place / "a.zip", uploads=place / "uploads")[0].image


def test_an_entry_larger_than_it_says(place: Path) -> None:
    """No more than promised is unpacked, and then its checksum is wrong."""
    with zipfile.ZipFile(place / "a.zip", "w", zipfile.ZIP_DEFLATED) as written:
        written.writestr("sections.yaml", MINIMAL)
        written.writestr("start.png", png() + bytes(50 * 2**20))
    refused(resized(place / "a.zip", "start.png", 1000), "zip_damaged", place)


def test_a_picture_larger_than_one_may_be(place: Path) -> None:
    path = packed(place / "a.zip", {"sections.yaml": MINIMAL, "start.png": png()})
    refused(resized(path, "start.png", 151 * 2**20), "zip_entry_size", place)


@pytest.mark.parametrize(
    ("data", "key"),
    [
        (b"", "picture_empty"),
        (b"text", "picture_unknown_format"),
        (png()[:50], "picture_damaged"),
        (png((8, 8)), "picture_too_small"),
    ],
    ids=["empty", "text", "cut", "small"],
)
def test_damaged_pictures(data: bytes, key: str, place: Path) -> None:
    """Damaged pictures are named as the ZIP names them, and the good ones beside them are not taken either."""
    path = packed(place / "a.zip", {"sections.yaml": MINIMAL, "start.png": png(), "in/001_x.png": data})
    refused(path, key, place)
    with pytest.raises(UserError) as error:
        import_sections(path, uploads=place / "uploads")
    (problem,) = error.value.problems
    assert problem.field == "keyframes/1" and problem.values["file"] == "in/001_x.png"


ALIASES = "a: &a [x, x]\nb: &b [*a, *a]\nsection_info: [*b, *b]"


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['true']",
        "section_info: !!python/name:os.system",
        "section_info: !local x",
        ALIASES,
        "a: [" * 3000,
        "a: 'open",
        "- a list",
        "text",
        "",
        "{[a]: b}",
        "a: \x00",
        "\ufffe",
        "x: [" + "1," * (MOST_NODES + 1) + "]",
        "# " + "x" * 5_000_000,
    ],
    ids=lambda text: text[:12],
)
def test_yaml_that_is_no_plain_mapping(text: str, place: Path) -> None:
    """YAML that is no plain document is refused: tags that would run something, and aliases that grow without end."""
    key = "zip_entry_size" if len(text) > 4_000_000 else "sections_damaged"
    refused(packed(place / "a.zip", {"sections/sections.yaml": text, "start.png": png()}), key, place)


def test_what_is_no_zip(place: Path) -> None:
    (place / "a.zip").write_bytes(b"PK\x03\x04 but no more")
    (place / "b.zip").write_bytes(b"")
    whole = packed(place / "c.zip", {"sections.yaml": MINIMAL, "start.png": png()}).read_bytes()
    (place / "d.zip").write_bytes(whole[:-30])
    (place / "e.zip").write_bytes(whole.replace(b"section_info", b"section_InfO"))
    for name in ("a.zip", "b.zip", "d.zip", "e.zip", "passing"):
        refused(place / name, "zip_damaged", place)
    refused(place / "gone.zip", "zip_missing", place)
    refused(packed(place / "f.zip", {"start.png": png()}), "zip_without_sections", place)


def test_a_protected_zip(place: Path) -> None:
    path = packed(place / "a.zip", {"sections.yaml": MINIMAL, "start.png": png()})
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 8] |= 1
    path.write_bytes(data)
    refused(path, "zip_encrypted", place)


def test_a_single_picture_has_no_sections(place: Path, pictures: list[str]) -> None:
    single = request("single", pictures[0])
    refused(COMPAT / "sections_en.zip", "sections_need_film", place, onto=single)
    with pytest.raises(UserError) as error:
        export_sections(single, place / "a.zip")
    assert found(error.value.problems) == {("mode", "sections_need_film")}
    assert not (place / "a.zip").exists()


def test_an_uploads_folder_that_cannot_be_written(place: Path, monkeypatch: pytest.MonkeyPatch, pictures: list[str]) -> None:
    """If copying fails half way, the pictures already copied are deleted again, and older files stay."""
    keep(Path(pictures[0]), place / "uploads")
    copies = []

    def full(source: BinaryIO, target: BinaryIO, length: int) -> None:
        copies.append(target)
        if len(copies) == 3:
            raise OSError(28, "No space left on device")
        target.write(source.read())

    monkeypatch.setattr(kept.shutil, "copyfileobj", full)
    refused(COMPAT / "sections_en.zip", "folder_not_writable", place)
    assert len(copies) == 3
