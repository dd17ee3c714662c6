"""Test section ZIPs: those of the existing program, our own round trip, and hostile archives."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from eichi_utils.exchange.legacy import LANGUAGES
from eichi_utils.exchange.section_zip import LATENTS, LATENTS_SUFFIX, STEMS, TEXT, export_sections, import_sections
from eichi_utils.problems import UserError
from eichi_utils.requests import modes
from eichi_utils.requests.film_request import FilmRequest
from eichi_utils.requests.kinds import Picture, kinds_of
from eichi_utils.requests.loras import Lora
from eichi_utils.requests.request import Request
from tests.eichi_utils.helpers import changed, found, latent_file, request
from tests.eichi_utils.requests.test_request import other_values
from tests.eichi_utils.zips import COMPAT, MINIMAL, packed, png
from tests.eichi_utils.zips import place as place
from tests.eichi_utils.zips import uploads as uploads

FILMS = ("reverse", "forward")

pytestmark = pytest.mark.usefixtures("place")


def edited(source: Path, target: Path, edit: Callable[[dict], Any], leave_out: tuple[str, ...] = ()) -> Path:
    """Copy a ZIP with a changed YAML."""
    with zipfile.ZipFile(source) as old:
        files = {name: old.read(name) for name in old.namelist() if name not in leave_out}
    document = yaml.safe_load(files[TEXT])
    edit(document)
    files[TEXT] = yaml.safe_dump(document, allow_unicode=True).encode()
    return packed(target, files)


def text_in(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as opened:
        return yaml.safe_load(opened.read(TEXT))


def same(made: Request, original: Request) -> bool:
    """Return whether two requests are equal in every field; pictures are compared by their content."""

    def plain(request: Request) -> dict[str, Any]:
        values = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
        for name in (*STEMS, LATENTS):
            if values.get(name):
                values[name] = Path(values[name]).read_bytes()
        # A LoRA elsewhere is known by its name, for a ZIP tells nobody's folders.
        values["loras"] = [(Path(lora.file).name, lora.strength) for lora in request.loras]
        return values | {"keyframes": {key: Path(file).read_bytes() for key, file in values.get("keyframes", {}).items()}}

    return type(made) is type(original) and plain(made) == plain(original)


@pytest.mark.parametrize(
    ("language", "window"), [("en", 9.0), ("ja", 9.0), ("ru", 4.5), ("zh-tw", 4.5)], ids=lambda value: str(value)
)
def test_the_existing_programs_files(language: str, window: float, uploads: Path) -> None:
    """The existing program's ZIPs are read in each of its languages, with LoRA strengths by slot and every word for "none"."""
    made, notes = import_sections(COMPAT / f"sections_{language}.zip", uploads=uploads)
    assert notes == ()
    assert (made.mode, made.prompt, made.seed, made.seconds) == ("reverse", "A girl dances.", 7, 2.0)
    assert (made.window, made.padding, made.size) == (window, 1.5, 512)
    assert made.section_prompts == {0: "she bows", 1: "彼女は回る"}
    assert made.loras == (Lora("a.safetensors", 0.8),)
    with zipfile.ZipFile(COMPAT / f"sections_{language}.zip") as opened:
        assert Path(made.image).read_bytes() == opened.read("sections/start.png")
        assert Path(made.end_image).read_bytes() == opened.read("sections/end.png")
        assert {key: Path(file).read_bytes() for key, file in made.keyframes.items()} == {
            number: opened.read(f"sections/00{number}.png") for number in (0, 1)
        }
    assert {Path(file).parent for file in (made.image, made.end_image, *made.keyframes.values())} == {uploads}


