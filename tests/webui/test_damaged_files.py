"""Test that the program starts and its page is built and filled, whatever lies in the places of its own files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from eichi_utils.files.folders import OutputFolders
from eichi_utils.user_data.log_file import FOLDER, Log
from eichi_utils.user_data.settings import AppSettings, JsonFile
from locales import Translator
from tests.eichi_utils.user_data.test_damaged_files import DAMAGES, FILES, STILL_GOOD
from tests.eichi_utils.user_data.test_damaged_files import good as good
from tests.webui.forms.test_form import page as page
from tests.webui.whole import Page
from tests.webui.whole import whole as whole
from webui.app import apply_saved
from webui.panels.settings_panel import starting_fields

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "damage", ["number of 400 digits", "half a surrogate pair in a name", "wrong types", "a pipe", "a folder"]
)
def test_damaged_files_keep_nobody_from_the_page(damage: str, whole: Page, good: Path, tmp_path: Path) -> None:
    """A preset named "\\ud800" made every page answer 500; a number of 400 digits kept the server from starting."""
    for folder in ("settings", "presets"):
        (tmp_path / folder).mkdir()
        for name in FILES:
            DAMAGES[damage](tmp_path / folder / name, (good / name).read_text(encoding="utf-8"))
    engine = SimpleNamespace(card=None, reserve_gb=0.5)
    log = Log("test", Translator("en"), OutputFolders(tmp_path, (), FOLDER))
    apply_saved(AppSettings(JsonFile(tmp_path / "settings" / "app_settings.json")), log, engine, "reverse", None)
    log.close()
    made = whole()
    fields, _ = starting_fields(made.built.context, made.built.form)
    assert fields.get("steps") == (12 if damage in STILL_GOOD else None)
    made.fill(prompt="a cat")
    for panel in (made.prompts.panel, made.favourites.panel):
        said = made.see(panel.save(made.holds | {panel.name: "new"}))
        assert said and ("new" in said or "cannot be read" in said)
    # Through the API a page may be sent any name.
    for name in ("\ud800", "a\x1b[2Jb", "n" * 5000, "\0"):
        before = {file: file.read_bytes() for file in (tmp_path / "presets").glob("*.json") if file.is_file()}
        assert made.see(made.prompts.panel.save(made.holds | {made.prompts.panel.name: name}))
        assert {file: file.read_bytes() for file in (tmp_path / "presets").glob("*.json") if file.is_file()} == before
