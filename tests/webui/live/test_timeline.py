"""Test the strip of sections: order, times, what a section inherits, and the cell that is edited."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Locator, Request, Route, expect

from eichi_utils.files.picture_files import FORMAT_NAMES
from eichi_utils.requests.modes import MODES
from locales import Translator
from tests.webui.browsing import asks, can_start, cannot_start, eventually, fill, fits, holds, reload, stored, until
from tests.webui.forms.test_form import page as page
from webui.live import timeline

EN = Translator("en")
COPY_A_PICTURE = """async () => {
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = 64;
  canvas.getContext('2d').fillRect(0, 0, 64, 64);
  const picture = await new Promise(done => canvas.toBlob(done, 'image/png'));
  await navigator.clipboard.write([new ClipboardItem({ 'image/png': picture })]); }"""
DROP_A_TEXT = """place => {
  const files = new DataTransfer();
  files.items.add(new File(['no picture'], 'words.txt', { type: 'text/plain' }));
  const drop = new DragEvent('drop', { bubbles: true, cancelable: true, dataTransfer: files });
  document.querySelector(place).dispatchEvent(drop); }"""
CELLS = "[...document.querySelectorAll('#timeline button')].map(cell => parseInt(cell.dataset.section))"
OWN = ".picture:not(.inherited) img"


def opens(request: Request) -> bool:
    """Return whether a request asks for the content of a section that was clicked."""
    return asks(request) and "section" in (request.post_data_json["event_data"] or {})


def cells(mode: str, **fields) -> list[dict]:
    return timeline.strip(MODES[mode](**fields), EN, lambda path: f"at/{path}")["cells"]


def test_sections_are_shown_as_they_are_played():
    """Numbers are those of files: the standard mode's section 0 is the end."""
    reverse, forward = cells("reverse", seconds=5), cells("forward", seconds=5)
    assert [cell["number"] for cell in reverse] == [3, 2, 1, 0]
    assert [cell["number"] for cell in forward] == [0, 1, 2, 3]
    assert [cell["time"] for cell in reverse] == ["0.0–1.2 s", "1.2–2.4 s", "2.4–3.6 s", "3.6–4.8 s"]
    forward = cells("forward", seconds=2, window=4.5)
    assert [cell["time"] for cell in forward] == ["0.0–0.7 s", "0.7–1.3 s", "1.3–2.0 s"]
    assert all("picture" not in cell for cell in forward)


def test_a_section_shows_what_it_inherits():
    shown = cells(
        "reverse", seconds=5, image="start.png", keyframes={2: "two.png", 0: "zero.png"}, section_prompts={1: " bows "}
    )
    by = {cell["number"]: cell for cell in shown}
    assert (by[3]["picture"], by[3]["note"], by[3]["inherited"]) == ("at/start.png", "start picture", True)
    assert (by[2]["picture"], by[2]["note"], by[2]["inherited"]) == ("at/two.png", "", False)
    assert (by[1]["picture"], by[1]["note"], by[1]["inherited"]) == ("at/two.png", "as section 2", True)
    assert by[0]["picture"] == "at/zero.png"
    assert (by[1]["prompt"], by[1]["own"]) == ("bows", True) and (by[0]["prompt"], by[0]["own"]) == ("common prompt", False)
    assert [by[number]["tone"] for number in range(4)] == ["even", "odd", "", ""]


def test_what_a_shorter_film_has_no_section_for_stays_in_reach():
    shown = cells("reverse", seconds=1, keyframes={3: "a.png"}, section_prompts={5: "x"})
    assert [(cell["number"], cell["gone"]) for cell in shown] == [(5, True), (3, True), (0, False)]
    assert shown[0]["time"] == "not in this film"


@pytest.mark.parametrize(
    ("common", "mode", "result"),
    [
        ("A girl.", "replace", "She bows."),
        ("A girl.", "extend", "A girl. She bows."),
        ("A girl", "extend", "A girl, She bows."),
        ("少女が踊る。", "extend", "少女が踊る。 She bows."),
        (" ", "extend", "She bows."),
    ],
)
def test_how_a_sections_prompt_meets_the_common_one(common: str, mode: str, result: str):
    for kind in ("reverse", "forward"):
        request = MODES[kind](seconds=3, prompt=common, section_prompts={1: "She bows. "}, section_prompt_mode=mode)
        assert [section.prompt for section in request.plan().sections] == [common, result]


def test_a_loop_ends_with_its_start_and_keeps_the_final_frame(tower: str):
    """The existing program's loop mode cleared the pictures that were there."""
    request = MODES["reverse"](image="start.png", end_image="end.png", loop=True, end_strength=0.5)
    plan = request.plan()
    assert plan.opening.source == "end" and plan.opening.scale == 0.5 and plan.pictures["end"] == "start.png"
    assert request.idle() == ("end_image",) and request.end_image == "end.png"
    assert MODES["reverse"](image="start.png", end_strength=0.5).idle() == ("end_strength",)


