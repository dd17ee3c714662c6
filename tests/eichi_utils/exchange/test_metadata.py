"""Test the request inside PNG and MP4 files, and the text in them for related programs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
from PIL import Image

from eichi_utils.exchange.metadata import KEY, mp4_tags, png_info, read_document, read_placed_document
from eichi_utils.exchange.video import FilmWriter, write_png
from eichi_utils.problems import UserError
from eichi_utils.requests import modes
from eichi_utils.requests.request import to_json
from tests.diffusers_helper.inputs import GOLDEN
from tests.eichi_utils.files.test_pictures import png_of_zeros
from tests.eichi_utils.helpers import found, request
from tests.eichi_utils.requests.test_request import other_values


def problem_key(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_document(path)
    ((field, key),) = found(error.value.problems)
    assert field == "request"
    return key


@pytest.mark.parametrize("mode", list(modes.MODES))
def test_a_request_comes_back_from_png_and_mp4(mode: str, pictures: list[str], tmp_path: Path) -> None:
    """Every field, Japanese and emoji included: a result reproduces itself."""
    original = modes.MODES[mode](**other_values(mode, pictures))
    write_png(tmp_path / "a.png", Image.new("RGB", (16, 16)), png_info(original))
    with FilmWriter(tmp_path, "back", 30, mp4_tags(original)) as writer:
        writer.write(tmp_path / "a.mp4", numpy.zeros((3, 16, 16, 3), numpy.uint8))
    (tmp_path / "a.json").write_text(json.dumps(to_json(original)), encoding="utf-8")
    (tmp_path / "bom.json").write_text(json.dumps(to_json(original), ensure_ascii=False), encoding="utf-8-sig")
    (tmp_path / "UPPER.PNG").write_bytes((tmp_path / "a.png").read_bytes())
    for name in ("a.png", "a.mp4", "a.json", "bom.json", "UPPER.PNG"):
        placed = read_placed_document(tmp_path / name, (Path(pictures[0]).parent, GOLDEN / "lora"))
        assert modes.from_json(placed) == original, name


def test_the_parameters_text_of_the_existing_program(pictures: list[str], tmp_path: Path) -> None:
    """Prompt, `Seed: N`, `Section Prompt: ...`, `Section Number: N`, a line each."""

    def parameters(made, section=None) -> str:
        write_png(tmp_path / "a.png", Image.new("RGB", (16, 16)), png_info(made, section))
        with Image.open(tmp_path / "a.png") as picture:
            picture.load()
            return picture.info["parameters"]

    made = request("reverse", pictures[0], prompt="a cat\nruns", seed=0, section_prompts={1: "jumps"})
    assert parameters(made) == "a cat\nruns\nSeed: 0"
    assert parameters(made, 1) == "a cat\nruns\nSeed: 0\nSection Prompt: jumps\nSection Number: 1"
    assert parameters(made, 0) == "a cat\nruns\nSeed: 0\nSection Number: 0"
    assert parameters(request("single", pictures[0], prompt="猫 é 🐈", seed=5)) == "猫 é 🐈\nSeed: 5"
    assert parameters(request("single", pictures[0], prompt="", seed=5)) == "Seed: 5"


def test_other_programs_find_the_parameters_in_a_text_chunk(pictures: list[str], tmp_path: Path) -> None:
    """Plain ASCII goes into tEXt, which every reader knows; the rest needs iTXt."""
    for prompt, chunk in (("a cat", b"tEXtparameters\0"), ("猫", b"iTXtparameters\0")):
        write_png(tmp_path / "a.png", Image.new("RGB", (16, 16)), png_info(request("single", pictures[0], prompt=prompt)))
        assert chunk in (tmp_path / "a.png").read_bytes()


def test_files_without_a_request(photo: Path, tmp_path: Path) -> None:
    """Somebody else's picture or film is named as that, not as damaged."""
    Image.new("RGB", (16, 16)).save(tmp_path / "plain.png")
    with FilmWriter(tmp_path, "back", 30, {"title": "x"}) as writer:
        writer.write(tmp_path / "plain.mp4", numpy.zeros((3, 16, 16, 3), numpy.uint8))
    (tmp_path / "empty.json").write_text("")
    for name in ("plain.png", "plain.mp4", "empty.json"):
        assert problem_key(tmp_path / name) == "request_not_in_file", name
    assert problem_key(tmp_path / "gone.json") == "request_missing"
    assert problem_key(tmp_path) == "request_missing"


def test_damaged_files(pictures: list[str], photo: Path, tmp_path: Path) -> None:
    """Cut-off and mislabelled files get a sentence with the reason."""
    made = request("single", pictures[0])
    write_png(tmp_path / "whole.png", Image.effect_noise((64, 64), 50), png_info(made))
    with FilmWriter(tmp_path, "back", 30, mp4_tags(made)) as writer:
        writer.write(tmp_path / "whole.mp4", numpy.zeros((3, 16, 16, 3), numpy.uint8))
    for name in ("whole.png", "whole.mp4"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / f"cut{Path(name).suffix}").write_bytes(data[: len(data) // 3])
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "zero.mp4").write_bytes(b"")
    (tmp_path / "text.png").write_text("{}")
    (tmp_path / "text.mp4").write_text("{}")
    (tmp_path / "half.json").write_text('{"mode": "rev')
    (tmp_path / "photo.json").write_bytes(photo.read_bytes())
    # FFmpeg opens what is left of an index, where the request may be among what is lost.
    assert problem_key(tmp_path / "cut.mp4") in ("request_damaged", "request_not_in_file")
    # What was asked for stands before the pixels.
    assert read_document(tmp_path / "cut.png") == read_document(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    names = ("cut.png", "zero.png", "zero.mp4", "text.png", "text.mp4", "half.json", "photo.json")
    for name in names:
        assert problem_key(tmp_path / name) == "request_damaged", name


def test_a_picture_too_large_to_read_is_no_crash(tmp_path: Path) -> None:
    """A decompression bomb offered as a request used to be called damaged; its pixels are not what is asked for."""
    assert problem_key(png_of_zeros(tmp_path / "bomb.png", 20000, 20000)) == "request_not_in_file"


def test_a_document_nested_beyond_reading_is_no_crash(tmp_path: Path) -> None:
    """Brackets without end exhaust the parser's stack; the user reads a sentence."""
    (tmp_path / "deep.json").write_text("[" * 100_000)
    assert problem_key(tmp_path / "deep.json") == "request_damaged"


def test_numbers_that_json_does_not_have(pictures: list[str], tmp_path: Path) -> None:
    """NaN and Infinity, which Python writes, and seeds of 400 digits end in a sentence, not in a traceback."""
    for value in ("NaN", "Infinity", "1e999", "9" * 400):
        document = json.dumps(to_json(request("reverse", pictures[0]))).replace('"seed": 7', f'"seed": {value}')
        (tmp_path / "a.json").write_text(document)
        assert problem_key(tmp_path / "a.json") == "request_damaged", value


def test_the_key_is_our_own() -> None:
    """Renaming it would make every existing file unreadable."""
    assert KEY == "eichi"
