"""Test that the page says how each job ended, and that repeated or late clicks do nothing wrong."""

from __future__ import annotations

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import gradio as gr
import pytest

from eichi_utils.files import folders, paths
from eichi_utils.jobs.events import Failed, Finished, Saved, Started, StopLevel, Stopped
from eichi_utils.jobs.snapshot import NEVER, Job
from eichi_utils.jobs.view import View
from eichi_utils.problems import Problem
from eichi_utils.requests import reverse
from eichi_utils.requests.modes import MODES
from eichi_utils.requests.reverse import ReverseRequest
from eichi_utils.user_data.settings import AppSettings, JsonFile
from locales import LANGUAGES, Translator
from tests.webui.forms.test_form import page as page
from webui.forms import words
from webui.forms.damaged_files import DamagedFiles
from webui.live import history
from webui.live.history import history_of
from webui.live.polling import poll_answer
from webui.live.progress import where
from webui.panels import start_panel
from webui.panels.result_panel import ResultPanel

BEGAN = Started(at=1.0, sections=4, steps=2, frames=145, width=96, height=64, seed=1)


def film(tmp_path, section: int) -> Saved:
    path = tmp_path / f"{section}.mp4"
    path.touch()
    return Saved(at=2.0, path=str(path), kind="so_far", section=section, frames=36 * section + 37)


def view(*events, **own) -> View:
    seen = View(**own)
    for event in events:
        seen = seen.after(event)
    return seen


def job(name: str, seen: View, mode: str = "reverse") -> Job:
    request = MODES[mode](prompt=name)
    return Job(name, request, request, view=seen)