def test_a_browser_cannot_name_any_file(page, tower: str, tmp_path: Path):
    """A browser cannot name any file as a keyframe: they come as text, and the pictures of a film's request are served to
    browsers."""
    built = page("reverse")
    (box,) = built.form.entries["keyframes"].components
    outside = tmp_path.parent / "secret.jpg"
    shutil.copy(tower, outside)
    values = built.values(image=tower, prompt="x", seconds=3)
    for path in (str(outside), f"{tmp_path}/uploads/../../secret.jpg", "", 7, None, {}):
        request, problems = built.form.read(values | {box: json.dumps({"1": path})})
        assert request is None or request.keyframes.get(1, "") == ""
        assert {problem.field.split("/")[0] for problem in problems} == {"keyframes"}, path
        built.start.submit(values | {box: json.dumps({"1": path})})
    for text in ("[1]", "{", '"x"', '{"-1": "a"}', '{"x": "a"}'):
        _, problems = built.form.read(values | {box: text})
        assert problems, text
    assert built.context.jobs.all() == ()
    # What the program itself puts into the form is published first.
    request, problems = built.form.read(values | built.form.write(MODES["reverse"](keyframes={1: str(outside)}, seconds=3)))
    assert [p.field for p in problems] == ["image", "prompt"] and Path(
        request.keyframes[1]
    ).read_bytes() == outside.read_bytes()


