"""The pages as a user has them: in a browser, over a real server, with a worker that needs no model."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from eichi_utils.problems import Problem
from eichi_utils.user_data.presets import ENTRIES, PromptPresets
from eichi_utils.user_data.settings import JsonFile
from locales import Translator
from webui.panels.start_panel import StartPanel

pytestmark = pytest.mark.browser

EN = Translator("en")
PROMPT = "The girl dances gracefully."
PERCENT = "parseFloat(document.querySelector('#progress .done')?.style.width)"


def fill(page, tower: str, prompt: str = PROMPT) -> None:
    page.set_input_files("#image input[type=file]", tower)
    page.fill("#prompt textarea", prompt)
    page.wait_for_selector("#start:enabled")


def until(page, state: str) -> None:
    page.wait_for_selector(f"#progress [data-state={state}]")


def asked_by(page) -> set:
    """What the page has asked from now on, and not been answered yet."""
    asked: set = set()

    def begins(request) -> None:
        if request.method == "POST" and "/gradio_api/" in request.url:
            asked.add(request)

    page.on("request", begins)
    for ends in ("requestfinished", "requestfailed"):
        page.on(ends, lambda request: asked.discard(request))
    return asked


def settle(page, asked: set) -> None:
    """Wait until all is answered, and nothing more is asked for a second."""
    quiet = time.monotonic()
    while time.monotonic() - quiet < 1:
        page.wait_for_timeout(50)
        quiet = time.monotonic() if asked else quiet


@pytest.mark.parametrize("language,width,height", [("en", 1280, 900), ("ja", 390, 844)])
def test_from_a_picture_to_a_film(serve, open_page, tower, language, width, height):
    """Prompt and length lay below the first screen, behind the model and its examples; a phone cut off the result's line."""
    t = Translator(language)
    site = serve("reverse", language, others=True)
    page = open_page(site.url, "/", width, height)
    assert page.evaluate("document.documentElement.lang") == language
    assert page.is_disabled("#start")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    start = page.locator("#start").bounding_box()
    covered = page.locator(".eichi-start").bounding_box()["y"]
    assert start["y"] + start["height"] <= height
    for first in ("#image", "#prompt textarea", "#seconds", "#quick label >> nth=0"):
        box = page.locator(first).bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= covered, first

    fill(page, tower)
    page.locator("#quick label").nth(1).click()
    page.wait_for_function("document.querySelector('#summary').textContent.includes('73')")
    assert page.locator("#start").bounding_box()["y"] < height

    site.engine.hold.clear()
    page.click("#start")
    until(page, "running")
    # Step 13 of 25 is held: from here on nothing moves until it is let go.
    page.wait_for_function("document.querySelector('#progress .where').textContent.includes('12')")
    seen = page.evaluate(PERCENT)
    preview = page.get_attribute("#viewer .preview", "src")
    assert seen > 10 and preview.startswith("/pulse/preview/")

    page.reload()
    page.wait_for_function(f"{PERCENT} === {seen}")
    page.wait_for_function(f"document.querySelector('#prompt textarea').value === {PROMPT!r}")
    page.wait_for_selector("#image img")
    assert page.get_attribute("#viewer .preview", "src") == preview
    assert page.input_value("#seed textarea, #seed input") == ""
    assert page.input_value("#seconds input[type=number]") == "2"
    assert page.locator("#quick label.selected").inner_text() == t("page.seconds", seconds=2)

    site.engine.hold.set()
    until(page, "finished")
    page.wait_for_function("document.querySelector('#viewer video').readyState >= 2")
    link = page.locator("#viewer .download")
    assert link.inner_text() == t("page.viewer.download")
    answer = page.request.get(site.url + link.get_attribute("href"))
    assert answer.status == 200 and answer.headers["content-type"] == "video/mp4"
    assert page.locator("#viewer .preview").is_hidden()
    page.wait_for_function("document.querySelector('#viewer .facts').innerText")
    facts = page.locator("#viewer .facts").bounding_box()
    assert facts["x"] + facts["width"] <= width
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Film, progress and Start stay in view wherever the page is scrolled to.
    page.mouse.wheel(0, 2000)
    for name in ("#viewer", "#start"):
        box = page.locator(name).bounding_box()
        assert box["y"] >= 0 and box["y"] < height


