"""Test notes about pictures that can be used, but not in every way that their files ask for."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from eichi_utils.files.pictures import profile_problem
from locales import Translator
from tests.eichi_utils.helpers import request
from webui.forms import words
from webui.panels.start_panel import _notes


def test_a_profile_that_cannot_be_used_is_said_where_the_picture_is_looked_at(tmp_path: Path) -> None:
    """A colour profile that cannot be used is told beside the picture; it was dropped without a word. It does not keep
    anybody from starting."""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "odd <name>.png", icc_profile=b"no profile")
    made = request("reverse", tmp_path / "odd <name>.png")
    assert made.check() == ()
    notes = _notes(made, ())
    assert notes == (profile_problem("image", made.image),)
    shown = words.problem_list(Translator("en"), (), notes)
    assert "odd &lt;name&gt;.png" in shown and 'class="todo"' in shown and "sRGB" in shown
    assert words.problem_list(Translator("en"), (), ()) == ""
    assert _notes(None, ()) == _notes(made, notes) == ()
