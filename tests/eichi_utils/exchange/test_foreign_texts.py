"""Test that prompt, negative prompt, seed and length are found in files of other programs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import av
import numpy
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from eichi_utils.exchange.film_texts import film_texts
from eichi_utils.exchange.foreign_texts import MOST_CHARACTERS, parse_parameters, said_by, said_by_document
from eichi_utils.exchange.picture_text import MOST_TAKEN, PictureText, picture_text, read_text, request_fields
from eichi_utils.problems import UserError
from tests.eichi_utils.helpers import found

CASES = Path(__file__).parents[2] / "cases"
PROMPT, NEGATIVE, SEED = "a lighthouse in a storm", "blurry, watermark", 581626448
WHOLE = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": SEED}


def text_node(text: Any) -> dict[str, Any]:
    return {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["4", 1]}}


def sampler(**inputs: Any) -> dict[str, Any]:
    own = {"positive": ["6", 0], "negative": ["7", 0], "seed": SEED, "latent_image": ["5", 0], "cfg": float("nan")}
    return {"class_type": "KSampler", "inputs": {**own, **inputs}}


SAVE = {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}}
DECODE = {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}}
PLAIN = {"3": sampler(), "6": text_node(PROMPT), "7": text_node(NEGATIVE), "8": DECODE, "9": SAVE}
GRAPHS = {
    "plain": PLAIN,
    # Through nodes of conditioning, with the texts in nodes of their own, and the seed too.
    "links": {
        **PLAIN,
        "3": sampler(positive=["10", 0], negative=["10", 1], seed=["13", 0]),
        "6": text_node(["11", 0]),
        "7": text_node(["12", 0]),
        "10": {"class_type": "ControlNetApplyAdvanced", "inputs": {"positive": ["14", 0], "negative": ["7", 0]}},
        "11": {"class_type": "PrimitiveString", "inputs": {"value": PROMPT}},
        "12": {"class_type": "StringConcatenate", "inputs": {"string_a": NEGATIVE, "string_b": ""}},
        "13": {"class_type": "Seed (rgthree)", "inputs": {"seed": SEED}},
        "14": {"class_type": "FluxGuidance", "inputs": {"conditioning": ["6", 0], "guidance": 3.5}},
    },
    # A sampler whose result nobody saves comes first in the file.
    "loose": {
        "1": sampler(positive=["2", 0], seed=1),
        "2": text_node("another prompt"),
        **PLAIN,
    },
    "custom sampler": {
        "3": {"class_type": "SamplerCustomAdvanced", "inputs": {"noise": ["20", 0], "guider": ["21", 0], "sigmas": ["22", 0]}},
        "20": {"class_type": "RandomNoise", "inputs": {"noise_seed": SEED}},
        "21": {"class_type": "CFGGuider", "inputs": {"positive": ["6", 0], "negative": ["7", 0], "cfg": 1}},
        "6": text_node(PROMPT),
        "7": text_node(NEGATIVE),
        "8": DECODE,
        "9": SAVE,
    },
    "one encoder for both": {
        "3": {"class_type": "WanVideoSampler", "inputs": {"text_embeds": ["6", 0], "seed": SEED}},
        "6": {"class_type": "WanVideoTextEncode", "inputs": {"positive_prompt": PROMPT, "negative_prompt": NEGATIVE}},
        "8": DECODE,
        "9": SAVE,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", list(GRAPHS))
def test_comfyui_graphs(name: str) -> None:
    """ComfyUI's graphs are read although they hold NaN, which JSON does not allow; such a file seemed to have no prompt."""
    assert picture_text({"prompt": json.dumps(GRAPHS[name]), "workflow": "{}"}) == PictureText(**WHOLE)


def test_a_graph_without_a_negative_side() -> None:
    """A graph that zeroes the positive encoding as its negative side has no negative prompt; the positive text is not taken
    for it."""
    zeroed = {**PLAIN, "7": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["6", 0]}}}
    assert said_by_document(zeroed) == {"prompt": PROMPT, "seed": SEED}
    basic = {**PLAIN, "3": {"class_type": "BasicGuider", "inputs": {"conditioning": ["6", 0]}}}
    del basic["7"]
    assert said_by_document(basic) == {"prompt": PROMPT}


