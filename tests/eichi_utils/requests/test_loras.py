"""Test the LoRA of a request: names, strengths, JSON, flags, and that every unusable file is named before work starts."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from eichi_utils.cli.main import main
from eichi_utils.exchange.metadata import KEY, png_info
from eichi_utils.exchange.named_files import with_paths
from eichi_utils.problems import UserError
from eichi_utils.requests import loras, modes
from eichi_utils.requests.loras import MOST_LORAS, Lora, from_flag, named, named_beside
from eichi_utils.requests.request import to_json
from tests.diffusers_helper.inputs import GOLDEN
from tests.eichi_utils.helpers import changed, found, request, say_everything

FILE = GOLDEN / "lora" / "kohya_framepack_names.safetensors"
CASES = Path(__file__).parents[2] / "cases"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Provide the user's LoRA folder with one file in a folder below it."""
    place = tmp_path / "lora"
    (place / "style").mkdir(parents=True)
    shutil.copy(FILE, place / "style" / "ink.v1.safetensors")
    monkeypatch.setattr(loras, "LORAS", place)
    return place


def problems_of(mode: str, image: str, *chosen: Lora) -> set[tuple[str, str]]:
    return found(request(mode, image, loras=chosen).check())


@pytest.mark.parametrize("mode", modes.MODES)
def test_a_file_that_is_not_there_is_a_problem_of_its_slot(mode: str, pictures: list[str], tmp_path: Path) -> None:
    """The existing programs say "not loaded" in a log and make the film without it."""
    gone = str(tmp_path / "gone.safetensors")
    assert problems_of(mode, pictures[0], Lora(str(FILE)), Lora(gone)) == {("loras/1/file", "lora_missing")}
    (problem,) = request(mode, pictures[0], loras=(Lora(gone),)).check()
    assert problem.values["file"] == gone


def test_files_that_cannot_be_used_are_told_apart(pictures: list[str], tmp_path: Path) -> None:
    """Unusable LoRA files are told apart, all at once: pickles with the way to convert them, cut-off files with both
    lengths."""
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(FILE.read_bytes()[:-1])
    for name in ("a.pt", "b.BIN", "c.txt"):
        (tmp_path / name).write_bytes(b"x")
    chosen = [Lora(str(tmp_path / name)) for name in ("cut.safetensors", "a.pt", "b.BIN", "c.txt")]
    problems = request("single", pictures[0], loras=tuple(chosen)).check()
    assert found(problems) == {
        ("loras/0/file", "lora_damaged"),
        ("loras/1/file", "lora_pickle"),
        ("loras/2/file", "lora_pickle"),
        ("loras/3/file", "lora_suffix"),
    }
    assert problems[0].values["expected"] == problems[0].values["actual"] + 1


@pytest.mark.parametrize("strength", [2.001, -2.001, 5, math.nan, math.inf, "1", None, True])
def test_strengths_that_are_none(strength: object, pictures: list[str]) -> None:
    problems = problems_of("single", pictures[0], Lora(str(FILE), strength))
    assert {field for field, _ in problems} == {"loras/0/strength"}


@pytest.mark.parametrize("strength", [-2.0, 0.0, 0.8, 2.0, 1])
def test_strengths_from_minus_two_to_two(strength: float, pictures: list[str]) -> None:
    assert problems_of("single", pictures[0], Lora(str(FILE), strength)) == set()


def test_eight_and_more_at_once(pictures: list[str]) -> None:
    """Eight LoRA and more can be used at once, the same file in several slots too: each slot is its own."""
    assert problems_of("reverse", pictures[0], *(Lora(str(FILE), 0.1 * number) for number in range(12))) == set()


@pytest.mark.parametrize(
    ("value", "fields"),
    [
        (5, {"loras"}),
        ([5], {"loras"}),
        ({"file": "x"}, {"loras"}),
        ([{}], {"loras/0/file"}),
        ([{"strength": 1}], {"loras/0/file"}),
        ([{"file": ""}], {"loras/0/file"}),
        ([{"file": 5}], {"loras/0/file"}),
        ([{"file": str(FILE), "weight": 1}], {"loras/0"}),
        ([{"file": str(FILE), "strength": "strong"}], {"loras/0/strength"}),
        ([{"file": str(FILE)}, {"file": "a\ud800\0.safetensors"}], {"loras/1/file"}),
    ],
)
def test_json_of_the_wrong_shape(value: object, fields: set[str], pictures: list[str]) -> None:
    """LoRA entries of the wrong shape give a sentence at their place, and never a crash."""
    document = {**to_json(request("single", pictures[0])), "loras": value}
    try:
        problems = modes.from_json(document).check()
    except UserError as error:
        problems = error.problems
    assert {problem.field for problem in say_everything(problems)} == fields