def shown(t: Translator, *jobs: Job, large: Job | None = None) -> list[dict]:
    return history_of(t, jobs, large, lambda path: {"url": path, "name": path})["jobs"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_end_stays_with_its_reason(tmp_path, language):
    """Each job's end is listed with its reason: a failed job among three said only "Finished", and a stopped film looked
    like a whole one."""
    t = Translator(language)
    gone = Problem("loras/0", "lora_missing", {"file": "ink.safetensors"})
    jobs = [
        job("whole", view(BEGAN, film(tmp_path, 3), Finished(at=3.0))),
        job("failed", view(BEGAN, film(tmp_path, 0), Failed(at=4.0, problems=(gone,)))),
        job("half", view(BEGAN, film(tmp_path, 1), Stopped(at=5.0, level=StopLevel.NOW), stopping=StopLevel.NOW)),
        job("asked", view(BEGAN, film(tmp_path, 1), Stopped(at=6.0), stopping=StopLevel.SECTION)),
        job("early", view(BEGAN, Stopped(at=7.0), stopping=StopLevel.NOW)),
        job("never", view(Stopped(at=8.0, level=StopLevel.JOB))),
        job("large", view(BEGAN, Finished(at=9.0))),
    ]
    entries = {entry["name"]: entry for entry in shown(t, *jobs, large=jobs[-1])}
    assert list(entries) == ["never", "early", "asked", "half", "failed", "whole"]
    after = t("page.ended.stopped_after", section=2, sections=4)
    assert entries["half"]["end"] == t("page.ended.by", end=after, button=t("page.stop.now"))
    assert entries["asked"]["end"] == t("page.ended.by", end=after, button=t("page.stop.section"))
    assert t("page.ended.stopped_in_first") in entries["early"]["end"]
    assert entries["never"]["end"] == t("page.ended.dropped")
    assert entries["failed"]["end"] == t("page.ended.failed_after", section=1, sections=4)
    assert entries["failed"]["why"] == [words.problem_sentence(t.of("reverse"), gone)]
    assert entries["whole"]["end"] == t("page.state.finished") and entries["whole"]["why"] == []
    # Told apart without colour, and what there is of each can be opened.
    assert len({entry["mark"] for entry in entries.values()}) == 3
    assert {name for name, entry in entries.items() if entry["file"]} == {"whole", "failed", "half", "asked"}
    # The one that is shown large says the same.
    assert where(t, jobs[2].view) == entries["half"]["end"]


def test_a_picture_has_no_sections_to_stop_after(tmp_path):
    t = Translator("en").of("single")
    one = dataclasses.replace(BEGAN, sections=1)
    (entry,) = shown(t, job("early", view(one, Stopped(at=2.0), stopping=StopLevel.NOW), "single"))
    assert entry["end"].startswith(t("page.ended.stopped_before"))


def test_many_later_jobs_do_not_push_a_failure_out(tmp_path):
    failed = job("failed", view(BEGAN, Failed(at=2.0, problems=(Problem("", "disk_full"),))))
    later = [job(f"job {number}", view(BEGAN, Finished(at=3.0 + number))) for number in range(3 * history.MOST)]
    entries = shown(Translator("en"), failed, *later)
    assert len(entries) == history.MOST + 1 and entries[-1]["name"] == "failed"


def test_a_file_that_is_gone_is_no_link(tmp_path):
    entry = job("whole", view(BEGAN, film(tmp_path, 3), Finished(at=3.0)))
    (tmp_path / "3.mp4").unlink()
    assert shown(Translator("en"), entry)[0]["file"] is None


def test_a_tab_is_shown_the_history_when_it_is_loaded_and_when_a_job_ends(page, jobs, engine):
    """A reload and a second tab see what the first one does."""
    built = page("reverse")
    panel = next(fn.fn.__self__ for fn in built.blocks.fns.values() if getattr(fn.fn, "__name__", "") == "on_queue_click")
    assert isinstance(panel, ResultPanel)
    engine.problem = Problem("loras/0", "lora_missing", {"file": "ink.safetensors"})
    first = jobs.submit(ReverseRequest(prompt="first"))
    list(jobs.follow(first.id))
    engine.problem = None
    second = jobs.submit(ReverseRequest(prompt="second", steps=1))
    list(jobs.follow(second.id))
    seen = panel.refresh(panel.shown.value)
    assert [entry["state"] for entry in seen[panel.history]["jobs"]] == ["failed"]
    assert panel.history not in panel.refresh(seen[panel.shown])


def test_a_tab_that_was_shown_a_version_is_shown_nothing_twice(page, jobs, engine):
    """The question that is asked every half second and the answer through gradio judged by different things what is new: where
    they did not agree, a tab asked again and again, or was not told."""
    panel = next(
        fn.fn.__self__ for fn in page("reverse").blocks.fns.values() if getattr(fn.fn, "__name__", "") == "on_queue_click"
    )
    own, told = {panel.shown, panel.polling}, [NEVER]
    engine.problem = Problem("loras/0", "lora_missing", {"file": "ink.safetensors"})
    for prompt in ("first", "second"):
        list(jobs.follow(jobs.submit(ReverseRequest(prompt=prompt)).id))
        version = poll_answer(jobs, Translator("en"), "reverse")["version"]
        seen = panel.refresh(told[-1])
        assert seen[panel.shown] == seen[panel.polling] == version and seen.keys() > own | {panel.history}
        assert panel.refresh(version).keys() == own
        told.append(version)
    assert len(set(told)) == len(told)


@pytest.mark.slow
@pytest.mark.parametrize("event", [
    {"job": "gone", "action": "remove"}, {"job": "gone", "action": "up"}, {"action": "remove"}, {"job": [], "action": "down"},
    {"job": "gone", "action": "explode"}, {}, None,
])  # fmt: skip
def test_a_click_on_a_job_that_is_gone_does_nothing(page, jobs, engine, event):
    built = page("reverse")
    panel = next(fn.fn.__self__ for fn in built.blocks.fns.values() if getattr(fn.fn, "__name__", "") == "on_queue_click")
    panel.on_queue_click(gr.EventData(None, event))
    assert jobs.all() == ()


def test_two_tabs_act_on_the_same_queue(page, jobs, engine):
    """One tab may move or remove a job that the other has removed, that has just begun or has ended, and both may press
    Stop."""
    engine.hold.clear()
    built = page("reverse")
    panel = next(fn.fn.__self__ for fn in built.blocks.fns.values() if getattr(fn.fn, "__name__", "") == "on_queue_click")
    running, waiting, _last = (jobs.submit(ReverseRequest(prompt=name, steps=2)) for name in ("running", "waiting", "last"))
    while jobs.get(running.id).view.state != "running":
        time.sleep(0.01)

    def click(action, one):
        panel.on_queue_click(gr.EventData(None, {"job": one.id, "action": action}))

    for action in ("remove", "up", "down"):
        click(action, running)
    assert jobs.get(running.id).view.state == "running"
    click("remove", waiting)
    click("remove", waiting)
    click("down", waiting)
    for level in (StopLevel.NOW, StopLevel.SECTION, StopLevel.NOW, StopLevel.JOB):
        jobs.stop(level)
    engine.hold.set()
    list(jobs.follow(running.id))
    for action in ("remove", "up", "down"):
        click(action, running)
    jobs.stop(StopLevel.NOW)
    assert [one.view.state for one in jobs.all()] == ["stopped"] * 3


@pytest.mark.slow
def test_two_clicks_at_the_same_moment_make_one_job(page, jobs, tower, monkeypatch):
    """Both halves of a double click looked for an earlier job before either was submitted, because keeping a picture takes a
    while."""
    both = threading.Barrier(2, timeout=1)
    real = start_panel.keep_pictures

    def slow(*args):
        with suppress(threading.BrokenBarrierError):
            both.wait()
        return real(*args)

    monkeypatch.setattr(start_panel, "keep_pictures", slow)
    built = page("reverse")
    values = built.values(image=tower, prompt="a cat")
    with ThreadPoolExecutor(2) as clicks:
        list(clicks.map(built.start.submit, [values, values]))
    assert len(jobs.all()) == 1


def test_the_second_half_of_a_double_click_may_be_read_late(page, jobs, tower, monkeypatch):
    """The second half of a double click made a film of its own, if its form was read seconds later while the first imported
    libraries."""
    built = page("reverse")
    values = built.values(image=tower, prompt="a cat")
    built.start.submit(values)
    read, clock = built.form.read, [time.monotonic()]
    monkeypatch.setattr(start_panel.time, "monotonic", lambda: clock[0])

    def slow(*given, **settings):
        clock[0] += 3
        return read(*given, **settings)

    monkeypatch.setattr(built.form, "read", slow)
    built.start.submit(values)
    assert len(jobs.all()) == 1
    # A click of its own.
    built.start.submit(values)
    assert len(jobs.all()) == 2


def test_typing_writes_nothing_and_makes_one_plan(page, tower, monkeypatch):
    """Every key pressed wrote 4 KiB into the output folder and made the plan six times."""
    built = page("reverse")
    made, written, plan, trial = [], [], reverse.Plan, paths._try_writing
    monkeypatch.setattr(reverse, "Plan", lambda **parts: made.append(1) or plan(**parts))
    monkeypatch.setattr(paths, "_try_writing", lambda folder: written.append(folder) or trial(folder))
    values = built.values(image=tower, prompt="a cat yawns")
    built.start.on_change(values)
    # Gradio looks twice: an answer to an older change can come last.
    built.start.on_change(values)
    assert (len(made), written) == (1, [])
    built.start.submit(values)
    assert len(made) <= 3 and len(written) == 1


def test_a_folder_that_only_a_trial_refuses_is_said_at_start(page, jobs, tower, monkeypatch):
    """A full disk lets nobody write whatever the permissions say; Start can be pressed again once there is room."""
    built = page("reverse")
    full = Problem("out", "disk_full")
    monkeypatch.setattr(folders, "folder_problem", lambda folder, trial=True, field="": full if trial else None)
    values = built.values(image=tower, prompt="a cat yawns")
    assert built.start.on_change(values)[built.start.problems] == ""
    said = built.start.submit(values)
    assert words.problem_sentence(built.form.t, full) in said[built.start.problems] and jobs.all() == ()
    assert said[built.start.start]["interactive"] is True


def test_what_was_set_aside_is_told_once_whoever_found_it(tmp_path):
    """The program's start read the damaged settings first, and no page said that they were gone."""
    file = tmp_path / "app_settings.json"
    file.write_text("{broken")
    AppSettings(JsonFile(file)).choice("reverse", "log_enabled")
    told = DamagedFiles(tmp_path)
    (problem,) = told.news()
    assert problem.values["file"] == str(file) and (tmp_path / problem.values["kept"]).read_text() == "{broken"
    assert told.news() == []


def test_a_note_of_the_reading_itself_is_not_told_twice(tmp_path):
    (tmp_path / "app_settings.json").write_text("{broken")
    told = DamagedFiles(tmp_path)
    _, notes = AppSettings(JsonFile(tmp_path / "app_settings.json")).fields("reverse")
    assert told.news(notes) == list(notes) and told.news() == []


def test_what_was_set_aside_long_ago_is_old(tmp_path):
    (tmp_path / "app_settings.json.damaged-20200101_120000").touch()
    (tmp_path / "app_settings.json.damaged-by-me").touch()
    assert DamagedFiles(tmp_path).news() == []


def test_a_page_tells_of_damaged_settings_when_it_is_loaded(page, tmp_path):
    """Damaged settings are told when a page is loaded; the note lay in a closed group."""
    built = page("reverse")
    (tmp_path / "settings").mkdir(exist_ok=True)
    (tmp_path / "settings" / "app_settings.json").write_text("{broken")
    fill = next(fn.fn for fn in built.blocks.fns.values() if getattr(fn.fn, "__name__", "") == "fill")
    (line,) = fill()[built.blocks.message]["lines"]
    assert "app_settings.json.damaged-" in line
    assert built.blocks.message not in fill()