@pytest.mark.browser
def test_pictures_and_prompts_of_sections(serve, open_page, tower, tmp_path):
    """Set on two sections, out as a ZIP and in again, carried into the film's metadata, there again after reloads.

    A picture whose upload was still running when another cell was clicked came into that cell, or was lost. A text file on a
    picture's place took the picture away, or was refused in English at the window's edge. Pasting took it away where the
    clipboard held no picture or could not be read.
    """
    t, site, width = EN, serve("reverse", "en"), 1280
    colours = {1: "red", 2: "blue"}
    for section, colour in colours.items():
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{section}.png")
    page = open_page(site.url)
    fill(page, tower, "She dances.")
    image, shown = page.locator("#image img"), page.locator("#section-picture img")

    def cell(section: int) -> Locator:
        return page.locator(f"#timeline [data-section='{section}']")

    def strip_is(*sections: int) -> None:
        eventually(page, lambda: page.evaluate(CELLS), list(sections))

    def choose(section: int) -> None:
        cell(section).click()
        holds(page, "#section-number textarea", str(section))

    def keyframes() -> dict:
        return stored(page, "#keyframes-json")

    def refused(at: str, sentence: str) -> None:
        expect(page.locator(f"{at} > .eichi-wrong")).to_have_text(sentence)

    def put(file: str) -> None:
        page.set_input_files("#section-picture input[type=file]", tmp_path / file)

    held: list[Route] = []

    def put_and_hold(file: str) -> None:
        page.route("**/upload?*", lambda route: held.append(route), times=1)
        put(file)
        eventually(page, lambda: len(held), 1)

    def bottom(at: str) -> float:
        box = page.locator(at).bounding_box()
        return box["y"] + box["height"]

    page.locator("#quick label").nth(3).click()
    strip_is(2, 1, 0)
    (tmp_path / "words.txt").write_text("no picture")
    said = t("problem.picture_unknown_format", file="words.txt", formats=FORMAT_NAMES)
    expect(image).to_be_visible()
    page.evaluate(DROP_A_TEXT, "#image img")
    refused("#image", said)
    # A place's height hides what hangs over.
    eventually(page, lambda: bottom("#image > .eichi-wrong") <= bottom("#image"))
    expect(image).to_be_visible()
    expect(page.locator(".toast-body")).to_have_count(0)
    for section in colours:
        choose(section)
        page.fill("#section-prompt textarea", f"She turns {section}.")
        # The answer to what was typed comes while the button is down on a cell, which it replaced: the click was lost.
        cell(section).hover()
        page.mouse.down()
        expect(cell(section)).to_contain_text(f"{section}.")
        with page.expect_response(lambda answer: opens(answer.request)):
            page.mouse.up()
        holds(page, "#section-number textarea", str(section))
        put("words.txt")
        refused("#section-picture", said)
        put_and_hold(f"{section}.png")
        choose(0)
        held.pop().continue_()
        eventually(page, lambda: sorted(keyframes()), [str(number) for number in range(1, section + 1)])
        expect(shown).to_have_count(0)
        expect(page.locator("#section-picture .eichi-wrong")).to_have_count(0)
        expect(cell(section).locator(OWN)).to_be_visible()
    choose(1)
    # Clicked once more while its own picture is on the way, it stood there with the one before.
    opening: list[Route] = []
    Image.new("RGB", (64, 65), colours[1]).save(tmp_path / "late.png")
    put_and_hold("late.png")

    def hold_opening(route: Route) -> None:
        if opens(route.request):
            opening.append(route)
        else:
            route.continue_()

    page.route("**/gradio_api/run/**", hold_opening)
    cell(1).click()
    eventually(page, lambda: len(opening), 1)
    before = keyframes()["1"]
    held.pop().continue_()
    eventually(page, lambda: keyframes()["1"] != before)
    opening[0].continue_()
    holds(page, "#section-number textarea", "1")
    expect(shown).to_have_attribute("src", re.compile(r"late\.png$"))
    page.unroute("**/gradio_api/run/**")
    holds(page, "#section-prompt textarea", "She turns 1.")
    fits(page, width)
    # The box with all pictures' paths showed from the second opened section on, and emptying it deleted them.
    expect(page.locator("#keyframes-json")).to_be_hidden()
    eventually(page, lambda: cell(0).locator("img").evaluate("picture => picture.naturalWidth > 0"))

    # Pasted, for the final frame; then everything goes through a ZIP to a page that knows nothing of it.
    def paste(at: str) -> None:
        page.locator(at).get_by_label("Paste from clipboard").click()

    before = keyframes()
    paste("#image")
    refused("#image", t("page.paste.refused"))
    expect(image).to_be_visible()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate("navigator.clipboard.writeText('no picture')")
    for place in ("#image", "#section-picture"):
        paste(place)
        refused(place, t("page.paste.no_picture"))
        expect(page.locator(f"{place} img")).to_be_visible()
    assert keyframes() == before
    page.evaluate(COPY_A_PICTURE)
    paste("#end_image")
    expect(page.locator("#end_image img")).to_be_visible()
    expect(page.locator("#end_strength")).to_be_visible()
    can_start(page)
    page.locator("#exchange .label-wrap").click()
    with page.expect_download() as download:
        page.click("#zip-export")
    download.value.save_as(tmp_path / "film.zip")
    reload(page)
    strip_is(0)
    page.locator("#exchange .label-wrap").click()
    page.set_input_files("#zip-upload input[type=file]", str(tmp_path / "film.zip"))
    expect(page.locator("#zip-outcome button[data-action=undo]")).to_be_visible()
    strip_is(2, 1, 0)
    for section in colours:
        expect(cell(section).locator(OWN)).to_be_visible()
    for field in ("image", "end_image"):
        expect(page.locator(f"#{field} img")).to_be_visible()
    holds(page, "#prompt textarea", "She dances.")
    fits(page, width)

    can_start(page)
    site.engine.hold.clear()
    page.click("#start")
    expect(page.locator("#stop-section")).to_be_enabled()
    reload(page)
    page.click("#stop-section")
    expect(page.locator("#stop-section")).to_be_disabled()
    site.engine.hold.set()
    until(page, "stopped")
    # The bar hears of the end at once, the viewer with the look that follows.
    link = page.locator("#viewer .download[href]").get_attribute("href")
    assert page.request.get(site.url + link).headers["content-type"] == "video/mp4"
    (job,) = site.jobs.all()
    assert len(job.view.files) == 1
    assert job.request.section_prompts == {1: "She turns 1.", 2: "She turns 2."}
    assert {key: Image.open(path).getpixel((0, 0)) for key, path in job.request.keyframes.items()} == {
        1: (255, 0, 0),
        2: (0, 0, 255),
    }

    reload(page)
    expect(cell(1).locator(OWN)).to_be_visible()
    choose(2)
    holds(page, "#section-prompt textarea", "She turns 2.")
    expect(shown).to_be_visible()

    # Copied to where nothing is, elsewhere only when asked; then the source is taken away, and the copies stay.
    page.locator("#quick label").nth(5).click()
    strip_is(6, 5, 4, 3, 2, 1, 0)
    choose(3)
    put("2.png")
    expect(cell(3).locator(OWN)).to_be_visible()
    page.click("#copy-keyframes")
    expect(page.locator(f"#timeline {OWN}")).to_have_count(4)
    copied = keyframes()
    assert copied["5"] == copied["1"] != copied["3"]
    page.check("#copy-overwrite input")
    page.click("#copy-keyframes")
    eventually(page, lambda: keyframes()["3"], copied["1"])
    choose(1)
    page.locator("#section-picture").get_by_label("Remove Image").click()
    expect(page.locator(f"#timeline {OWN}")).to_have_count(3)
    assert sorted(keyframes()) == ["2", "3", "5"]
    # A shorter film has no such sections; they are told, and stay in reach.
    page.locator("#quick label").nth(0).click()
    expect(page.locator("#timeline .gone").first).to_be_visible()
    expect(page.locator("#problems .wrong").first).to_be_visible()
    cannot_start(page)
