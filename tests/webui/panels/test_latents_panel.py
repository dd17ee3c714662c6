"""Test what the group for latents says and offers, without a browser."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from eichi_utils.files.latent_header import read_info
from eichi_utils.files.pictures import fitted_size
from eichi_utils.requests.modes import MODES
from locales import LANGUAGES, Translator
from tests.eichi_utils.helpers import latent_file
from tests.webui.forms.test_form import page
from webui.forms import words
from webui.panels.latents_panel import LatentsPanel, facts, recent

__all__ = ["page"]
FILMS = ("reverse", "forward")


def panel_of(built) -> LatentsPanel:
    (look,) = [look for look in built.start.followers.values() if isinstance(getattr(look, "__self__", None), LatentsPanel)]
    return look.__self__


def test_the_newest_files_are_offered_and_no_others_are_opened(page, tmp_path: Path):
    """Only the offered newest files are opened, because a browser may ask for any name."""
    for number, name in enumerate(("old", "new")):
        os.utime(latent_file(tmp_path / f"{name}.safetensors"), (number, number))
    (tmp_path / "film.mp4").write_bytes(b"")
    secret = latent_file(tmp_path.parent / "secret.safetensors")
    assert [path.name for path in recent(tmp_path)] == ["new.safetensors", "old.safetensors"]
    assert list(recent(tmp_path / "gone")) == []
    # The output folder is a subfolder here; of two files of one name in two folders each can be chosen.
    (tmp_path / "sub").mkdir()
    below = latent_file(tmp_path / "sub" / "old.safetensors")
    os.utime(below, (2, 2))
    panel = panel_of(page("reverse"))
    assert panel.choose("old.safetensors") == str(tmp_path / "old.safetensors")
    assert panel.choose("sub/old.safetensors") == below
    for name in (f"../{Path(secret).name}", secret, "film.mp4", None, 5):
        assert panel.choose(name) is None
    assert [value for _, value in panel.offer()["choices"]] == ["sub/old.safetensors", "new.safetensors", "old.safetensors"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_a_file_is(language: str, tmp_path: Path):
    """A latents file is described by size and length, and one of ours by its seed and the beginning of its prompt, made
    harmless."""
    t = Translator(language)
    plain = facts(t, read_info(latent_file(tmp_path / "a.safetensors", 10)))
    for text in ("144 × 112", "10", "37", "1.23"):
        assert text in plain.replace("\u00a0", " ")
    document = {"prompt": "<b>cat</b> " * 40, "seed": 42}
    parts = [{"file": "x", "latents": 5}, {"file": "y", "latents": 5}]
    ours = latent_file(tmp_path / "b.safetensors", 10, eichi=json.dumps(document), eichi_parts=json.dumps(parts))
    told = facts(t, read_info(ours))
    assert "42" in told and "&lt;b&gt;cat" in told and "<b>" not in told and len(told) < 600
    assert t("page.latents.parts", parts=2) in told


@pytest.mark.parametrize("mode", FILMS)
def test_the_panel_follows_the_form(page, mode: str, tower: str, tmp_path: Path):
    """The panel tells facts of a latents file, fitting or not, and nothing of other files; its summary counts what will come
    out."""
    built = page(mode)
    panel = panel_of(built)
    good = latent_file(tmp_path / "good.safetensors", 10, *fitted_size(tower, 640))
    small = latent_file(tmp_path / "small.safetensors", 10, 64, 96)
    (tmp_path / "cat.safetensors").write_bytes(b"cat")

    def told_of(path: str) -> tuple[str, str]:
        told = built.start.on_change(built.values(image=tower, prompt="x", append_latents=path, join_latents=2))
        return told[panel.info], words.summary(built.form.t, *built.form.read(built.values(image=tower, append_latents=path)))

    assert "512 × 768" in told_of(good)[0] and "joined 77 frames, 2.57 s" in told_of(good)[1]
    bridged = built.form.read(built.values(image=tower, append_latents=good, join_latents=9))
    # The bar counts the section that is sampled for joining; the line before Start did not.
    assert ("one more section between, in all" in words.summary(built.form.t, *bridged)) is (mode == "reverse")
    assert "96 × 64" in told_of(small)[0] and "joined" not in told_of(small)[1]
    assert told_of(str(tmp_path / "cat.safetensors"))[0] == told_of("")[0] == ""
    height, width = fitted_size(tower, 640)
    broken = numpy.full((1, 16, 2, height // 8, width // 8), numpy.nan, numpy.float32)
    save_file({"history_latents": broken}, tmp_path / "nan.safetensors")
    for wrong, said in (("cat", "cat.safetensors"), ("nan", "nan.safetensors"), ("small", "96 x 64")):
        (box,) = built.form.entries["append_latents"].components
        told = built.start.on_change(built.values(image=tower, prompt="x") | {box: str(tmp_path / f"{wrong}.safetensors")})
        assert said in told[built.start.field_problems]["append_latents"] and told[built.start.start]["interactive"] is False
    told |= built.start.on_change(built.values(image=tower, prompt="x", append_latents=good, append_trim_start=10))
    assert told[built.start.field_problems]["append_trim_start"].startswith("good.safetensors has 10 latents")
    assert str(tmp_path) not in told[built.start.problems]


def test_a_request_from_elsewhere_shows_nothing_but_latents(page, tmp_path: Path):
    """A section ZIP or a film's metadata may name any file of the server, and what a page shows can be downloaded."""
    form = page("reverse").form
    (tmp_path / "secret.txt").write_text("password")
    (component,) = form.entries["append_latents"].components
    for path in (tmp_path / "secret.txt", tmp_path / "gone.safetensors"):
        assert form.write(MODES["reverse"](append_latents=str(path)))[component] is None
    good = latent_file(tmp_path / "good.safetensors")
    assert form.write(MODES["reverse"](append_latents=good))[component] == good


def test_a_film_alone_has_no_such_group(page):
    assert not {"append_latents", "save_latents"} & set(page("single").form.entries)
    assert not {"append_latents", "save_latents"} & set(page("reverse", plain=True).form.entries)
    assert {"append_latents", "join_latents"} <= {name for mode in FILMS for name in MODES[mode].__dataclass_fields__}
