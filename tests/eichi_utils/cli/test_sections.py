"""Test `eichi sections`: a film's sections are packed and unpacked without a page."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import yaml

from eichi_utils.cli import main
from eichi_utils.exchange.legacy import label_of
from eichi_utils.exchange.metadata import mp4_tags
from eichi_utils.exchange.video import FilmWriter
from eichi_utils.requests import modes
from eichi_utils.requests.request import to_json
from locales import LANGUAGES
from tests.diffusers_helper.inputs import GOLDEN
from tests.eichi_utils.helpers import names_in, request
from tests.eichi_utils.requests.test_request import other_values

COMPAT = GOLDEN / "compat"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sections(capsys: pytest.CaptureFixture) -> Run:
    """Return a function that runs `eichi sections`: exit code, stdout, stderr."""

    def run(*words: object, language: str = "en") -> tuple[int, str, str]:
        code = main.main(["sections", *map(str, words), "--lang", language])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def film(tmp_path: Path, pictures: list[str]) -> Path:
    """Write a film whose metadata names its pictures relative to the film's folder."""
    made = request("reverse", Path(pictures[0]).name, keyframes={1: Path(pictures[1]).name}, seconds=5, prompt="猫")
    for picture in pictures[:2]:
        (tmp_path / Path(picture).name).write_bytes(Path(picture).read_bytes())
    with FilmWriter(tmp_path, "back", 30, mp4_tags(made)) as writer:
        writer.write(tmp_path / "film.mp4", numpy.zeros((3, 16, 16, 3), numpy.uint8))
    return tmp_path / "film.mp4"


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_there_and_back(mode: str, sections: Run, pictures: list[str], tmp_path: Path) -> None:
    """The request that import prints is one that render reads, equal in every field but the places of the pictures."""
    made = modes.MODES[mode](**other_values(mode, pictures))
    (tmp_path / "a.json").write_text(json.dumps(to_json(made)))
    code, out, _ = sections("export", tmp_path / "a.json", tmp_path / "a.zip")
    assert (code, out) == (0, f"{tmp_path / 'a.zip'}\n")
    code, out, err = sections("import", tmp_path / "a.zip", "--uploads", tmp_path / "uploads")
    assert (code, err) == (0, "")
    (tmp_path / "b.json").write_text(out)
    code, out, _ = sections("import", tmp_path / "a.zip", "--uploads", tmp_path / "uploads", "--json")
    document = json.loads(out)
    assert document["notes"] == [] and document["request"] == json.loads((tmp_path / "b.json").read_text())
    pictures_gone = {**document["request"], "image": made.image, "append_latents": made.append_latents}
    # The ZIP does not say where a LoRA lies either.
    pictures_gone["loras"] = [dataclasses.asdict(lora) for lora in made.loras]
    assert [lora["file"] for lora in document["request"]["loras"]] == [Path(lora.file).name for lora in made.loras]
    if mode == "reverse":
        pictures_gone |= {"end_image": made.end_image, "keyframes": to_json(made)["keyframes"]}
    assert pictures_gone == to_json(made)
    # Its LoRA and the latents to append are of other sizes than the miniature and its films.
    fitting = {**document["request"], "size": 128, "loras": [], "append_latents": ""}
    (tmp_path / "b.json").write_text(json.dumps(fitting))
    assert main.main(["render", "--request", str(tmp_path / "b.json"), "--dry-run"]) == 0


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_film_becomes_a_zip_in_the_words_of_the_language(
    language: str, film: Path, sections: Run, tmp_path: Path, pictures: list[str]
) -> None:
    """The existing program reads it where its page speaks the same."""
    code, out, _ = sections("export", film, tmp_path / "a.zip", "--json", language=language)
    assert code == 0 and json.loads(out) == {"files": [str(tmp_path / "a.zip")]}
    with zipfile.ZipFile(tmp_path / "a.zip") as made, zipfile.ZipFile(COMPAT / f"sections_{language}.zip") as golden:
        ours, theirs = (yaml.safe_load(file.read("sections/sections.yaml")) for file in (made, golden))
        assert made.read("sections/start.png") == Path(pictures[0]).read_bytes()
    assert ours["default_prompt"] == "猫" and ours.keys() - {"eichi"} == theirs.keys() - {"lora_settings"}
    assert ours["video_settings"]["frame_size"] == label_of("frame_size", 9.0, language)


def test_onto_another_request(sections: Run, film: Path, tmp_path: Path) -> None:
    """An import replaces another request's sections or is added to them; the other settings stay that request's."""
    words = ("import", COMPAT / "sections_minimal.zip", "--uploads", tmp_path / "uploads", "--json")
    merged = json.loads(sections(*words, "--merge", film)[1])["request"]
    replaced = json.loads(sections(*words, "--replace", film)[1])["request"]
    assert merged["prompt"] == "猫" and replaced["prompt"] == ""
    assert merged["seconds"] == replaced["seconds"] == 5 and merged["seed"] == 7
    assert set(merged["section_prompts"]) == {"0", "1"} and set(replaced["keyframes"]) == {"1"}
    with pytest.raises(SystemExit):
        sections(*words, "--merge", film, "--replace", film)


def test_what_is_not_understood_goes_beside_the_result(sections: Run, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("sections.yaml", "future: 1\nSEED: 5")
    code, out, err = sections("import", tmp_path / "a.zip", "--uploads", tmp_path / "uploads")
    assert code == 0 and json.loads(out)["seed"] == 5 and "future" in err
    code, out, err = sections("import", tmp_path / "a.zip", "--uploads", tmp_path / "uploads", "--json")
    (note,) = json.loads(out)["notes"]
    assert note["key"] == "legacy_unknown" and "future" in note["text"] and err == ""


def test_what_cannot_be_read_changes_nothing(sections: Run, tmp_path: Path, pictures: list[str]) -> None:
    """A file that cannot be read gives exit code 2 and a sentence, and writes no file."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("../sections.yaml", "")
    (tmp_path / "single.json").write_text(json.dumps(to_json(request("single", pictures[0]))))
    before = names_in(tmp_path)
    for words, sentence in (
        (("import", tmp_path / "a.zip", "--uploads", tmp_path / "uploads"), "outside its own folder"),
        (("import", tmp_path / "gone.zip"), "There is no file"),
        (("export", tmp_path / "gone.json", tmp_path / "b.zip"), "There is no file"),
        (("export", tmp_path / "single.json", tmp_path / "b.zip"), "no sections"),
    ):
        code, out, err = sections(*words)
        assert code == 2 and sentence in err and out == ""
        code, out, _ = sections(*words, "--json")
        assert code == 2 and json.loads(out)["problems"]
    assert names_in(tmp_path) == before