def test_stops_queue_and_a_second_tab(serve, open_page, tower):
    site = serve("reverse", "en", others=True)
    page = open_page(site.url)
    fill(page, tower)
    site.engine.hold.clear()
    page.click("#start")
    page.wait_for_selector("#stop-now:enabled")
    fill(page, tower, "She bows.")
    page.click("#start")
    page.wait_for_function("document.querySelector('#queue .title').textContent === 'Jobs waiting: 1'")
    other = open_page(site.url, "/f1/")
    until(other, "running")
    assert "Standard" in other.inner_text("#progress .mode")

    # One step up at a time: a stop that is asked for can be made more urgent, not taken back.
    other.click("#stop-film")
    page.wait_for_selector("#stop-film:disabled")
    page.wait_for_function("document.querySelector('#queue .title').hidden")
    page.click("#stop-now")
    page.wait_for_selector("#stop-now:disabled")
    site.engine.hold.set()
    until(page, "stopped")
    until(other, "stopped")
    assert [job.view.state for job in site.jobs.all()] == ["stopped", "stopped"]


def test_a_double_click_on_start(serve, open_page, tower):
    """It used to make two films."""
    site = serve("reverse", "en")
    page = open_page(site.url)
    fill(page, tower)
    page.dblclick("#start")
    until(page, "finished")
    assert len(site.jobs.all()) == 1


def test_the_film_grows_without_flicker_and_the_bar_never_falls(serve, open_page, tower):
    site = serve("forward", "en")
    # Slow enough for a busy browser to see the bar move several times.
    site.engine.step_seconds = 0.12
    page = open_page(site.url)
    fill(page, tower)
    page.locator("#quick label").nth(2).click()
    page.evaluate(
        """() => {
            window.widths = []; window.films = [];
            const done = document.querySelector('#progress .done'), video = document.querySelector('#viewer video');
            new MutationObserver(() => widths.push(parseFloat(done.style.width))).observe(done, {attributes: true});
            new MutationObserver(() => films.push(video.getAttribute('src')))
                .observe(video, {attributeFilter: ['src'], attributes: true});
        }"""
    )
    page.click("#start")
    until(page, "finished")
    widths, films = page.evaluate("[widths, films]")
    assert len(set(widths)) > 4 and widths == sorted(widths) and widths[-1] == 100
    assert len(films) == len(set(films)) == 2
    assert page.locator("#viewer video").is_visible()


def test_a_late_answer_to_an_old_change_does_not_stay(serve, open_page, tower, monkeypatch):
    """The look that follows an answer was skipped while one at older values was under way: Start stayed closed."""
    bad, good = [], []
    waits, let_go = threading.Event(), threading.Event()
    real = StartPanel.on_change

    def look(panel, values):
        answer = real(panel, values)
        seed = values[panel.form.entries["seed"].components[0]]
        if seed == "many":
            bad.append(seed)
            if len(bad) == 2:
                waits.set()
                assert let_go.wait(20)
        elif seed == "42":
            good.append(seed)
        return answer

    monkeypatch.setattr(StartPanel, "on_change", look)
    page = open_page(serve("reverse", "en").url)
    asked = asked_by(page)
    fill(page, tower)
    # Where a look at what was there before is under way, the one that follows it is the first to see this change, and the
    # change's own look would be the one that is held.
    settle(page, asked)
    page.fill("#seed textarea, #seed input", "many")
    assert waits.wait(20)
    page.fill("#seed textarea, #seed input", "42")
    page.wait_for_selector("#start:enabled")
    let_go.set()
    deadline = time.monotonic() + 20
    while len(good) < 2 and time.monotonic() < deadline:
        page.wait_for_timeout(50)
    assert len(good) >= 2
    page.wait_for_selector("#problems li", state="detached")
    page.wait_for_selector("#start:enabled")


