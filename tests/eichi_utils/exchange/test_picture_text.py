"""Test prompt and seed from pictures of the existing program, of ours, and of Stable Diffusion programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from eichi_utils.exchange.foreign_texts import parse_parameters
from eichi_utils.exchange.metadata import png_info
from eichi_utils.exchange.picture_text import PictureText, picture_text, read_picture_text, read_text, request_fields
from eichi_utils.exchange.video import write_png
from eichi_utils.files import png_chunks
from eichi_utils.files.png_chunks import MOST_TEXT, MOST_TEXTS, png_texts
from eichi_utils.problems import UserError
from eichi_utils.requests import modes
from tests.diffusers_helper.inputs import GOLDEN
from tests.eichi_utils.files.test_pictures import png_of_zeros
from tests.eichi_utils.helpers import found, request
from tests.eichi_utils.requests.test_request import other_values

COMPAT = GOLDEN / "compat"
EXPECTED = json.loads((COMPAT / "png_expected.json").read_text(encoding="utf-8"))
A1111 = """masterpiece, a cat
sitting
Negative prompt: blurry,
low quality
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1234, Size: 512x768, Model: x"""


def said(text: str) -> dict[str, Any]:
    return {name: value for name, value in parse_parameters(text).items() if value is not None}


def own(tmp_path: Path, made: Any, section: int | None = None) -> PictureText:
    """Read the text of a picture made for a request, whose files still lie in their folders."""
    write_png(tmp_path / "own.png", Image.new("RGB", (16, 16)), png_info(made, section))
    return read_text(tmp_path / "own.png", (Path(made.image).parent, GOLDEN / "lora"))


@pytest.mark.parametrize("name", list(EXPECTED))
def test_the_existing_programs_pictures(name: str) -> None:
    """A seed of 0 is a seed, lines stay lines, Japanese stays Japanese."""
    text = read_picture_text(COMPAT / f"png_{name}.png")
    assert {key: getattr(text, key) for key in ("prompt", "seed", "section_prompt", "section_number")} == {
        "prompt": None, "seed": None, "section_prompt": None, "section_number": None, **EXPECTED[name]
    }  # fmt: skip
    fields = {"prompt": EXPECTED[name]["prompt"], "seed": EXPECTED[name]["seed"]}
    for mode in modes.MODES:
        assert request_fields(text, mode, "everything") == (fields, [])
        assert request_fields(text, mode, "prompt") == ({"prompt": fields["prompt"]}, [])
        assert request_fields(text, mode, "seed") == ({"seed": fields["seed"]}, [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("only a prompt", {"prompt": "only a prompt"}),
        ("Seed: 5", {"seed": 5}),
        ("a\nSeed: -1", {"prompt": "a", "seed": -1}),
        ("a\r\n\r\nb\r\nSeed: 3\r\n", {"prompt": "a\n\nb", "seed": 3}),
        ("Seed: an apple grows\nSeed: 4", {"prompt": "Seed: an apple grows", "seed": 4}),
        ("Seed: 9\nmore prompt\nSeed: 4", {"prompt": "Seed: 9\nmore prompt", "seed": 4}),
        ("a\nSeed: 1\nSection Number: 2", {"prompt": "a", "seed": 1, "section_number": 2}),
        (
            "a\nSeed: 1\nSection Prompt: b\nc\n\nd\nSection Number: 0",
            {"prompt": "a", "seed": 1, "section_prompt": "b\nc\n\nd", "section_number": 0},
        ),
        (
            "a\nSeed: 1\nSection Number: 3\nSection Prompt: b\nc",
            {"prompt": "a", "seed": 1, "section_prompt": "b\nc", "section_number": 3},
        ),
        ("a\nSection Prompt: b", {"prompt": "a", "section_prompt": "b"}),
        ("a\nSeed: 1\nSection Prompt:", {"prompt": "a", "seed": 1}),
        ("a\nSeed: " + "9" * 5000, {"prompt": "a\nSeed: " + "9" * 5000}),
        (
            A1111,
            {"prompt": "masterpiece, a cat\nsitting", "negative_prompt": "blurry,\nlow quality", "seed": 1234},
        ),
        ("a cat\nSteps: 20, Sampler: x", {"prompt": "a cat"}),
        ("Steps: 3, then he jumps\nSeed: 5", {"prompt": "Steps: 3, then he jumps", "seed": 5}),
    ],
)
def test_parameters(text: str, expected: dict[str, Any]) -> None:
    assert said(text) == expected


def test_single_chunks() -> None:
    """The existing program reads them; `parameters` goes before. A graph of nodes under the name "prompt" is no prompt."""
    chunks = {"prompt": '"a \\"cat\\""', "seed": "7", "section_prompt": "b", "section_number": "2"}
    assert picture_text(chunks) == PictureText('a "cat"', 7, "b", 2)
    assert picture_text({**chunks, "parameters": "dog\nSeed: 0"}) == PictureText("dog", 0, "b", 2)
    assert picture_text({"prompt": "123", "seed": "x"}) == PictureText(prompt="123")
    assert picture_text({"prompt": '{"3": {"class_type": "KSampler"}}'}) == PictureText()
    assert picture_text({"prompt": "[" * 100_000}).prompt == "[" * 100_000
    assert picture_text({"eichi": "[" * 100_000, "prompt": " "}) == PictureText()
    assert picture_text({"eichi": "[1]"}) == PictureText()


@pytest.mark.parametrize("mode", list(modes.MODES))
def test_our_own_pictures_give_everything_back(mode: str, pictures: list[str], tmp_path: Path) -> None:
    """Every field of the mode, as another import would make it."""
    made = modes.MODES[mode](**other_values(mode, pictures))
    fields, notes = request_fields(own(tmp_path, made), mode, "everything")
    assert notes == []
    assert modes.from_json({"mode": mode, **fields}) == made
    assert request_fields(own(tmp_path, made), mode, "seed") == ({"seed": made.seed}, [])


def test_a_prompt_that_looks_like_metadata_stays_whole(tmp_path: Path) -> None:
    """Beside the text for others, which cannot tell, lies the request."""
    prompt = "a\nSeed: 3\nSection Number: 4"
    text = own(tmp_path, request("reverse", "", prompt=prompt, section_prompts={1: "x\nSection Number: 9"}), 1)
    assert request_fields(text, "single", "prompt") == ({"prompt": prompt}, [])


def test_a_picture_of_another_mode(pictures: list[str], tmp_path: Path) -> None:
    """A picture made in another mode gives the fields that both modes have, with sections at their time; lost settings are
    named."""
    made = request("forward", pictures[0], section_prompts={0: "first"}, seconds=5, influence=101)
    fields, notes = request_fields(own(tmp_path, made), "reverse", "everything")
    assert fields["section_prompts"] == {"3": "first"} and fields["seed"] == 7 and fields["steps"] == 2
    assert found(notes) == {("influence", "field_not_here")}
    modes.from_json({"mode": "reverse", **fields})


def test_what_a_document_may_say(tmp_path: Path) -> None:
    """A request inside a picture from anywhere is not trusted: wrong values are named, and the rest is used."""
    info = PngInfo()
    info.add_text("eichi", '{"mode": "reverse", "steps": "many", "prompt": "kept", "tomorrow": 1}')
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png", pnginfo=info)
    fields, notes = request_fields(read_picture_text(tmp_path / "a.png"), "reverse", "everything")
    assert fields["prompt"] == "kept" and fields["steps"] == 25
    assert found(notes) == {("steps", "wrong_type"), ("tomorrow", "key_unknown")}
    info = PngInfo()
    info.add_text("parameters", "a\nSeed: 99999999999999999999")
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png", pnginfo=info)
    fields, notes = request_fields(read_picture_text(tmp_path / "a.png"), "reverse", "everything")
    assert fields == {"prompt": "a"} and found(notes) == {("seed", "out_of_range")}


def test_every_kind_of_text_chunk(tmp_path: Path) -> None:
    """Texts are read from tEXt, zTXt and iTXt chunks, plain and packed, and behind the pixels."""
    for number, add in enumerate(("add_text", "add_itxt")):
        for packed in (False, True):
            info = PngInfo()
            getattr(info, add)("parameters", "a é\nSeed: 4", zip=packed)
            Image.new("RGBA", (16, 16)).save(tmp_path / f"{number}.png", pnginfo=info)
            assert read_picture_text(tmp_path / f"{number}.png") == PictureText("a é", 4)
    info = PngInfo()
    info.add(b"tEXt", b"parameters\0late\nSeed: 5", after_idat=True)
    Image.new("RGB", (16, 16)).save(tmp_path / "late.png", pnginfo=info)
    assert read_picture_text(tmp_path / "late.png") == PictureText("late", 5)


@pytest.mark.slow
def test_texts_that_are_left_out_take_their_room(tmp_path: Path) -> None:
    """300 packed texts of 6 MB were unpacked one after the other, each to find that it is too large: four seconds for 2 MB."""
    info = PngInfo()
    info.add_text("parameters", "a cat\nSeed: 4")
    for number in range(30):
        info.add_text(f"large {number}", "a" * (MOST_TEXT + 1), zip=True)
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.MonkeyPatch.context() as patch:
        unpacked = []
        real = png_chunks.zlib.decompressobj

        class Counted:
            def __init__(self) -> None:
                self.own = real()

            def decompress(self, data: bytes, most: int) -> bytes:
                unpacked.append(len(made := self.own.decompress(data, most)))
                return made

            @property
            def unconsumed_tail(self) -> bytes:
                return self.own.unconsumed_tail

        patch.setattr(png_chunks.zlib, "decompressobj", Counted)
        found_texts = png_texts(tmp_path / "a.png")
    assert sum(unpacked) <= MOST_TEXTS and len(found_texts.too_large) == 30
    assert found_texts.texts == {"parameters": "a cat\nSeed: 4"}


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_picture_text(path)
    ((field, key),) = found(error.value.problems)
    assert field == "request"
    return key


def test_pictures_that_say_nothing_or_cannot_be_read(tmp_path: Path, photo: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "plain.png")
    assert refusal(tmp_path / "plain.png") == refusal(photo) == "picture_without_text"
    (tmp_path / "text.png").write_text("Seed: 5")
    assert refusal(tmp_path / "text.png") == "request_not_in_file"
    (tmp_path / "cut.png").write_bytes((COMPAT / "png_ascii.png").read_bytes()[:40])
    (tmp_path / "empty.png").write_bytes(b"")
    bomb = PngInfo()
    bomb.add_text("parameters", "x" * 20_000_000, zip=True)
    Image.new("RGB", (16, 16)).save(tmp_path / "bomb.png", pnginfo=bomb)
    png_of_zeros(tmp_path / "large.png", 20000, 20000)
    assert refusal(tmp_path / "empty.png") == "request_not_in_file"
    assert refusal(tmp_path / "bomb.png") == "text_too_large"
    # Texts are read without the pixels.
    assert refusal(tmp_path / "large.png") == "picture_without_text"
    for name in ("cut.png", "gone.png"):
        assert refusal(tmp_path / name) == "picture_damaged", name