def test_a_whole_number_is_a_strength(pictures: list[str]) -> None:
    document = {**to_json(request("single", pictures[0])), "loras": [{"file": str(FILE), "strength": 1}]}
    again = modes.from_json(document)
    assert again.loras == (Lora(str(FILE), 1.0),) and isinstance(again.loras[0].strength, float)
    assert again.check() == ()


def test_names_below_the_folder_are_the_same_on_every_computer(folder: Path, pictures: list[str]) -> None:
    """Metadata says "style/ink.v1.safetensors", not where this computer keeps it; dots and folders are no trouble."""
    file = folder / "style" / "ink.v1.safetensors"
    assert named(file) == "style/ink.v1.safetensors"
    assert Lora(named(file)).path == file
    assert problems_of("single", pictures[0], Lora("style/ink.v1.safetensors")) == set()
    assert problems_of("single", pictures[0], Lora("style/pen.safetensors")) == {("loras/0/file", "lora_missing")}


def test_flags_name_files_here_or_in_the_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the current folder goes before one of the same name in the LoRA folder."""
    monkeypatch.chdir(tmp_path)
    assert from_flag("style/ink.v1.safetensors=0.5") == {"file": "style/ink.v1.safetensors", "strength": 0.5}
    (tmp_path / "style").mkdir()
    shutil.copy(FILE, tmp_path / "style" / "ink.v1.safetensors")
    assert from_flag("style/ink.v1.safetensors") == {"file": str(tmp_path / "style" / "ink.v1.safetensors")}
    assert from_flag("gone.safetensors=-1") == {"file": str(tmp_path / "gone.safetensors"), "strength": -1.0}
    assert from_flag("a=b.safetensors") == {"file": str(tmp_path / "a=b.safetensors")}
    assert from_flag("a=b.safetensors=2") == {"file": str(tmp_path / "a=b.safetensors"), "strength": 2.0}


def test_a_requests_file_finds_what_lies_beside_it(folder: Path, tmp_path: Path) -> None:
    """A LoRA beside the request file is found there, as its pictures are; other names are those of the LoRA folder."""
    shutil.copy(FILE, tmp_path / "mine.safetensors")
    document = {"loras": [{"file": "mine.safetensors", "strength": 1.0}, {"file": "style/ink.v1.safetensors"}, 5, {}]}
    assert named_beside(document, tmp_path)["loras"] == [
        {"file": str(tmp_path / "mine.safetensors"), "strength": 1.0},
        {"file": "style/ink.v1.safetensors"},
        5,
        {},
    ]
    assert named_beside({"loras": 5}, tmp_path) == {"loras": 5}
    assert named_beside({}, tmp_path) == {}


def test_metadata_names_file_and_strength(pictures: list[str], tmp_path: Path) -> None:
    """The metadata names file and strength, so that whoever has the picture and the LoRA can make it again."""
    it = request("single", pictures[0], loras=(Lora(str(FILE), -0.3), Lora(str(FILE), 0.8)), precision="int8")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=png_info(it))
    with Image.open(tmp_path / "a.png") as picture:
        document = json.loads(picture.info[KEY])
    assert document["loras"] == [{"file": FILE.name, "strength": -0.3}, {"file": FILE.name, "strength": 0.8}]
    assert modes.from_json(with_paths(document, [FILE.parent, Path(pictures[0]).parent])) == it


def test_a_sections_scale_is_checked_like_a_strength(pictures: list[str]) -> None:
    """A section's scale is checked at its section, multiplied by the strongest LoRA's strength; a value that is no number is
    named."""

    def problems(scales: dict, *strengths: float) -> set[tuple[str, str]]:
        loras = tuple(Lora(str(FILE), strength) for strength in strengths)
        return found(request("reverse", pictures[0], seconds=3, loras=loras, section_lora_scales=scales).check())

    assert problems({0: 2.0, 1: 0.0}, 1.0, -1.0) == set()
    assert problems({0: 2.0, 1: 1.5}, 0.5, -1.4) == {
        ("section_lora_scales/0", "lora_scale_too_large"),
        ("section_lora_scales/1", "lora_scale_too_large"),
    }
    assert problems({0: 2.5, 1: math.nan, 7: 1.0}, 1.5) == {
        ("section_lora_scales/0", "out_of_range"),
        ("section_lora_scales/1", "out_of_range"),
        ("section_lora_scales", "section_unknown"),
    }
    assert problems({0: "x"}) == {("section_lora_scales/0", "wrong_type")}
    document = {"mode": "forward", "image": pictures[0], "prompt": "x", "section_lora_scales": {"0": "strong"}}
    with pytest.raises(UserError) as error:
        modes.from_json(document)
    assert [problem.field for problem in error.value.problems] == ["section_lora_scales"]


def test_an_empty_box_of_a_strength_asks_for_a_value(pictures: list[str]) -> None:
    """An empty strength asks for a value; the error was that "None" is no number, or that a section's dictionary has the
    wrong type."""
    document = {"mode": "forward", "image": pictures[0], "prompt": "x", "section_lora_scales": {"0": None, "1": 0.5}}
    with pytest.raises(UserError) as error:
        modes.from_json(document)
    assert found(error.value.problems) == {("section_lora_scales/0", "value_needed")}
    assert problems_of("single", pictures[0], Lora(str(FILE), None)) == {("loras/0/strength", "value_needed")}


def test_a_sections_scale_without_a_lora_is_idle(pictures: list[str]) -> None:
    it = request("reverse", pictures[0], section_lora_scales={0: 0.5})
    assert it.idle() == ("section_lora_scales",)
    assert changed(it, loras=(Lora(str(FILE)),)).idle() == ()
    assert changed(it, section_lora_scales={0: 1.0}).idle() == ()


def test_more_than_a_page_can_show_is_refused(pictures: list[str]) -> None:
    loras = [Lora(str(FILE))] * (MOST_LORAS + 1)
    assert problems_of("single", pictures[0], *loras) == {("loras", "lora_too_many")}
    assert problems_of("single", pictures[0], *loras[1:]) == set()


def test_merging_without_anything_to_merge_is_idle(pictures: list[str]) -> None:
    it = request("single", pictures[0], merge_loras=True)
    assert it.idle() == ("merge_loras",)
    assert changed(it, loras=(Lora(str(FILE)),)).idle() == ()


def test_a_lora_is_a_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Lora(str(FILE)).strength = 1.0


@pytest.mark.parametrize("name", ["../secret.safetensors", "style/../../secret.safetensors", "..\\secret.safetensors"])
def test_no_relative_name_leads_out_of_the_folder(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's request found files of the user's anywhere. What has such a name is looked for in the folder by its last
    part."""
    shutil.copy(FILE, tmp_path / "secret.safetensors")
    (tmp_path / "requests").mkdir()
    assert Lora(name).path == folder / "secret.safetensors"
    assert [problem.key for problem in Lora(name).check("loras/0")] == ["lora_missing"]
    assert named_beside({"loras": [{"file": name}]}, tmp_path / "requests") == {"loras": [{"file": name}]}
    # On a command line it is the user who says so.
    monkeypatch.chdir(tmp_path / "requests")
    assert from_flag("../secret.safetensors") == {"file": str(tmp_path / "secret.safetensors")}
    assert named("../gone.safetensors") == str(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("name", ["x" * 5000 + ".safetensors", "a\0.safetensors", "/" + "y/" * 3000 + "a.safetensors"])
def test_names_that_no_file_can_have(name: str, pictures: list[str], tmp_path: Path) -> None:
    """5000 characters ended in an OSError ("File name too long")."""
    document = named_beside({"loras": [{"file": name}]}, tmp_path)
    assert document["loras"][0]["file"] in (name, os.path.abspath(name))
    (problem,) = say_everything(request("single", pictures[0], loras=(Lora(name),)).check())
    assert problem.key == "lora_missing" and len(problem.values["file"]) < 5000


def test_a_request_with_a_name_of_5000_characters(pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copy(CASES / "hostile" / "request_lora_name_5000_characters.json", tmp_path / "a.json")
    shutil.copy(pictures[0], tmp_path / "start.jpg")
    out = tmp_path / "out"
    assert main(["render", "--request", str(tmp_path / "a.json"), "--out", str(out), "--dry-run", "--lang", "en"]) == 2
    output = capsys.readouterr()
    assert "There is no LoRA file" in output.err and "Traceback" not in output.err and not out.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_pipes_and_devices_are_not_read(pictures: list[str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        assert problems_of("single", pictures[0], Lora(str(tmp_path / f"{name}.safetensors"))) == {
            ("loras/0/file", "lora_missing")
        }