def test_problems_are_told_in_words_and_nothing_starts(serve, open_page, tower, tmp_path):
    """Enter in an emptied box of names chose the list's first one, which was then overwritten; a part of a name did so too."""
    site = serve("reverse", "en")
    # While the server runs.
    prompts = PromptPresets(JsonFile(tmp_path / "presets" / "prompt_presets.json", (ENTRIES,)))
    prompts.save("dance", "She dances.")
    (tmp_path / "broken.png").write_bytes(Path(tower).read_bytes()[:3000])
    Image.new("RGB", (64, 64), "red").save(tmp_path / "end.png")
    page = open_page(site.url)
    fill(page, tower)
    page.click("#prompts .label-wrap")
    for key in ("ArrowDown", "Enter"):
        page.press("#prompts-name input", key)
    page.wait_for_function("document.querySelector('#prompts-name input').value === 'dance'")
    for typed, said in (("", EN("problem.preset_name_needed")), ("dan", EN("page.saved.new", name="dan"))):
        page.fill("#prompts-name input", typed)
        page.press("#prompts-name input", "Enter")
        page.click("#prompts-save")
        page.wait_for_function(f"document.querySelector('#prompts-outcome').innerText.includes({said!r})")
    assert [(kept.name, kept.prompt) for kept in prompts.read()[0]] == [("dan", PROMPT), ("dance", "She dances.")]
    page.fill("#seed textarea, #seed input", "many")
    page.wait_for_selector("#problems li.wrong")
    assert page.inner_text("#problems li.wrong").startswith("Seed: ")
    assert page.is_disabled("#start")
    # Left empty, the length was made 0.1 s by gradio.
    page.fill("#seconds input[type=number]", "")
    page.keyboard.press("Tab")
    page.wait_for_function(f"document.querySelector('#seconds > .eichi-wrong')?.innerText === {EN('problem.value_needed')!r}")
    assert page.input_value("#seconds input[type=number]") == "" and page.is_disabled("#start")
    page.fill("#seconds input[type=number]", "500")
    page.wait_for_selector("#problems li.wrong:nth-child(2)")
    # Whatever comes first, leaving the box or the choice: the length is never lost.
    page.locator("#quick label").nth(0).click()
    page.wait_for_selector("#problems li.wrong:nth-child(2)", state="detached")
    assert page.input_value("#seconds input[type=number]") in ("1", "120")
    page.fill("#seed textarea, #seed input", "42")
    page.wait_for_selector("#start:enabled")
    assert page.locator("#end_strength").count() == 0
    page.set_input_files("#end_image input[type=file]", tmp_path / "end.png")
    page.wait_for_selector("#end_strength")
    site.engine.problem = Problem("", "models_missing", {"folder": "/nowhere"})
    page.click("#start")
    until(page, "failed")
    assert "/nowhere" in page.inner_text("#progress .problems")
    assert site.engine.seen[0].seed == 42 and site.engine.seen[0].end_image


def test_one_frame_with_references(serve, open_page, tower):
    site = serve("single", "en")
    page = open_page(site.url)
    fill(page, tower)
    page.click("#references button")
    assert page.locator("#reference-1").count() == 0
    page.set_input_files("#reference-0 input[type=file]", tower)
    page.set_input_files("#reference-1 input[type=file]", tower)
    page.wait_for_selector("#reference-2")
    page.fill("#target_index input, #target_index textarea", "6")
    page.click("#start")
    until(page, "finished")
    page.wait_for_function("document.querySelector('#viewer .picture').naturalWidth > 0")
    assert page.get_attribute("#viewer .download", "download").endswith(".png")
    (request,) = site.engine.seen
    assert [control.index for control in request.controls] == [10, 10] and request.target_index == 6


def test_waiting_jobs_and_going_on_from_a_film(serve, open_page, tower):
    language, width = "ja", 390
    t = Translator(language)
    site = serve("reverse", language)
    page = open_page(site.url, "/", width, 900)
    fill(page, tower)
    site.engine.hold.clear()
    page.click("#start")
    page.wait_for_selector("#stop-now:enabled")
    names = "[...document.querySelectorAll('#queue .name')].map(name => name.innerText).join()"
    for prompt in ("one", "two", "three"):
        page.fill("#prompt textarea", prompt)
        page.wait_for_selector("#start:enabled")
        page.click("#start")
        page.wait_for_function(f"{names}.endsWith('{prompt}')")
    assert "1.2" in page.inner_text("#queue .facts >> nth=0")
    assert page.locator("#queue .up").first.is_disabled() and page.locator("#queue .down").last.is_disabled()
    page.locator("#queue .up").nth(2).click()
    page.wait_for_function(f"{names} === 'one,three,two'")
    page.locator("#queue .remove").nth(0).click()
    page.wait_for_function(f"{names} === 'three,two'")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    site.engine.hold.set()
    until(page, "finished")
    page.wait_for_function("document.querySelector('#queue .title').hidden")
    page.wait_for_function("document.querySelector('#viewer .facts').innerText")
    assert [job.request.prompt for job in site.jobs.all() if job.view.state == "finished"] == [PROMPT, "three", "two"]

    # The film's last frame becomes the next film's start, or its end.
    button = page.locator("#viewer .use[data-field=end_image]")
    assert button.inner_text() == t("page.viewer.last_frame_as_end_image")
    for field in ("end_image", "image"):
        page.locator(f"#viewer .use[data-field={field}]").click()
        page.wait_for_function(f"document.querySelector('#{field} img')?.src.includes('_last.png')")
        page.wait_for_function(f"document.querySelector('#{field} img').naturalWidth === 96")