def test_a_file_made_by_hand(uploads: Path) -> None:
    """A ZIP made by hand is read: files at the top level, no seed, length or common prompt, and a PNG that is called .jpeg."""
    onto = request("reverse", "", seconds=4, seed=5, steps=9)
    made, notes = import_sections(COMPAT / "sections_minimal.zip", onto, uploads=uploads)
    assert notes == ()
    assert made.section_prompts == {0: "Character reaches out", 1: "Character turns toward us"}
    assert list(made.keyframes) == [1] and Path(made.image).is_file() and not made.end_image
    assert (made.seconds, made.seed, made.steps) == (4, 5, 9)
    assert made.prompt == ""


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_export_is_what_the_existing_program_wrote(language: str, uploads: Path, tmp_path: Path) -> None:
    """An export has the existing program's entries, keys and words in its page's language, beside our own key."""
    golden = COMPAT / f"sections_{language}.zip"
    made, _ = import_sections(golden, uploads=uploads)
    export_sections(made, tmp_path / "a.zip", language)
    with zipfile.ZipFile(tmp_path / "a.zip") as ours, zipfile.ZipFile(golden) as theirs:
        assert set(ours.namelist()) == set(theirs.namelist())
        assert {entry.compress_type for entry in ours.infolist()} == {zipfile.ZIP_STORED}
        assert all(ours.read(name) == theirs.read(name) for name in theirs.namelist() if name.endswith("png"))
    written, expected = text_in(tmp_path / "a.zip"), text_in(golden)
    assert written.pop("eichi")["mode"] == "reverse"
    # A slot without a LoRA has no strength here.
    assert expected["lora_settings"]["scales"] == "0.8,0.5,0.8"
    expected["lora_settings"]["scales"] = "0.8,0.8,0.8"
    if made.window == 4.5:
        # Its page divides by another number than its worker; here all count 3 sections of 0.6 s for 2 s.
        expected["video_settings"]["expected_sections"] = 3
        expected["section_info"].append({"section": 2, "prompt": ""})
    assert written == expected


def test_latents_travel_with_the_film(uploads: Path, tmp_path: Path) -> None:
    """A ZIP named the browser's temporary copy. On another computer, or after a restart, the film came without what was to be
    appended, and nobody was told."""
    latents = Path(latent_file(tmp_path / "earlier.safetensors"))
    original = request("forward", "", append_latents=str(latents), append_trim_start=2, join_latents=4)
    export_sections(original, tmp_path / "a.zip")
    data = latents.read_bytes()
    latents.unlink()
    made, notes = import_sections(tmp_path / "a.zip", uploads=uploads)
    assert notes == () and Path(made.append_latents).parent == uploads and Path(made.append_latents).read_bytes() == data
    assert (made.append_trim_start, made.join_latents) == (2, 4)
    with pytest.raises(UserError) as caught:
        export_sections(original, tmp_path / "b.zip")
    assert found(caught.value.problems) == {(LATENTS, "latents_missing")} and not (tmp_path / "b.zip").exists()


def test_latents_that_a_zip_lacks_are_told(uploads: Path, tmp_path: Path) -> None:
    """A path on this computer that somebody wrote into a ZIP is not followed either."""
    latents = latent_file(tmp_path / "earlier.safetensors")
    export_sections(request("forward", "", append_latents=latents), tmp_path / "a.zip")
    entry = (f"sections/append{LATENTS_SUFFIX}",)
    without = edited(tmp_path / "a.zip", tmp_path / "b.zip", lambda document: None, entry)
    named = edited(tmp_path / "a.zip", tmp_path / "c.zip", lambda it: it["eichi"].update(append_latents=latents), entry)
    for path, name in ((without, "append.safetensors"), (named, "earlier.safetensors")):
        made, notes = import_sections(path, uploads=uploads)
        assert made.append_latents == "" and next(note.key for note in notes) == "zip_latents_missing"
        assert notes[0].values == {"file": name}


