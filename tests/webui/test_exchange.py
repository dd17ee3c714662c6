"""Test section ZIPs and metadata into the form and out of it, called as the page calls them."""

from __future__ import annotations

import json
import os
import shutil
import time
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from eichi_utils.exchange.metadata import png_info
from eichi_utils.requests.modes import MODES
from eichi_utils.requests.request import to_json
from eichi_utils.requests.single import Control
from locales import LANGUAGES, Translator
from tests.eichi_utils.zips import COMPAT, MINIMAL, packed
from tests.webui.forms.test_form import OTHER
from tests.webui.forms.test_form import page as page
from tests.webui.whole import Page, clicked, sentence
from tests.webui.whole import whole as whole
from webui.panels.sections_panel import KEPT_SECONDS, MOST_KEPT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_existing_programs_zip_fills_the_form(whole: Page, language: str):
    """The existing program's ZIP fills the form, whatever the languages of its page and of ours."""
    page = whole("reverse", language=language)
    said = page.see(
        page.zip.import_zip(page.holds | {page.zip.upload: str(COMPAT / f"sections_{language}.zip"), page.zip.how: "replace"})
    )
    request = page.request
    assert f"sections_{language}.zip" in said
    assert (request.prompt, request.seed, request.seconds, request.size) == ("A girl dances.", 7, 2.0, 512)
    assert request.section_prompts == {0: "she bows", 1: "彼女は回る"} and set(request.keyframes) == {0, 1}
    assert Path(request.image).is_file() and Path(request.end_image).is_file()
    assert page.holds[page.zip.upload] is None


def test_every_field_of_the_form_comes_back_from_its_zip(whole: Page, tower: str, tmp_path: Path):
    """Every field comes back after the form was exported, the page reloaded and the ZIP imported."""
    for mode in ("reverse", "forward"):
        first, second = whole(mode), whole(mode)
        uploads = tmp_path / "uploads"
        uploads.mkdir(exist_ok=True)
        picture = str(shutil.copy(tower, uploads / "kept.jpg"))
        own = {name: value for name, value in OTHER.items() if name in first.built.form.entries}
        own |= {name: picture for name in ("image", "end_image") if name in first.built.form.entries}
        own |= {"keyframes": {2: picture}} if mode == "reverse" else {}
        first.fill(**own)
        made = first.zip.export_zip(first.holds)[first.zip.outcome.box]["file"]
        path = made["url"].partition("file=")[2]
        second.see(second.zip.import_zip(second.holds | {second.zip.upload: path, second.zip.how: "replace"}))
        before, after = to_json(first.request), to_json(second.request)
        for name in ("image", "end_image"):
            if name in before:
                assert Path(before.pop(name)).read_bytes() == Path(after.pop(name)).read_bytes()
        if mode == "reverse":
            assert {key: Path(file).read_bytes() for key, file in before.pop("keyframes").items()} == {
                key: Path(file).read_bytes() for key, file in after.pop("keyframes").items()
            }
        assert before == after


def test_merge_adds_and_undo_takes_back(whole: Page, tower: str):
    page = whole()
    page.fill(image=tower, prompt="mine", seed=5, section_prompts={1: "old", 2: "two"}, seconds=4.0)
    before = dict(page.holds)
    page.see(page.zip.import_zip(page.holds | {page.zip.upload: str(COMPAT / "sections_minimal.zip"), page.zip.how: "merge"}))
    request = page.request
    assert (request.prompt, request.seed, request.seconds) == ("mine", 5, 4.0)
    assert request.section_prompts == {0: "Character reaches out", 1: "Character turns toward us", 2: "two"}
    page.undo(page.zip)
    assert {c: page.holds[c] for c in page.built.form.components} == {c: before[c] for c in page.built.form.components}