def test_a_graph_that_goes_round_in_circles_ends() -> None:
    circle = {"3": sampler(seed=["3", 0]), "6": text_node(["7", 0]), "7": text_node(["6", 0]), "9": SAVE}
    started = time.process_time()
    assert said_by_document(circle) == {}
    chain = {str(n): text_node([str(n + 1), 0]) for n in range(10_000)}
    assert said_by_document({"s": sampler(positive=["0", 0]), **chain}) == {"seed": SEED}
    many = {str(n): sampler(positive=[str(n + 1), 0], seed=[str(n + 1), 0]) for n in range(2_000)}
    assert said_by_document(many) == {}
    assert time.process_time() - started < 2


def test_the_length_of_a_comfyui_film() -> None:
    graph = {
        **PLAIN,
        "5": {"class_type": "EmptyHunyuanLatentVideo", "inputs": {"length": 73, "batch_size": 1}},
        "9": {"class_type": "VHS_VideoCombine", "inputs": {"images": ["8", 0], "frame_rate": 24}},
    }
    assert said_by_document(graph) == {**WHOLE, "seconds": 3.04}
    del graph["9"]["inputs"]["frame_rate"]
    assert said_by_document(graph) == WHOLE
    assert said_by_document(graph, rate=24.0)["seconds"] == 3.04
    pack = {"3": {"class_type": "FramePackSampler", "inputs": {**sampler()["inputs"], "total_second_length": 5}}}
    assert said_by_document({**PLAIN, **pack}) == {**WHOLE, "seconds": 5.0}


