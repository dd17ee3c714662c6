"""Test what is saved, where, and the estimated time: on the page, in a browser, and what the page may not do."""

from __future__ import annotations

import json
from types import SimpleNamespace

import gradio as gr
import pytest
from playwright.sync_api import expect

from eichi_utils.jobs.events import Failed, Started, StopLevel, Stopped
from eichi_utils.jobs.queue import Job
from eichi_utils.jobs.timings import RunTimes, Timings, kind_of
from eichi_utils.jobs.view import View
from eichi_utils.problems import Problem
from eichi_utils.requests.kinds import Choice, kinds_of
from eichi_utils.requests.modes import MODES
from eichi_utils.user_data import desktop
from eichi_utils.user_data.settings import JsonFile
from locales import LANGUAGES, Translator
from tests.webui.browsing import FOLDER, PROMPT, SEED, can_start, cannot_start, fill, holds, reload, shows, until
from webui.context import Context
from webui.forms import words
from webui.forms.form import Form
from webui.panels import result_panel

EN = Translator("en")
WRONG_FOLDER = ".field-output_folder > .eichi-wrong"


@pytest.mark.browser
def test_a_batch_with_its_files(serve, open_page, tower, tmp_path):
    """The whole path: a wrong folder is said at its field, three films with following seeds go where they shall, the folder is
    shown or named, a film tells its settings, and after the reload the form is as it was."""
    site = serve("reverse", "en")
    page = open_page(site.url)
    fill(page, tower)
    page.click("#output > button")
    page.fill(FOLDER, "../up")
    shows(page, WRONG_FOLDER, "../up")
    cannot_start(page)
    page.fill(FOLDER, str(tmp_path))
    shows(page, WRONG_FOLDER, "--allow-folder")
    page.fill(FOLDER, "cats")
    expect(page.locator(".eichi-wrong")).to_have_count(0)
    page.fill(SEED, "41")
    page.fill("#batch input", "3")
    page.locator("#save_frames label").nth(1).click()
    page.check("#section_stills input")
    shows(page, "#summary .eichi-summary", "3 × (1", "37")
    can_start(page)
    site.engine.hold.clear()
    page.click("#start")
    expect(page.locator("#stop-now")).to_be_enabled()
    expect(page.locator("#queue li")).to_have_count(2)
    reload(page)
    holds(page, "#prompt textarea", PROMPT)
    holds(page, "#batch input", "3")
    holds(page, SEED, "41")
    site.engine.hold.set()
    expect(page.locator("#queue .title")).to_be_hidden()
    until(page, "finished")
    shows(page, "#viewer .facts", "43")
    assert [request.seed for request in site.engine.seen] == [41, 42, 43]
    assert {(r.output_folder, r.save_frames, r.section_stills, r.batch) for r in site.engine.seen} == {("cats", "all", True, 1)}
    page.click("#viewer .metadata summary")
    shows(page, "#viewer .metadata dl", PROMPT, EN("page.field.output_folder"), "cats")
    # No desktop here: the path is shown to copy. The form's pictures stay: a click on it used to be an error.
    page.click("#viewer .folder")
    holds(page, "#folder-path :is(textarea, input)", str(site.engine.outputs))
    expect(page.locator("#image img")).to_be_visible()


def _event(field: str) -> gr.EventData:
    return gr.EventData(None, {"field": field})