def test_a_form_with_a_mistake_is_undone_to_the_mistake(whole: Page):
    """An undo brings back what stood there, not what could be read of it; what the ZIP does not change, it does not touch."""
    page = whole()
    (seed,), (steps,) = page.built.form.entries["seed"].components, page.built.form.entries["steps"].components
    page.holds |= {seed: "many", steps: None}
    assert "many" in page.see(page.zip.export_zip(page.holds))
    page.see(page.zip.import_zip(page.holds | {page.zip.upload: str(COMPAT / "sections_en.zip"), page.zip.how: "replace"}))
    assert (page.holds[seed], page.holds[steps]) == ("7", None)
    page.undo(page.zip)
    assert (page.holds[seed], page.holds[steps]) == ("many", None)


def test_nobody_keeps_megabytes_to_be_undone(whole: Page):
    """A pasted text of 3.8 MB, which no film can be made with, was kept for each tab: four gigabytes of a thousand."""
    page = whole()
    zipped = {page.zip.upload: str(COMPAT / "sections_en.zip"), page.zip.how: "replace"}
    page.fill(prompt="x" * 5000)
    page.see(page.zip.import_zip(page.holds | zipped))
    page.undo(page.zip)
    assert page.request.prompt == "x" * 5000
    page.fill(prompt="x" * 3_800_000)
    updates = page.zip.import_zip(page.holds | zipped)
    assert updates[page.zip.outcome.about] is None and updates[page.zip.outcome.box]["actions"] == {}
    assert page.see(updates)


def test_clearing_the_place_for_a_zip_changes_nothing(whole: Page):
    """The existing page wiped pictures, prompts and LoRA."""
    page = whole()
    assert page.zip.import_zip(page.holds | {page.zip.upload: None, page.zip.how: "replace"}) == page.zip.outcome.same()


@pytest.mark.parametrize(
    ("files", "key"),
    [
        ({"sections.yaml": MINIMAL, "../evil.png": b"x"}, "zip_name"),
        ({"sections.yaml": MINIMAL, **{f"{n}.png": b"" for n in range(10_000)}}, "zip_entries"),
        ({"sections.yaml": "!!python/object/apply:os.system ['true']"}, "sections_damaged"),
        ({"start.png": b"x"}, "zip_without_sections"),
        ("text", "zip_damaged"),
        ("bomb", "zip_entry_size"),
    ],
    ids=["names", "entries", "tags", "no text", "no zip", "bomb"],
)
def test_a_bad_zip_is_told_beside_and_changes_nothing(whole: Page, tmp_path: Path, files: Any, key: str):
    path = tmp_path / "a.zip"
    if files == "text":
        path.write_text("text")
    elif files == "bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as written:
            written.writestr("sections.yaml", MINIMAL)
            with written.open("start.png", "w", force_zip64=True) as file:
                for _ in range(201):
                    file.write(bytes(2**20))
    else:
        packed(path, files)
    page = whole()
    updates = page.zip.import_zip(page.holds | {page.zip.upload: str(path), page.zip.how: "replace"})
    assert set(updates) == {page.zip.upload, *page.zip.outcome.outputs}
    said = page.see(updates)
    assert sentence(key) in said and str(tmp_path) not in said
    assert not (tmp_path / "uploads").exists()


def exported(page: Any) -> Path:
    url = page.zip.export_zip(page.holds)[page.zip.outcome.box]["file"]["url"]
    return Path(url.partition("file=")[2])


def test_exported_zips_do_not_pile_up(whole: Page):
    """Each export left another 19 MB. Equal exports are now one file, and the number of others is limited."""
    page = whole()
    first = exported(page)
    assert exported(page) == first, "the same, only later"
    made = [first]
    for number in range(MOST_KEPT + 2):
        page.fill(prompt=str(number))
        made.append(exported(page))
        os.utime(made[-1].parent, (time.time() - 100 + number,) * 2)
    assert len(set(made)) == MOST_KEPT + 3
    assert [path.exists() for path in made[-3:]] == [True] * 3
    assert len(list(first.parent.parent.iterdir())) == MOST_KEPT
    for path in made[-3:]:
        os.utime(path.parent, (time.time() - KEPT_SECONDS - 60,) * 2)
    last = exported(page)
    assert [path.exists() for path in (*made[-3:-1], last)] == [False, False, True]


