"""Test the pages as a user has them: in a browser, over a real server, with a worker that needs no model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Request, Route, expect

from eichi_utils.problems import Problem
from eichi_utils.user_data.presets import ENTRIES, PromptPresets
from eichi_utils.user_data.settings import JsonFile
from locales import Translator
from tests.webui.browsing import (
    PROMPT,
    SECONDS,
    SEED,
    asks,
    can_start,
    cannot_start,
    eventually,
    fill,
    fits,
    holds,
    reload,
    shows,
    type_in,
    until,
)

pytestmark = pytest.mark.browser

EN = Translator("en")
SAID_OF_SECONDS = "#seconds > .eichi-wrong"
# The look that follows each answer of the look at changes: see `StartPanel.wire`.
FOLLOWING = """() => {
  const calls = window.gradio_config.dependencies, most = Math.max(...calls.map(call => call.targets.length));
  const changes = calls.find(call => call.targets.length === most);
  return calls.find(call => call.trigger_after === changes.id).id; }"""


def edges(page, place: str) -> tuple[float, float, float]:
    """Return the top, bottom and right edge of an element in the window."""
    at = page.locator(place).bounding_box()
    return at["y"], at["y"] + at["height"], at["x"] + at["width"]


def begins_in_view(page, language: str, width: int, height: int) -> None:
    """Wait until everything that a film needs stands on the first screen."""
    expect(page.locator("html")).to_have_attribute("lang", language)
    cannot_start(page)
    fits(page, width)
    eventually(page, lambda: edges(page, "#start")[1] <= height)
    for first in ("#image", "#prompt textarea", "#seconds", "#quick label >> nth=0"):
        eventually(page, lambda at=first: edges(page, at)[0] >= 0 and edges(page, at)[1] <= edges(page, ".eichi-start")[0])


def stays_in_view(page, width: int, height: int) -> None:
    """Scroll down; film, progress and Start stay in view wherever the page is scrolled to."""
    expect(page.locator("#viewer .facts")).not_to_be_empty()
    eventually(page, lambda: edges(page, "#viewer .facts")[2] <= width)
    fits(page, width)
    page.evaluate("scrollTo(0, 2000)")
    eventually(page, lambda: page.evaluate("scrollY") > 0)
    for name in ("#viewer", "#start"):
        eventually(page, lambda name=name: 0 <= edges(page, name)[0] < height)


def test_from_a_picture_to_a_film(serve, open_page, tower):
    """Prompt and length lay below the first screen, behind the model and its examples."""
    width, height, t = 1280, 900, EN
    site = serve("reverse", "en")
    page = open_page(site.url, "/", width, height)
    begins_in_view(page, "en", width, height)
    fill(page, tower)
    page.locator("#quick label").nth(1).click()
    shows(page, "#summary", "73")
    eventually(page, lambda: edges(page, "#start")[0] < height)

    site.engine.hold.clear()
    page.click("#start")
    until(page, "running")
    # Step 13 of 25 is held: from here on nothing moves until it is let go.
    shows(page, "#progress .where", "12")
    preview, bar = page.locator("#viewer .preview"), page.locator("#progress .bar")
    expect(preview).to_have_attribute("src", re.compile("^/pulse/preview/"))
    seen, address = bar.get_attribute("aria-valuenow"), preview.get_attribute("src")
    assert int(seen) > 10

    reload(page)
    expect(bar).to_have_attribute("aria-valuenow", seen)
    holds(page, "#prompt textarea", PROMPT)
    expect(page.locator("#image img")).to_be_visible()
    expect(preview).to_have_attribute("src", address)
    holds(page, SEED, "")
    holds(page, SECONDS, "2")
    expect(page.locator("#quick label.selected")).to_have_text(t("page.seconds", seconds=2))

    site.engine.hold.set()
    until(page, "finished")
    eventually(page, lambda: page.locator("#viewer video").evaluate("video => video.readyState >= 2"))
    link = page.locator("#viewer .download")
    expect(link).to_have_text(t("page.viewer.download"))
    answer = page.request.get(site.url + link.get_attribute("href"))
    assert answer.status == 200 and answer.headers["content-type"] == "video/mp4"
    expect(preview).to_be_hidden()
    stays_in_view(page, width, height)


def test_stops_queue_and_a_second_tab(serve, open_page, tower):
    site = serve("reverse", "en", others=True)
    page = open_page(site.url)
    fill(page, tower)
    site.engine.hold.clear()
    page.click("#start")
    expect(page.locator("#stop-now")).to_be_enabled()
    fill(page, tower, "She bows.")
    page.click("#start")
    expect(page.locator("#queue .title")).to_have_text("Jobs waiting: 1")
    other = open_page(site.url, "/f1/")
    until(other, "running")
    shows(other, "#progress .mode", "Standard")

    # One step up at a time: a stop that is asked for can be made more urgent, not taken back.
    other.click("#stop-film")
    expect(page.locator("#stop-film")).to_be_disabled()
    expect(page.locator("#queue .title")).to_be_hidden()
    page.click("#stop-now")
    expect(page.locator("#stop-now")).to_be_disabled()
    site.engine.hold.set()
    until(page, "stopped")
    until(other, "stopped")
    assert [job.view.state for job in site.jobs.all()] == ["stopped", "stopped"]


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


def call_of(request: Request) -> int:
    """Return the number of the function that is asked."""
    return request.post_data_json["fn_index"]


def test_a_late_answer_to_an_old_change_does_not_stay(serve, open_page, tower):
    """The look that follows an answer was skipped while one at older values was under way: Start stayed closed."""
    page = open_page(serve("reverse", "en").url)
    fill(page, tower)
    following, late = page.evaluate(FOLLOWING), []

    def hold(route: Route) -> None:
        if call_of(route.request) == following and asks(route.request, "many") and not late:
            late.append(route)
        else:
            route.continue_()

    page.route("**/gradio_api/run/**", hold)
    page.fill(SEED, "many")
    eventually(page, lambda: len(late), 1)
    page.fill(SEED, "42")
    can_start(page)
    # What the late answer says is replaced by that of one more look, which the page asks for then.
    with page.expect_response(lambda answer: asks(answer.request, "42") and call_of(answer.request) == following):
        late[0].continue_()
    expect(page.locator("#problems li")).to_have_count(0)
    can_start(page)
    page.unroute_all(behavior="wait")


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
    page.click("#prompts-name input")
    expect(page.get_by_role("option", name="dance")).to_be_visible()
    for key in ("ArrowDown", "Enter"):
        page.press("#prompts-name input", key)
    holds(page, "#prompts-name input", "dance")
    for typed, said in (("", EN("problem.preset_name_needed")), ("dan", EN("page.saved.new", name="dan"))):
        page.fill("#prompts-name input", typed)
        page.press("#prompts-name input", "Enter")
        page.click("#prompts-save")
        shows(page, "#prompts-outcome", said)
    assert [(kept.name, kept.prompt) for kept in prompts.read()[0]] == [("dan", PROMPT), ("dance", "She dances.")]
    wrong = page.locator("#problems li.wrong")
    page.fill(SEED, "many")
    expect(wrong).to_have_text([re.compile("^Seed: ")])
    cannot_start(page)
    # Left empty, the length was made 0.1 s by gradio.
    page.fill(SECONDS, "")
    page.keyboard.press("Tab")
    expect(page.locator(SAID_OF_SECONDS)).to_have_text(EN("problem.value_needed"))
    holds(page, SECONDS, "")
    cannot_start(page)
    page.fill(SECONDS, "500")
    expect(page.locator(SAID_OF_SECONDS)).to_contain_text("120")
    # Whatever comes first, leaving the box or the choice: the length is never lost.
    page.locator("#quick label").nth(0).click()
    expect(wrong).to_have_count(1)
    expect(page.locator(SECONDS)).to_have_value(re.compile("^(1|120)$"))
    page.fill(SEED, "42")
    can_start(page)
    expect(page.locator("#end_strength")).to_have_count(0)
    page.set_input_files("#end_image input[type=file]", tmp_path / "end.png")
    expect(page.locator("#end_strength")).to_be_visible()
    site.engine.problem = Problem("", "models_missing", {"folder": "/nowhere"})
    page.click("#start")
    until(page, "failed")
    shows(page, "#progress .problems", "/nowhere")
    assert site.engine.seen[0].seed == 42 and site.engine.seen[0].end_image


def test_one_frame_with_references(serve, open_page, tower):
    site = serve("single", "en")
    page = open_page(site.url)
    fill(page, tower)
    page.click("#references button")
    expect(page.locator("#reference-0")).to_be_visible()
    expect(page.locator("#reference-1")).to_have_count(0)
    for number in range(2):
        page.set_input_files(f"#reference-{number} input[type=file]", tower)
        expect(page.locator(f"#reference-{number + 1}")).to_be_visible()
    type_in(page, "#target_index :is(input, textarea)", 6)
    page.click("#start")
    until(page, "finished")
    eventually(page, lambda: page.locator("#viewer .picture").evaluate("picture => picture.naturalWidth > 0"))
    expect(page.locator("#viewer .download")).to_have_attribute("download", re.compile(r"\.png$"))
    (request,) = site.engine.seen
    assert [control.index for control in request.controls] == [10, 10] and request.target_index == 6


def test_waiting_jobs_and_going_on_from_a_film_on_a_telephone(serve, open_page, tower):
    """Waiting jobs, and going on from a film, work on a telephone, where the result's line was cut off."""
    language, width, height = "ja", 390, 844
    t = Translator(language)
    site = serve("reverse", language)
    page = open_page(site.url, "/", width, height)
    begins_in_view(page, language, width, height)
    fill(page, tower)
    site.engine.hold.clear()
    page.click("#start")
    expect(page.locator("#stop-now")).to_be_enabled()
    names, prompts = page.locator("#queue .name"), ("one", "two", "three")
    for number, prompt in enumerate(prompts, 1):
        type_in(page, "#prompt textarea", prompt)
        can_start(page)
        page.click("#start")
        expect(names).to_have_text(prompts[:number])
    shows(page, "#queue .facts", "1.2")
    expect(page.locator("#queue .up").first).to_be_disabled()
    expect(page.locator("#queue .down").last).to_be_disabled()
    page.locator("#queue .up").nth(2).click()
    expect(names).to_have_text(["one", "three", "two"])
    page.locator("#queue .remove").nth(0).click()
    expect(names).to_have_text(["three", "two"])
    fits(page, width)
    site.engine.hold.set()
    expect(page.locator("#queue .title")).to_be_hidden()
    until(page, "finished")
    eventually(page, lambda: all(job.view.ended for job in site.jobs.all()))
    stays_in_view(page, width, height)
    assert [job.request.prompt for job in site.jobs.all() if job.view.state == "finished"] == [PROMPT, "three", "two"]

    # The film's last frame becomes the next film's start, or its end.
    button = page.locator("#viewer .use[data-field=end_image]")
    expect(button).to_have_text(t("page.viewer.last_frame_as_end_image"))
    for field in ("end_image", "image"):
        page.locator(f"#viewer .use[data-field={field}]").click()
        frame = page.locator(f"#{field} img")
        expect(frame).to_have_attribute("src", re.compile("_last.png"))
        eventually(page, lambda frame=frame: frame.evaluate("frame => frame.naturalWidth"), 96)