@pytest.mark.parametrize(("address", "opens"), [("127.0.0.1", True), ("192.168.1.9", False)])
def test_a_folder_is_opened_only_for_who_sits_there(jobs, tmp_path, monkeypatch, address, opens):
    """A folder is opened only for a user at the machine itself; others get its path to copy, and nobody can name a folder to
    open."""
    opened = []
    monkeypatch.setattr(result_panel, "open_folder", lambda folder: opened.append(folder) or True)
    panel = result_panel.ResultPanel.__new__(result_panel.ResultPanel)
    job = SimpleNamespace(view=SimpleNamespace(files=(str(tmp_path / "cats" / "x.mp4"),)))
    panel.context = SimpleNamespace(jobs=SimpleNamespace(current=lambda: job))
    asker = SimpleNamespace(client=SimpleNamespace(host=address))
    update = panel.show_folder(_event("folder"), asker)
    assert opened == ([tmp_path / "cats"] if opens else [])
    assert (update["value"], update["visible"]) == (str(tmp_path / "cats"), not opens)
    assert panel.show_folder(_event("image"), asker) == gr.update() and len(opened) == opens
    assert desktop.same_machine(address) is opens


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("mode", ["reverse", "single"])
def test_a_run_without_a_result_does_not_look_like_a_new_page(jobs, tmp_path, language, mode):
    """After a run that was stopped in its first section the viewer looked as if nothing had ever been run."""
    t, it = Translator(language), MODES[mode]()
    context = Context(jobs=jobs, t=t, mode=mode, outputs=tmp_path)
    with gr.Blocks():
        form = Form(MODES[mode], t, context.models)
        form.picture("image")
        panel = result_panel.ResultPanel(context, form)
    started = View().after(Started(at=1.0, sections=2, steps=9, frames=73, width=96, height=64, seed=1))
    stopped = started.after(Stopped(at=2.0, level=StopLevel.NOW))
    failed = started.after(Failed(at=2.0, problems=(Problem("", "disk_full"),)))
    texts = {panel.viewer.value["labels"]["empty"]}
    for view in (started, stopped, failed):
        value = panel._viewer(Job("j", it, it, view=view))
        assert not value["film"] and not value["picture"] and value["result"] is None
        texts.add(value["labels"]["empty"])
    assert texts == {t(f"page.viewer.{name}") for name in ("empty", "running", "stopped", "failed")} and len(texts) == 4


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_estimate_is_said_once_there_is_one(language, tower, tmp_path):
    """An estimate is shown after the first run of a kind, and not while the request has problems."""
    t, timings = Translator(language), Timings(JsonFile(tmp_path / "timings.json"))
    request = MODES["reverse"](image=tower, prompt="a cat", seconds=5.0, batch=2)
    about = t("page.summary.about", time="8:44")
    assert about not in words.summary(t, request, (), timings.seconds)
    timings.keep(RunTimes(kind_of(request, 768, 512), 4.0, 2.0, 1.0, 15.0))
    text = words.summary(t, request, (), timings.seconds)
    assert text.startswith("2 × (") and text.endswith(about)
    assert about not in words.summary(t, request, (Problem("crf", "out_of_range"),), timings.seconds)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_files_are_named(language, tower):
    t = Translator(language)
    kept = {"keep_section_videos": True, "section_stills": True, "save_frames": "all", "save_latents": True}
    text = words.files(t, MODES["reverse"](image=tower, prompt="x", seconds=5.0, **kept), ())
    for kind, count in (
        ("film", 1),
        ("start", 1),
        ("section_videos", 3),
        ("section_stills", 4),
        ("frames", 145),
        ("latents", 1),
    ):
        assert t(f"page.files.{kind}", count=count) in text
    plain = words.files(t, MODES["single"](image=tower, prompt="x"), ())
    assert t("page.files.picture") in plain and t("page.files.latents", count=1) not in plain


def test_problems_stand_at_their_fields():
    """All of a field's together, without its name; what is merely still empty is no mistake yet."""
    t = Translator("en")
    found = words.problems_by_field(
        t,
        (
            Problem("image", "picture_needed"),
            Problem("keyframes/3", "picture_missing", {"file": "/home/me/a.png"}),
            Problem("seed", "wrong_type", {"value": "many"}),
            Problem("", "models_missing", {"folder": "x"}),
        ),
    )
    assert set(found) == {"keyframes/3", "seed"}
    assert "a.png" in found["keyframes/3"] and "/home/me" not in found["keyframes/3"]
    assert not found["seed"].startswith(t("page.field.seed"))


def test_settings_for_reading():
    """Only fields with a value are shown, fields and choices in the page's words, and pictures without the server's folder."""
    document = {"mode": "reverse", "image": "/srv/x/cat.png", "seed": 5, "end_image": "", "loop": False, "shift": None}
    document |= {"step_cache": "none", "precision": "auto"}
    shown = dict(map(tuple, words.settings_list(Translator("en"), document)))
    precision, cache = (Translator("en")(f"page.field.{name}") for name in ("precision", "step_cache"))
    assert shown == {"Mode": "Standard", "Start picture": "cat.png", "Seed": "5", cache: "Off", precision: "Automatic"}
    assert json.loads(dict(map(tuple, words.settings_list(Translator("en"), {"keyframes": {"1": "a"}})))["Keyframe"]) == {
        "1": "a"
    }


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_choice_is_shown_as_it_is_called(language):
    """ "Miniature, for trying out; sizes {smallest} to {largest}" stood there, and 9.0 for a section of one second."""
    t = Translator(language)
    for kind in MODES.values():
        for name, field in kinds_of(kind).items():
            for choice in field.choices if isinstance(field, Choice) else ():
                for _, text in words.settings_list(t, {name: choice}):
                    assert "{" not in text
    for name, value, word in (("window", 9.0, "window.long"), ("window", 4.5, "window.short"), ("model", "miniature", "")):
        ((label, text),) = words.settings_list(t, {name: value})
        assert (label, text) == (t(f"page.field.{name}"), t(f"page.{word or 'model.miniature'}"))


@pytest.mark.parametrize("fields", [("image",), ("image", "end_image")])
def test_a_click_that_means_no_picture_leaves_the_pictures(fields):
    """A click on "Open folder" leaves the pictures as they are; on the F1 page, which has one such field, it would have
    emptied it."""
    panel = result_panel.ResultPanel.__new__(result_panel.ResultPanel)
    panel.uses = {name: gr.State() for name in fields}
    panel.context = SimpleNamespace(jobs=SimpleNamespace(current=lambda: None))
    assert panel.use_as_input(_event("folder")) == dict.fromkeys(panel.uses.values(), gr.skip())
