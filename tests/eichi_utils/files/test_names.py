"""Test file names that are made of names from other people."""

from __future__ import annotations

from pathlib import Path

import pytest

from eichi_utils.files.copies import keep
from eichi_utils.files.names import MOST_KEPT, harmless_name, visible_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat.png", "cat.png"),
        ("sections/猫 のいる 庭.webp", "猫 のいる 庭.webp"),
        ("Кот (1).jpg", "Кот (1).jpg"),
        ("..\\..\\CAT.png", "CAT.png"),
        ('a<b>c:d"e|f?g*h.png', "a_b_c_d_e_f_g_h.png"),
        ("photo\u202egnp.exe", "photognp.exe"),
        ("a\u200bb\ufeffc\u2066d\u00ade\x07f\x7fg\u2028h.png", "abcdefgh.png"),
        ("half \ud800.png", "half .png"),
        ("name. .", "name"),
        ("\u202e\u200b", ""),
        ("..", ""),
    ],
)
def test_a_name_in_the_same_letters(name: str, expected: str) -> None:
    """A picture of a ZIP kept U+202E in its name, so that a program could be shown as a picture."""
    assert harmless_name(name) == expected


def test_a_long_name_keeps_its_suffix_and_fits() -> None:
    """Names were cut to 80 characters, which are up to 320 bytes in some scripts, more than a file's name may have."""
    made = harmless_name("\U00020000" * 300 + ".png")
    assert len(made.encode()) <= MOST_KEPT and made.endswith("\U00020000.png")


def test_a_users_own_name_keeps_its_letters() -> None:
    """Persian joins its letters by characters that nobody sees."""
    assert visible_name("می\u200cخواهم\u202e!\u200b") == "می\u200cخواهم!"


def test_a_kept_upload_has_a_harmless_name(tmp_path: Path) -> None:
    """A kept upload gets a harmless name; it used to keep the name that the browser sent."""
    upload = tmp_path / "a" / ("photo\u202e\u200b" + "x" * 240 + ".png")
    upload.parent.mkdir()
    upload.write_bytes(b"picture")
    kept = keep(upload, tmp_path / "kept")
    assert kept.read_bytes() == b"picture"
    assert kept.name[13:] == "x" * (MOST_KEPT - 4) + ".png"