CAPTION = {"caption": {"base_caption": PROMPT, "char_captions": []}, "use_coords": False}
DOCUMENTS = {
    "Wan2GP": (
        {**WHOLE, "video_length": 81, "resolution": "832x480", "num_inference_steps": 30, "model_type": "i2v", "type": "WanGP"},
        {**WHOLE, "seconds": 5.06},
    ),
    "Wan2GP with its rate": ({**WHOLE, "video_length": 97, "force_fps": "24", "model_type": "x"}, {**WHOLE, "seconds": 4.04}),
    "Wan2GP without one": ({**WHOLE, "video_length": 97, "force_fps": ""}, WHOLE),
    "a picture of Wan2GP": ({**WHOLE, "video_length": 1, "model_type": "flux"}, WHOLE),
    "FramePack-Studio": ({**WHOLE, "total_second_length": 6, "steps": 25, "cfg": 1.0, "gs": 10.0}, {**WHOLE, "seconds": 6.0}),
    "SwarmUI": ({"sui_image_params": {"prompt": PROMPT, "negativeprompt": NEGATIVE, "seed": SEED}}, WHOLE),
    "InvokeAI": ({"positive_prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": SEED, "app_version": "5"}, WHOLE),
    "InvokeAI 2": ({"image": {"prompt": [{"prompt": f"{PROMPT} [{NEGATIVE}]", "weight": 1.0}], "seed": SEED}}, WHOLE),
    "NovelAI": ({"prompt": PROMPT, "uc": NEGATIVE, "seed": SEED, "steps": 28}, WHOLE),
    "NovelAI 4": ({"prompt": "old", "uc": NEGATIVE, "seed": SEED, "v4_prompt": CAPTION}, WHOLE),
    "texts for numbers": ({"prompt": "x", "seed": "7", "seconds": "2.5"}, {"prompt": "x", "seed": 7, "seconds": 2.5}),
    "nothing that is meant": ({"prompt": 7, "seed": [], "image": {"prompt": None}, "v4_prompt": 1, "sui_image_params": []}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", list(DOCUMENTS))
def test_documents(name: str, tmp_path: Path) -> None:
    document, expected = DOCUMENTS[name]
    assert said_by_document(document) == expected
    (tmp_path / "a.json").write_text(json.dumps(document), encoding="utf-16")
    if expected:
        assert read_text(tmp_path / "a.json") == PictureText(**expected)
    else:
        with pytest.raises(UserError) as error:
            read_text(tmp_path / "a.json")
        assert found(error.value.problems) == {("request", "request_not_in_file")}


PNGS = {
    "invokeai_metadata": json.dumps(DOCUMENTS["InvokeAI"][0]),
    "sd-metadata": json.dumps(DOCUMENTS["InvokeAI 2"][0]),
    "Dream": f'"{PROMPT} [{NEGATIVE}]" -s 50 -S {SEED} -W 512 -H 512 -C 7.5 -A k_lms',
    "Comment": json.dumps(DOCUMENTS["NovelAI 4"][0]),
    "parameters": json.dumps(DOCUMENTS["FramePack-Studio"][0]),
    "metadata": json.dumps(DOCUMENTS["Wan2GP"][0]),
    "comment": f"{PROMPT}\nNegative prompt: {NEGATIVE}\nSteps: 20, Sampler: Euler, Seed: {SEED}, Size: 8x8",
}


@pytest.mark.parametrize("keyword", list(PNGS))
def test_texts_of_pictures(keyword: str, tmp_path: Path) -> None:
    """Each program has a keyword of its own; what stood there used to be left unread, or to be the prompt as a whole."""
    info = PngInfo()
    info.add_text("Software", "x")
    info.add_text(keyword, PNGS[keyword])
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png", pnginfo=info)
    text = read_text(tmp_path / "a.png")
    assert {name: getattr(text, name) for name in WHOLE} == WHOLE


@pytest.mark.parametrize(("name", "seed"), [("info_swarmui", SEED), ("info_dynamic_prompts", 5)])
def test_pictures_of_two_programs(name: str, seed: int) -> None:
    """JSON under `parameters`, and lines below those of Stable Diffusion programs, were offered as the prompt."""
    assert read_text(CASES / f"{name}.png") == PictureText(**{**WHOLE, "seed": seed})


def test_exif_of_webp(tmp_path: Path) -> None:
    """ComfyUI's nodes and NovelAI write WebP too, which has no text chunks."""
    comfy, novel = Image.Exif(), Image.Exif()
    comfy[0x0110], comfy[0x010F] = f"prompt:{json.dumps(PLAIN)}", "workflow:{}"
    whole = {"Software": "NovelAI", "Comment": json.dumps(DOCUMENTS["NovelAI"][0])}
    novel.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + json.dumps(whole).encode()
    for name, exif in (("comfy", comfy), ("novel", novel)):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.webp", exif=exif)
        assert read_text(tmp_path / f"{name}.webp") == PictureText(**WHOLE), name


def film(path: Path, rate: int = 24, **tags: str) -> Path:
    """Write a film of four frames with these tags."""
    options = {"movflags": "use_metadata_tags"} if path.suffix != ".webm" else {}
    codec = "libvpx" if path.suffix == ".webm" else "libx264"
    with av.open(str(path), "w", options=options) as container:
        container.metadata.update(tags)
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numpy.zeros((16, 16, 3), numpy.uint8), format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".m4v", ".mkv", ".webm"])
def test_films_of_others(suffix: str, tmp_path: Path) -> None:
    """The length in seconds is the frames that they name at the rate that the film has."""
    wan = {name: value for name, value in DOCUMENTS["Wan2GP"][0].items() if name != "model_type"}
    kinds = {
        "Wan2GP": {"comment": json.dumps(wan)},
        "VideoHelperSuite": {"comment": json.dumps({"prompt": json.dumps(PLAIN), "workflow": {}, "CreationTime": "x"})},
        "ComfyUI": {"prompt": json.dumps(PLAIN), "workflow": "{}"},
        "others": {"description": PNGS["comment"]},
    }
    for name, tags in kinds.items():
        text = read_text(film(tmp_path / f"{name}{suffix}", **tags))
        assert {one: getattr(text, one) for one in WHOLE} == WHOLE, name
    assert read_text(tmp_path / f"Wan2GP{suffix}").seconds == 3.38
    for tags in ({"comment": "Made with love"}, {"title": PROMPT}, {}):
        with pytest.raises(UserError) as error:
            read_text(film(tmp_path / f"none{suffix}", **tags))
        assert found(error.value.problems) == {("request", "request_not_in_file")}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(("title", "encoding"), [("Café du matin", "latin-1"), ("花火と着物", "cp932")])
