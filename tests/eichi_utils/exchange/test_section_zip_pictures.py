"""Test pictures in section ZIPs: unreadable ones, other formats, and equal ones."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from eichi_utils.exchange.section_zip import TEXT, export_sections, import_sections
from eichi_utils.files.copies import keep
from eichi_utils.problems import UserError
from tests.eichi_utils.files.test_picture_files import CASES
from tests.eichi_utils.helpers import found, names_in, picture, request
from tests.eichi_utils.zips import place as place
from tests.eichi_utils.zips import uploads as uploads

pytestmark = pytest.mark.usefixtures("place")


def test_an_export_names_all_pictures_that_cannot_be_read(place: Path, pictures: list[str]) -> None:
    """An export names all pictures that cannot be read, and leaves an older file of that name as it was."""
    (place / "a.zip").write_bytes(b"old")
    (place / "bad.png").write_bytes(b"x")
    made = request("reverse", place / "gone.png", keyframes={2: str(place / "bad.png")}, end_image=pictures[0])
    with pytest.raises(UserError) as error:
        export_sections(made, place / "a.zip")
    assert found(error.value.problems) == {("image", "picture_missing"), ("keyframes/2", "picture_unknown_format")}
    assert (place / "a.zip").read_bytes() == b"old"
    with pytest.raises(UserError) as error:
        export_sections(request("reverse", ""), place / "bad.png" / "b.zip")
    assert found(error.value.problems) == {("out", "folder_not_writable")}


def test_pictures_that_the_existing_program_does_not_find_become_png(place: Path, uploads: Path) -> None:
    """Pictures in formats that the existing program does not look for become PNG, such as a telephone's photo that is only
    called a JPEG."""
    shutil.copyfile(CASES / "iphone_photo.heic", place / "c.jpg")
    shown = {"keyframes": {0: picture(place / "b.JPG")}, "end_image": str(place / "c.jpg")}
    export_sections(request("reverse", picture(place / "a.bmp", seed=2), **shown), place / "a.zip")
    with zipfile.ZipFile(place / "a.zip") as opened:
        assert set(opened.namelist()) == {TEXT, "sections/start.png", "sections/end.png", "sections/000.jpg"}
        assert opened.read("sections/end.png").startswith(b"\x89PNG")
    made, _ = import_sections(place / "a.zip", uploads=uploads)
    with Image.open(made.image) as png_file, Image.open(place / "a.bmp") as original:
        assert png_file.format == "PNG" and png_file.tobytes() == original.tobytes()


def test_equal_pictures_are_kept_once(place: Path, uploads: Path) -> None:
    """An export from the uploads folder comes back as the very same request, and importing twice adds nothing."""
    picture(place / "cat.png")
    kept = str(keep(place / "cat.png", uploads))
    original = request("reverse", kept, end_image=kept, seconds=5, keyframes={0: kept})
    export_sections(original, place / "a.zip")
    for _ in range(2):
        assert import_sections(place / "a.zip", uploads=uploads)[0] == original
    assert len(names_in(uploads)) == 1