def test_nothing_is_exported_or_imported_on_a_full_disk(whole: Page, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Exports filled it to the last byte, and then no film could be saved."""
    page = whole()
    monkeypatch.setattr(shutil, "disk_usage", lambda place: types.SimpleNamespace(free=10**9))
    for updates in (
        page.zip.export_zip(page.holds),
        page.zip.import_zip(page.holds | {page.zip.upload: "a.zip", page.zip.how: "merge"}),
    ):
        assert "2000 MB" in page.see(updates)


def png(path: Path, **chunks: str) -> str:
    info = PngInfo()
    for name, text in chunks.items():
        info.add_text(name, text)
    Image.new("RGB", (64, 64), "red").save(path, pnginfo=info)
    return str(path)


def offered(panel: Any, path: str) -> dict:
    return panel.on_upload(path).get(panel.outcome.box) or {}


def test_a_start_picture_offers_what_it_says(whole: Page, tmp_path: Path):
    """A start picture offers the settings inside it; nothing is overwritten unasked, and a picture without settings changes
    nothing."""
    page = whole()
    page.fill(prompt="mine", seed=5)
    path = png(tmp_path / "a.png", parameters="A cat.\nSeed: 0")
    assert set(offered(page.offer, path)["actions"]) == {"prompt", "seed", "everything"}
    assert "A cat." in offered(page.offer, path)["lines"][0][1]
    page.see(page.offer.on_upload(path))
    assert (page.request.prompt, page.request.seed) == ("mine", 5)
    page.see(page.offer.apply(page.holds, clicked("seed")))
    assert (page.request.prompt, page.request.seed) == ("mine", 0)
    page.see(page.offer.apply(page.holds, clicked("undo")))
    assert (page.request.prompt, page.request.seed) == ("mine", 5)
    for nothing in (png(tmp_path / "b.png"), str(tmp_path / "gone.png")):
        assert offered(page.offer, nothing) == {}
    assert set(offered(page.offer, png(tmp_path / "c.png", parameters="Only words"))["actions"]) == {"prompt"}


def test_stable_diffusions_pictures(whole: Page, tmp_path: Path):
    page = whole()
    path = png(
        tmp_path / "a.png", parameters="a cat\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, Seed: 99, Size: 8x8"
    )
    page.see(page.metadata.on_upload(path))
    page.see(page.metadata.apply(page.holds, clicked("everything")))
    assert (page.request.prompt, page.request.negative_prompt, page.request.seed) == ("a cat", "blurry", 99)


@pytest.mark.parametrize(("suffix", "coding"), [("jpg", "be"), ("webp", "le")])
def test_parameters_in_exif(whole: Page, tmp_path: Path, suffix: str, coding: str):
    """Parameters are read from EXIF, because JPEG and WebP have no text chunks."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "猫が走る\nSeed: 4".encode(f"utf-16-{coding}")
    Image.new("RGB", (64, 64)).save(tmp_path / f"a.{suffix}", exif=exif)
    page = whole()
    page.see(page.offer.on_upload(str(tmp_path / f"a.{suffix}")))
    page.see(page.offer.apply(page.holds, clicked("everything")))
    assert (page.request.prompt, page.request.seed) == ("猫が走る", 4)


def test_everything_of_our_own_picture(whole: Page, tower: str, tmp_path: Path):
    """A picture of ours gives its whole request; of the pictures named in it only those that are here, and no file that a
    stranger's picture names."""
    (tmp_path / "uploads").mkdir()
    kept = str(shutil.copy(tower, tmp_path / "uploads" / "kept.jpg"))
    secret = str(tmp_path.parent / "secret.jpg")
    Image.new("RGB", (64, 64), "green").save(secret)
    own = {"prompt": "a dog", "steps": 9, "seconds": 5.0, "section_prompts": {3: "begins"}, "size": 512, "shift": 3.0}
    made = MODES["reverse"](image=kept, end_image=secret, keyframes={1: kept, 2: secret}, **own)
    Image.new("RGB", (64, 64)).save(tmp_path / "j.png", pnginfo=png_info(made))
    page = whole()
    page.fill(end_image=tower, image=tower)
    page.see(page.metadata.on_upload(str(tmp_path / "j.png")))
    said = page.see(page.metadata.apply(page.holds, clicked("everything")))
    request = page.request
    assert {name: getattr(request, name) for name in own} == own
    assert (request.image, request.end_image, set(request.keyframes)) == (kept, tower, {1})
    assert said.count("secret.jpg was not taken over") == 2 and "Final frame" in said and "Keyframe 2" in said
    page.fill(image=tower)
    page.see(page.offer.on_upload(str(tmp_path / "j.png")))
    page.see(page.offer.apply(page.holds, clicked("everything")))
    assert page.request.image == tower, "the start picture was just chosen"
    forward = whole("forward")
    forward.see(forward.metadata.on_upload(str(tmp_path / "j.png")))
    forward.see(forward.metadata.apply(forward.holds, clicked("everything")))
    assert forward.request.section_prompts == {0: "begins"}


@pytest.mark.parametrize("source", list(MODES))
@pytest.mark.parametrize("target", list(MODES))
def test_everything_from_any_mode_to_any(whole: Page, tmp_path: Path, source: str, target: str):
    """Everything that fits is taken from any mode to any other; a one-frame picture on the F1 page gave a popup that said
    'seconds'."""
    Image.new("RGB", (64, 64)).save(tmp_path / "j.png", pnginfo=png_info(MODES[source](prompt="a dog", seed=5, steps=9)))
    page = whole(target)
    page.see(page.metadata.on_upload(str(tmp_path / "j.png")))
    page.see(page.metadata.apply(page.holds, clicked("everything")))
    assert (page.request.prompt, page.request.seed, page.request.steps) == ("a dog", 5, 9)


def test_references_beyond_the_pages_places_are_named(whole: Page, tower: str, tmp_path: Path):
    """References beyond the page's places are named; they were lost, and the page said that everything was taken."""
    (tmp_path / "uploads").mkdir()
    files = []
    for number in range(5):
        files.append(str(tmp_path / "uploads" / f"reference{number}.png"))
        Image.new("RGB", (64, 64), (40 * number, 0, 0)).save(files[-1])
    made = MODES["single"](prompt="x", controls=tuple(Control(file) for file in files))
    Image.new("RGB", (64, 64)).save(tmp_path / "j.png", pnginfo=png_info(made))
    page = whole("single")
    page.see(page.metadata.on_upload(str(tmp_path / "j.png")))
    said = page.see(page.metadata.apply(page.holds, clicked("everything")))
    assert [control.image for control in page.request.controls] == files[:3]
    assert "reference3.png was not taken over" in said and "reference4.png" in said and "reference2.png" not in said


def test_a_folder_elsewhere_is_not_taken_over(whole: Page, tmp_path: Path):
    """An output folder that a stranger's file named was put into the form, and then Start refused it."""
    document = to_json(MODES["reverse"](prompt="a dog")) | {"output_folder": "/somewhere/else/deep"}
    (tmp_path / "a.json").write_text(json.dumps(document))
    page = whole()
    page.see(page.metadata.on_upload(str(tmp_path / "a.json")))
    said = page.see(page.metadata.apply(page.holds, clicked("everything")))
    assert "/somewhere/else/deep was not taken over" in said
    assert (page.request.prompt, page.request.output_folder) == ("a dog", "")


def test_what_is_too_large_is_said_and_what_is_long_is_cut(whole: Page, tmp_path: Path):
    """A picture's text can have any length; the page shows a line of it, and names what it did not read."""
    info = PngInfo()
    info.add_text("parameters", "word " * 4000 + "\nSeed: 5")
    info.add_text("XML:com.adobe.xmp", "x" * 7_000_000, zip=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png", pnginfo=info)
    page = whole()
    said = page.see(page.offer.on_upload(str(tmp_path / "a.png")))
    assert "XML:com.adobe.xmp" in said and len(said) < 500
    page.see(page.offer.apply(page.holds, clicked("seed")))
    assert page.request.seed == 5


def test_a_film_of_another_program(whole: Page, tmp_path: Path):
    """Another program's prompts, seed and length are taken over, the length only where the mode has one."""
    document = {"prompt": "a lighthouse", "negative_prompt": "blurry", "seed": 7, "total_second_length": 4}
    (tmp_path / "a.json").write_text(json.dumps(document))
    for mode, seconds in (("reverse", 4.0), ("single", None)):
        page = whole(mode)
        page.see(page.metadata.on_upload(str(tmp_path / "a.json")))
        page.see(page.metadata.apply(page.holds, clicked("everything")))
        assert (page.request.prompt, page.request.negative_prompt, page.request.seed) == ("a lighthouse", "blurry", 7)
        assert getattr(page.request, "seconds", None) == seconds


def test_a_file_that_says_nothing_is_told(whole: Page, tmp_path: Path):
    page = whole()
    for name, key in (("a.mp4", "request_not_in_file"), ("a.json", "request_not_in_file"), ("a.png", "request_not_in_file")):
        (tmp_path / name).write_text("[1]")
        assert sentence(key) in page.see(page.metadata.on_upload(str(tmp_path / name))), name


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_file_without_settings_is_no_damaged_start_picture(whole: Page, tmp_path: Path, language: str):
    """A text file was called a damaged start picture, together with the folder where the server had put it."""
    page, t = whole(language=language), Translator(language)
    before = dict(page.holds)
    cut = Path(png(tmp_path / "cut.png", parameters="A cat.")).read_bytes()[:100]
    files = {"a.txt": b"words", "a.png": b"words", "a b.mp4": b"words", "a.json": b"{", "cut.png": cut, "a.bin": bytes(64)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        said = page.see(page.metadata.on_upload(str(tmp_path / name)))
        assert name in said and str(tmp_path) not in said, said
        assert t("page.field.image") not in said
    assert t("problem.request_not_in_file", file="a.txt") in page.see(page.metadata.on_upload(str(tmp_path / "a.txt")))
    assert {c: page.holds[c] for c in page.built.form.components} == {c: before[c] for c in page.built.form.components}


def test_a_keyframe_offers_its_sections_prompt(whole: Page, tmp_path: Path):
    """The existing page cleared the prompt of every section whose picture said nothing."""
    page = whole()
    panel = page.section
    page.holds |= {panel.section: "1", panel.prompt: "mine"}
    path = png(tmp_path / "a.png", parameters="Common.\nSeed: 1\nSection Prompt: She turns,\nslowly.\nSection Number: 4")
    page.see(panel.on_upload(path, "1"))
    assert page.holds[panel.prompt] == "mine"
    page.see(panel.apply(page.holds, clicked("prompt")))
    assert page.holds[panel.prompt] == "She turns,\nslowly."
    page.see(panel.apply(page.holds, clicked("undo")))
    assert page.holds[panel.prompt] == "mine"
    page.see(panel.on_upload(path, "1"))
    assert panel.prompt not in panel.apply(page.holds | {panel.section: "2"}, clicked("prompt"))
    assert panel.on_upload(png(tmp_path / "b.png"), "1") == panel.outcome.nothing()
