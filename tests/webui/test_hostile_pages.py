"""Test hostile files in every place of a page that takes files: a sentence, soon, in little memory, nothing kept."""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eichi_utils.requests import loras
from eichi_utils.requests.loras import Lora
from tests.eichi_utils.files.test_hostile import HOSTILE, MOST_BYTES, MOST_SECONDS
from tests.eichi_utils.helpers import names_in
from tests.webui.forms.test_form import page as page
from tests.webui.whole import Page, Whole
from tests.webui.whole import whole as whole
from webui.panels.lora_panel import LoraPanel

pytestmark = pytest.mark.slow


@pytest.fixture
def made(whole: Page, own_folders: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Whole:
    """Return a standard page with its LoRA panel, whose LoRA folder is the test's."""
    monkeypatch.setattr(loras, "LORAS", next(own_folders))
    panels, begin = [], LoraPanel.__init__
    monkeypatch.setattr(LoraPanel, "__init__", lambda self, *given, **own: panels.append(self) or begin(self, *given, **own))
    made = whole("reverse")
    (made.panels["lora"],) = panels
    made.fill(prompt="a cat")
    return made


def places(made: Whole) -> Iterator[tuple[str, Callable[[str], Any]]]:
    """Yield, for every place of the page that takes files, its name and what it does with an upload's path."""
    form = made.built.form
    yield "metadata", made.metadata.on_upload
    yield "offer at the start picture", made.offer.on_upload
    yield "ZIP", lambda path: made.zip.import_zip(made.holds | {made.zip.upload: path, made.zip.how: "replace"})
    for name in ("image", "end_image", "append_latents"):
        component = form.entries[name].components[0]
        yield name, lambda path, component=component: form.read(made.holds | {component: path})
    yield "LoRA", lambda path: made.lora.on_upload([path], "[]")


@pytest.mark.parametrize("file", HOSTILE, ids=lambda file: file.name)
def test_every_place_of_a_page_lives_through_every_file(file: Path, made: Whole, tmp_path: Path) -> None:
    """A picture of 1 kB in the place for metadata froze the server for hours; a browser may put any file anywhere."""
    (tmp_path / "given").mkdir()
    path = shutil.copy(file, tmp_path / "given")
    for name, take in places(made):
        before, peak = names_in(tmp_path), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.process_time()
        answer = take(path)
        seconds = time.process_time() - began
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
        assert answer, name
        assert seconds < MOST_SECONDS and grown < MOST_BYTES, (name, seconds, grown)
        assert names_in(tmp_path) == before, name


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("sections_", "zip"),
        ("zip_", "zip"),
        ("lora_", "LoRA"),
        ("latents_", "append_latents"),
        ("eps_", "image"),
        ("emf_", "image"),
        ("mp4_", "image"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_where_it_was_put(kind: str, place: str, made: Whole) -> None:
    for file in (file for file in HOSTILE if file.name.startswith(kind)):
        answer = dict(places(made))["ZIP" if place == "zip" else place](str(file))
        if place == "zip":
            assert made.see(answer)
        elif place == "LoRA" and file.name not in str(answer[made.lora.said]):
            # A whole file is kept; that it cannot be used the form says.
            (name,) = [slot["file"] for slot in json.loads(answer[made.lora.box]) if slot["file"]]
            _, problems = made.built.form.read(made.built.values(prompt="a cat", loras=(Lora(name),)))
            assert "loras/0/file" in {problem.field for problem in problems}
        elif place == "LoRA":
            assert not any(slot["file"] for slot in json.loads(answer[made.lora.box]))
        else:
            assert place in {problem.field for problem in answer[1]}