def test_a_file_of_latents_that_is_none(uploads: Path, tmp_path: Path) -> None:
    export_sections(request("forward", "", append_latents=latent_file(tmp_path / "earlier.safetensors")), tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as old:
        files = {name: old.read(name) for name in old.namelist()}
    files["sections/append.safetensors"] = files["sections/append.safetensors"][:200]
    with pytest.raises(UserError):
        import_sections(packed(tmp_path / "b.zip", files), uploads=uploads)
    assert not uploads.exists() or not list(uploads.iterdir())


@pytest.mark.parametrize("mode", FILMS)
def test_every_field_comes_back(mode: str, pictures: list[str], uploads: Path, tmp_path: Path) -> None:
    """Every field comes back from a ZIP, alone and all at once, whatever was on the page; a new field that is not carried
    fails here."""
    values = {**other_values(mode, pictures), LATENTS: latent_file(tmp_path / "earlier.safetensors")}
    kind = modes.MODES[mode]
    assert {field.name for field in dataclasses.fields(kind)} == set(values)
    assert {name for name, one in kinds_of(kind).items() if isinstance(one, Picture)} <= set(STEMS)
    originals = [kind(), kind(**values), *(kind(**{name: value}) for name, value in values.items())]
    for original in originals:
        export_sections(original, tmp_path / "a.zip")
        for onto in (None, kind(), kind(**values)):
            made, notes = import_sections(tmp_path / "a.zip", onto, uploads=uploads)
            assert notes == ()
            assert same(made, original), original


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_of_any_kind_come_back(language: str, uploads: Path, tmp_path: Path) -> None:
    """Texts that YAML could read as another type, and texts whose lines it could change, come back unchanged."""
    texts = [
        "123",
        "yes",
        "null",
        "{brace}",
        "- a\n\n  b\r\nc ",
        " lead",
        "'\"\\",
        "é 猫 🐈 \u2028 \x85 \t",
        "#x: y",
        "!!python/x",
    ]
    prompts = dict(enumerate(texts * 2))
    original = request("reverse", "", prompt=" {a}: 'b'\n", negative_prompt="~", section_prompts=prompts, seconds=40)
    export_sections(original, tmp_path / "a.zip", language)
    assert import_sections(tmp_path / "a.zip", uploads=uploads)[0] == original
    document = text_in(tmp_path / "a.zip")
    assert {entry["section"]: entry["prompt"] for entry in document["section_info"] if entry["prompt"]} == prompts


@pytest.mark.parametrize("mode", FILMS)
def test_no_character_of_a_prompt_is_lost(mode: str, uploads: Path, tmp_path: Path) -> None:
    """A line break of YAML 1.1, U+0085, came back as a space or as another line break, whatever stood around it."""
    odd = ["\x85", "\u2028", "\u2029", "\ufeff", "\r", "\r\n", "\n", "\t", " ", "\x00", "\x1b", "\x7f", "\x9f", "\ufffe"]
    texts = [text for c in odd for text in (f"a{c}b", f" a {c} b ", f"x\n{c}y", f"a{c}{c}b\n", f"word {c} " * 40)]
    texts += [f"{c}lead" for c in odd] + [f"trail{c}" for c in odd]
    for at in range(0, len(texts), 20):
        prompts = dict(enumerate(texts[at : at + 20]))
        original = request(mode, "", prompt=texts[at], negative_prompt=texts[at], section_prompts=prompts, seconds=40.0)
        export_sections(original, tmp_path / "a.zip", "ja")
        made, _ = import_sections(tmp_path / "a.zip", uploads=uploads)
        assert made == original
        old = {entry["section"]: entry["prompt"] for entry in text_in(tmp_path / "a.zip")["section_info"] if entry["prompt"]}
        assert sorted(old.values()) == sorted(prompts.values())


def test_the_nearest_length_is_written_for_the_existing_program(tmp_path: Path, uploads: Path) -> None:
    """The existing program knows only its own lengths and three LoRA, so the nearest length is written; our own values come
    back exactly."""
    original = request("reverse", "", seconds=2.6, loras=tuple(Lora(f"{name}.safetensors", 0.123456789) for name in "abcd"))
    export_sections(original, tmp_path / "a.zip", "ja")
    document = text_in(tmp_path / "a.zip")
    assert document["video_settings"]["video_length"] == "3秒"
    assert document["lora_settings"]["selections"] == {
        "lora1": "a.safetensors",
        "lora2": "b.safetensors",
        "lora3": "c.safetensors",
    }
    assert import_sections(tmp_path / "a.zip", uploads=uploads)[0] == original


def test_what_was_changed_by_hand_wins(pictures: list[str], tmp_path: Path, uploads: Path) -> None:
    """The old keys are the ones that people know how to edit; what they left alone stays exact."""
    original = modes.MODES["reverse"](**other_values("reverse", pictures))
    export_sections(original, tmp_path / "a.zip")

    def edit(document: dict) -> None:
        document["SEED"] = 99
        document["section_info"][2]["prompt"] = "by hand"
        document["video_settings"]["video_length"] = "3s"
        del document["default_prompt"], document["lora_settings"]

    edited(tmp_path / "a.zip", tmp_path / "b.zip", edit, leave_out=("sections/end.png", "sections/003.png"))
    made, notes = import_sections(tmp_path / "b.zip", uploads=uploads)
    assert notes == ()
    wanted = changed(
        original,
        seed=99,
        section_prompts={**original.section_prompts, 2: "by hand"},
        seconds=3.0,
        prompt="",
        loras=(),
        end_image="",
        keyframes={1: original.keyframes[1]},
    )
    assert same(made, wanted)


def test_a_folder_packed_again_by_hand(pictures: list[str], tmp_path: Path, uploads: Path) -> None:
    """A ZIP packed again under another folder name, with files that systems add, is read; pictures are found at their new
    place."""
    original = request("reverse", pictures[0], end_image=pictures[1], keyframes={2: pictures[2]}, seconds=5)
    export_sections(original, tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as old:
        files = {f"My Film/{name}": old.read(name) for name in old.namelist()}
    clutter = {"__MACOSX/._sections.yaml": "x", "My Film/.DS_Store": "x", "My Film/Thumbs.db": "x"}
    made, notes = import_sections(packed(tmp_path / "b.zip", {**clutter, **files}), uploads=uploads)
    assert notes == ()
    assert same(made, original)


def test_names_of_entries(tmp_path: Path, uploads: Path) -> None:
    """Digits, `start` and `end` begin a name; "weekend.png" is no final frame, and the last of two counts."""
    colours = {"000_a.png": "red", "000_b.PNG": "green", "Start.png": "blue", "sub/END_1.webp": "black", "weekend.png": "white"}
    files = {name: png(colour=colour) for name, colour in colours.items()}
    files |= {"MySections.YML": MINIMAL, "film.txt": "x", "00.png": png(), "².png": png()}
    made, notes = import_sections(packed(tmp_path / "a.zip", files), uploads=uploads)
    assert Image.open(made.keyframes[0]).getpixel((0, 0)) == (0, 128, 0)
    assert Image.open(made.image).getpixel((0, 0)) == (0, 0, 255)
    assert Image.open(made.end_image).getpixel((0, 0)) == (0, 0, 0)
    assert list(made.keyframes) == [0]
    assert found(notes) == {("sections", "zip_unused")}
    assert set(notes[0].values["names"].split(", ")) == {"000_a.png", "weekend.png", "film.txt", "00.png", "².png"}


def test_replace_and_merge(pictures: list[str], tmp_path: Path, uploads: Path) -> None:
    """Replacing empties what the ZIP has not; merging adds, and the ZIP wins where both have something."""
    files = {
        "sections.yaml": "section_info: [{section: 1, prompt: new}, {section: 2, prompt: ''}]\n"
        "SEED: -1\n"
        "lora_settings: {use_lora: true, mode: x, selections: {lora1: a, lora2: b}, scales: '0.1,0.2'}\n",
        "001.png": png(),
    }
    path = packed(tmp_path / "a.zip", files)
    onto = request(
        "reverse",
        pictures[0],
        end_image=pictures[1],
        keyframes={0: pictures[2], 1: pictures[3]},
        section_prompts={1: "old", 2: "two"},
        loras=(Lora("b", 1.0), Lora("c", 0.5)),
        seconds=4,
        padding=2.0,
    )
    merged, notes = import_sections(path, onto, "merge", uploads)
    assert notes == ()
    assert merged == changed(
        onto,
        keyframes={0: pictures[2], 1: merged.keyframes[1]},
        section_prompts={1: "new", 2: "two"},
        loras=(Lora("c", 0.5), Lora("a", 0.1), Lora("b", 0.2)),
    )
    assert merged.keyframes[1] != onto.keyframes[1]
    replaced, _ = import_sections(path, onto, "replace", uploads)
    assert replaced == changed(
        onto,
        image="",
        end_image="",
        prompt="",
        seed=-1,
        keyframes={1: merged.keyframes[1]},
        section_prompts={1: "new"},
        loras=(Lora("a", 0.1), Lora("b", 0.2)),
    )


def test_sections_stay_at_their_time_in_the_other_mode(pictures: list[str], tmp_path: Path, uploads: Path) -> None:
    """ZIPs count from the film's end, the F1 mode from its start; what it has no field for is named."""
    forward = request("forward", pictures[0], section_prompts={0: "first", 3: "last"}, seconds=5, influence=101)
    assert len(forward.plan().sections) == 4
    export_sections(forward, tmp_path / "a.zip")
    prompts = {entry["section"]: entry["prompt"] for entry in text_in(tmp_path / "a.zip")["section_info"]}
    assert prompts == {0: "last", 1: "", 2: "", 3: "first"}
    made, notes = import_sections(tmp_path / "a.zip", request("reverse", ""), uploads=uploads)
    assert made.section_prompts == {0: "last", 3: "first"}
    assert found(notes) == {("influence", "field_not_here")}
    made, notes = import_sections(COMPAT / "sections_en.zip", request("forward", ""), uploads=uploads)
    assert made.section_prompts == {1: "she bows", 0: "彼女は回る"}
    assert found(notes) == {(name, "field_not_here") for name in ("end_image", "keyframes", "padding")}


@pytest.mark.parametrize("mode", FILMS)
def test_prompts_beyond_the_film_stay(mode: str, tmp_path: Path, uploads: Path) -> None:
    """Prompts of sections beyond the film are kept, because somebody may have made it shorter for a trial."""
    original = request(mode, "", section_prompts={1: "b", 4: "e", 5: "f"}, seconds=3.0)
    assert len(original.plan().sections) == 2
    export_sections(original, tmp_path / "a.zip")
    assert import_sections(tmp_path / "a.zip", uploads=uploads)[0] == original


def test_what_is_not_understood_is_named(tmp_path: Path, uploads: Path) -> None:
    """Each entry that is not understood has a note of its own, and the rest is read."""
    text = """
SEED: many
default_prompt: [a]
future: 1
section_info: [{section: -1, prompt: a}, {section: 0, prompt: 5}, text, {section: '1', prompt: good}]
lora_settings: {use_lora: true, mode: File upload, scales: 'a,b', block: x, selections: {lora4: d}}
video_settings: {video_length: long, frame_size: 2 seconds, padding_mode: 1, resolution: 1000, future: 2}
eichi: {mode: single}
"""
    made, notes = import_sections(packed(tmp_path / "a.zip", {"sections.yaml": text}), uploads=uploads)
    assert made == modes.MODES["reverse"](section_prompts={1: "good"})
    assert len(notes) == 17
    named = {note.values.get("name", note.field) for note in notes if found([note])}
    assert named == {
        "seed", "default_prompt", "future", "section_info", "lora_settings: block", "selections: lora4", "scales",
        "lora_settings: mode", "video_length", "frame_size", "video_settings: padding_mode", "size", "video_settings: future",
        "eichi",
    }  # fmt: skip


def test_our_own_key_is_not_trusted(tmp_path: Path, uploads: Path) -> None:
    """Our own key in a ZIP is not trusted: values of the wrong kind, fields of another version, pictures that are no
    entries."""
    own = "mode: reverse, steps: 0, size: x, tomorrow: 1, image: /etc/passwd, keyframes: {'0': ../a.png}"
    text = f"default_prompt: kept\neichi: {{{own}}}"
    made, notes = import_sections(packed(tmp_path / "a.zip", {"sections.yaml": text}), uploads=uploads)
    assert made == modes.MODES["reverse"](prompt="kept")
    assert found(notes) == {("steps", "out_of_range"), ("size", "wrong_type"), ("tomorrow", "key_unknown")}


def test_no_lora_and_a_lora_switched_off(tmp_path: Path, uploads: Path) -> None:
    text = "lora_settings: {use_lora: false, selections: {lora1: a}}\nsection_info:\n"
    made, notes = import_sections(
        packed(tmp_path / "a.zip", {"sections.yaml": text}), request("reverse", "", loras=(Lora("b"),)), uploads=uploads
    )
    assert (made.loras, notes) == ((), ())


def test_films_are_all_that_have_sections() -> None:
    """A fourth mode with sections must be walked above too."""
    assert {mode for mode, kind in modes.MODES.items() if issubclass(kind, FilmRequest)} == set(FILMS)