def test_a_tag_in_another_encoding_leaves_the_others(title: str, encoding: str, suffix: str, tmp_path: Path) -> None:
    """A single title that was not UTF-8 made all texts of the film unreadable; now only that title is left out."""
    wan = {name: value for name, value in DOCUMENTS["Wan2GP"][0].items() if name != "model_type"}
    raw = title.encode(encoding)
    path = film(tmp_path / f"a{suffix}", comment=json.dumps({**wan, "type": "猫"}, ensure_ascii=False), title="Q" * len(raw))
    path.write_bytes(path.read_bytes().replace(b"Q" * len(raw), raw))
    assert film_texts(path).texts["title"] == title
    text = read_text(path)
    assert {one: getattr(text, one) for one in WHOLE} == WHOLE


def test_a_playlist_under_a_films_name_opens_nothing(tmp_path: Path) -> None:
    """FFmpeg takes a playlist for a film whatever its name, and fetched what it lists, from the network too."""
    film(tmp_path / "other.mp4", comment=json.dumps(WHOLE))
    lists = {"a.mp4": "#EXTM3U\n#EXTINF:1,\nother.mp4\n", "b.mkv": "ffconcat version 1.0\nfile other.mp4\n"}
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError) as error:
            read_text(tmp_path / name)
        assert found(error.value.problems) == {("request", "request_not_in_file")}, name


def test_the_length_comes_only_where_there_is_one() -> None:
    text = PictureText(**WHOLE, seconds=5.06)
    assert request_fields(text, "reverse", "everything") == ({**WHOLE, "seconds": 5.06}, [])
    assert request_fields(text, "single", "everything") == (WHOLE, [])
    assert request_fields(text, "reverse", "prompt") == ({"prompt": PROMPT}, [])
    fields, notes = request_fields(PictureText(**WHOLE, seconds=500.0), "forward", "everything")
    assert fields == WHOLE and found(notes) == {("seconds", "out_of_range")}


@pytest.mark.parametrize(
    "text",
    ["\n" * 200_000, "Steps: 1, \n" * 20_000, "Seed: 1\n" * 25_000, "Section Prompt: \n" * 12_000, "Seed: " + " " * 200_000,
     "Negative prompt:" * 15_000, "Steps: 1, A" + "a " * 100_000, '"' + "[" * 200_000, "{" * 200_000,
     '{"a":"' + '\\"' * 100_000],
)  # fmt: skip
def test_work_is_bounded_by_the_texts_length(text: str) -> None:
    """A picture of one kilobyte froze the server: a regular expression began anew at each of its 900,000 line ends."""
    started = time.process_time()
    for name in ("parameters", "comment", "dream", "prompt", "sd-metadata"):
        said_by({name: text})
        said_by({name: text + "NaN"})
    picture_text({"prompt": text, "seed": text, "section_number": text})
    assert time.process_time() - started < 5


def test_a_text_longer_than_any_prompt_is_not_looked_at() -> None:
    assert parse_parameters("x" * (MOST_CHARACTERS + 1)) == {}


def test_the_picture_that_froze_the_reader() -> None:
    """A picture with a section prompt of 900,000 lines froze the reader. It is read quickly now, and the prompt is not
    shown."""
    started = time.process_time()
    text = read_text(CASES / "hostile" / "png_parameters_900000_newlines_freezes_metadata_reader.png")
    assert time.process_time() - started < 2
    assert text.seed == 5 and len(text.section_prompt) > MOST_TAKEN


def test_a_prompt_that_nobody_can_shorten_is_not_taken() -> None:
    """The box of a page would stand still under it."""
    text = PictureText("x" * (MOST_TAKEN + 1), 5)
    assert request_fields(text, "reverse", "everything")[0] == {"seed": 5}
    document = {"mode": "forward", "section_prompts": {"0": text.prompt}, "prompt": "y"}
    fields, notes = request_fields(PictureText(document=document), "forward", "everything")
    assert (
        fields["prompt"] == "y" and "section_prompts" not in fields and found(notes) == {("section_prompts", "text_too_long")}
    )
