"""Test requests: limits, JSON, problems, seeds."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from eichi_utils.files.pictures import fitted_size
from eichi_utils.problems import UserError
from eichi_utils.requests import modes
from eichi_utils.requests.kinds import MAX_PROMPT_CHARACTERS, Choice, Integer, Number, kinds_of
from eichi_utils.requests.loras import Lora
from eichi_utils.requests.request import DRAWN_SEED_LIMIT, MAX_SEED, check_fields, from_json, to_json, with_seed
from eichi_utils.requests.single import Control
from tests.diffusers_helper.inputs import GOLDEN
from tests.eichi_utils.helpers import changed, found, latent_file, request, say_everything

MODES = list(modes.MODES)
LORA = str(GOLDEN / "lora" / "kohya_framepack_names.safetensors")


def other_values(mode: str, pictures: list[str]) -> dict:
    """Return a valid value other than the default for every field of a mode."""
    common = {
        "model": "miniature",
        "image": pictures[0],
        "prompt": '猫が走る 🐈 "quoted" \\ {brace}\nsecond line',
        "negative_prompt": "blurry",
        "seed": MAX_SEED,
        "steps": 3,
        "size": 384,
        "guidance_scale": 7.5,
        "cfg_scale": 2.5,
        "guidance_rescale": 0.7,
        "shift": 3.0,
        "step_cache": "none",
        "cache_threshold": 0.3,
        "precision": "int8",
        "loras": (Lora(LORA, -1.5), Lora(LORA, 2.0)),
        "merge_loras": True,
        "vae_tile": 256,
        "batch": 3,
        "output_folder": "cats",
    }
    height, width = fitted_size(pictures[0], common["size"])
    append = {
        "append_latents": latent_file(Path(pictures[0]).parent / "appended.safetensors", 6, height, width),
        "append_trim_start": 1,
        "append_trim_end": 2,
        "film_trim_end": 3,
        "join_latents": 4,
    }
    film = {"seconds": 4.0, "window": 4.5, "section_prompts": {0: "zero", 2: "two"}, "crf": 30, "section_prompt_mode": "extend"}
    film["section_lora_scales"] = {0: 0.5, 3: 1.0}
    film |= {"keep_section_videos": True, "section_stills": True, "save_frames": "last", "save_latents": True}
    film |= append
    own = {
        "reverse": {
            "end_image": pictures[1],
            "end_strength": 0.5,
            "loop": True,
            "keyframes": {1: pictures[2], 3: pictures[3]},
            "padding": 1.5,
        },
        "forward": {"influence": 101.5, "influence_sections": "all", "vae_cache": True},
        "single": {
            "image_index": 1,
            "image_mask": pictures[1],
            "controls": (Control(pictures[2], 13, pictures[3]), Control(pictures[1])),
            "target_index": 0,
            "rope_value": 11,
            "context_1x": False,
            "context_2x": False,
            "context_4x": False,
        },
    }
    return common | ({} if mode == "single" else film) | own[mode]


@pytest.mark.parametrize("mode", MODES)
def test_every_field_says_what_it_is_and_its_default_is_allowed(mode: str) -> None:
    """Pages, checks and command line read kind and limits from the fields: a default outside them could not be kept."""
    blank = {field.name: field.default for field in dataclasses.fields(modes.MODES[mode])}
    for name, kind in kinds_of(modes.MODES[mode]).items():
        if isinstance(kind, Number):
            assert kind.min < kind.max, name
        if isinstance(kind, Choice):
            assert len(set(kind.choices)) == len(kind.choices) > 1, name
        if blank[name] is None:
            assert kind.optional, name
    assert {(problem.field, problem.key) for problem in check_fields(modes.MODES[mode]())} == {("image", "picture_needed")}


@pytest.mark.parametrize("mode", MODES)
def test_round_trip_through_json_with_every_field_set(mode: str, pictures: list[str]) -> None:
    """The document is what metadata, presets and HTTP carry: nothing may be lost or change its type on the way."""
    kind = modes.MODES[mode]
    values = other_values(mode, pictures)
    defaults = kind()
    assert set(values) == {field.name for field in dataclasses.fields(kind)}, "a field has no test value"
    original = kind(**values)
    for name, value in values.items():
        assert value != getattr(defaults, name), f"{name}: the test value is the default"
    assert original.check() == ()
    document = json.loads(json.dumps(to_json(original)))
    again = modes.from_json(document)
    assert again == original
    for field in dataclasses.fields(kind):
        assert type(getattr(again, field.name)) is type(getattr(original, field.name)), field.name


@pytest.mark.parametrize("mode", MODES)
def test_a_document_may_leave_fields_out_and_null_means_the_default_choice(mode: str) -> None:
    """Old documents lack new fields; pages send null for "choose for me"."""
    assert modes.from_json({"mode": mode}) == modes.MODES[mode]()
    optional = {name: None for name, kind in kinds_of(modes.MODES[mode]).items() if kind.optional}
    assert modes.from_json({"mode": mode, **optional}) == modes.MODES[mode]()


def test_all_mistakes_of_a_document_come_at_once(pictures: list[str], tmp_path) -> None:
    """Unknown keys, wrong types and values out of range are reported together, each at its field."""
    document = {
        "mode": "reverse",
        "image": str(tmp_path / "nothing.png"),
        "prompt": 5,
        "colour": "red",
        "steps": "25",
        "seconds": 500,
        "seed": 1.5,
        "size": 641,
        "step_cache": True,
        "guidance_scale": [],
        "keyframes": {"one": pictures[0]},
        "padding": 3.5,
    }
    with pytest.raises(UserError) as error:
        modes.from_json(document)
    assert found(error.value.problems) == {
        ("colour", "key_unknown"),
        ("steps", "wrong_type"),
        ("seed", "wrong_type"),
        ("step_cache", "wrong_type"),
        ("guidance_scale", "wrong_type"),
        ("keyframes/one", "section_number"),
        ("image", "picture_missing"),
        ("seconds", "out_of_range"),
        ("size", "not_a_choice"),
        ("padding", "out_of_range"),
        ("prompt", "wrong_type"),
    }


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_an_empty_prompt_is_said_beside_a_wrong_length(mode: str, pictures: list[str]) -> None:
    """An empty prompt is told beside a wrong length: where no section brings a prompt, it is wrong for any length."""
    problems = request(mode, pictures[0], prompt="", seconds=500).check()
    assert found(problems) == {("seconds", "out_of_range"), ("prompt", "prompt_empty")}


@pytest.mark.parametrize("document", [[], "reverse", None, 5])
def test_a_document_that_is_no_object(document) -> None:
    """Anything that JSON can hold is answered with a sentence."""
    with pytest.raises(UserError) as error:
        modes.from_json(document)
    assert found(error.value.problems) == {("", "not_an_object")}


@pytest.mark.parametrize("mode", ["sideways", None, 5, ["reverse"], {}])
def test_an_unknown_mode(mode) -> None:
    """The sentence names the modes that exist, and unhashable values are no crash."""
    with pytest.raises(UserError) as error:
        from_json({"mode": mode}, modes.MODES)
    assert found(error.value.problems) == {("mode", "mode_unknown")}
    assert all(name in error.value.problems[0].values["modes"] for name in MODES)


WRONG = ["text", 5, 1.5, True, [], {}, {"a": 1}, [1]]


@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_type_in_any_field_is_a_problem_of_that_field(mode: str) -> None:
    """No value of any JSON type makes reading or checking a request fall over."""
    for field in dataclasses.fields(modes.MODES[mode]):
        for value in WRONG:
            try:
                problems = modes.from_json({"mode": mode, field.name: value}).check()
            except UserError as error:
                problems = error.problems
                assert any(problem.field.split("/")[0] == field.name for problem in problems), (field.name, value)
            say_everything(problems)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0, -1, 1e9])
def test_seconds_that_are_no_length(value: float, pictures: list[str]) -> None:
    """A film of no, negative or endless length is refused before a plan is made of it."""
    for mode in ("reverse", "forward"):
        for problems in (
            request(mode, pictures[0], seconds=value).check(),
            modes.from_json({"mode": mode, "image": pictures[0], "prompt": "x", "seconds": value}).check(),
        ):
            assert found(problems) == {("seconds", "out_of_range")}


@pytest.mark.parametrize("mode", MODES)
def test_limits_are_inclusive_and_hold(mode: str, pictures: list[str]) -> None:
    """min and max themselves are allowed, anything beyond is not: pages offer exactly these."""
    base = request(mode, pictures[0])
    for name, kind in kinds_of(type(base)).items():
        if isinstance(kind, Number):
            for value in (kind.min, kind.max):
                assert changed(base, **{name: value}).check() == (), (name, value)
            step = 1 if isinstance(kind, Integer) else 1e-6
            for value in (kind.min - step, kind.max + step):
                assert found(changed(base, **{name: value}).check()) == {(name, "out_of_range")}
        elif isinstance(kind, Choice):
            for value in kind.choices:
                assert changed(base, **{name: value}).check() == (), (name, value)
            assert found(changed(base, **{name: "no such"}).check()) == {(name, "not_a_choice")}


def test_a_drawn_seed_replaces_minus_one_and_nothing_else(pictures: list[str]) -> None:
    """A drawn seed replaces -1 alone, because the stored request must make the film again; 0 is a seed like any other."""
    seeds = {with_seed(request("single", pictures[0], seed=-1)).seed for _ in range(50)}
    assert len(seeds) > 40
    assert all(0 <= seed < DRAWN_SEED_LIMIT for seed in seeds)
    for seed in (0, 1, MAX_SEED):
        assert with_seed(request("single", pictures[0], seed=seed)).seed == seed


def test_prompt_length(pictures: list[str]) -> None:
    """Empty, blank and far too long prompts are refused with the numbers; the longest allowed one is allowed."""
    for mode in MODES:
        base = request(mode, pictures[0])
        assert found(changed(base, prompt="").check()) == {("prompt", "prompt_empty")}
        assert found(changed(base, prompt=" \n\t　").check()) == {("prompt", "prompt_empty")}
        assert changed(base, prompt="x" * MAX_PROMPT_CHARACTERS).check() == ()
        problems = changed(base, prompt="x" * 100_000, negative_prompt="y" * 100_000).check()
        assert found(problems) == {("prompt", "text_too_long"), ("negative_prompt", "text_too_long")}
        assert problems[0].values["characters"] == 100_000


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_sections_prompts_of_their_own_make_the_common_one_unnecessary(mode: str, pictures: list[str]) -> None:
    """A prompt nobody reads is not asked for; one that some section reads is."""
    base = request(mode, pictures[0], prompt="", seconds=2)
    assert changed(base, section_prompts={0: "a", 1: "b"}).check() == ()
    assert found(changed(base, section_prompts={0: "a", 1: "  "}).check()) == {("prompt", "prompt_empty")}
    assert found(changed(base, section_prompts={1: "b"}).check()) == {("prompt", "prompt_empty")}


@pytest.mark.parametrize("key", [2, 99, -1])
def test_a_section_number_the_film_does_not_have(key: int, pictures: list[str]) -> None:
    """A keyframe that would never be seen is said, not passed over; the sentence names the last section."""
    for mode, name, value in (
        ("reverse", "keyframes", pictures[1]),
        ("reverse", "section_prompts", "x"),
        ("forward", "section_prompts", "x"),
    ):
        problems = request(mode, pictures[0], seconds=2, **{name: {key: value}}).check()
        assert found(problems) == {(name, "section_unknown")}
        assert problems[0].values == {"section": key, "last": 1}


def test_problems_of_keyframes_and_controls_name_the_one_that_is_wrong(pictures: list[str], tmp_path) -> None:
    """Problems of keyframes and controls name the picture that is wrong, because there may be many."""
    gone = str(tmp_path / "gone.png")
    problems = request("reverse", pictures[0], seconds=2, keyframes={0: gone, 1: pictures[1]}).check()
    assert found(problems) == {("keyframes/0", "picture_missing")}
    controls = (Control(pictures[1], 65), Control(gone, 64, pictures[2]), Control(pictures[1], 0, gone))
    assert found(request("single", pictures[0], controls=controls).check()) == {
        ("controls/0/index", "out_of_range"),
        ("controls/1/image", "picture_missing"),
        ("controls/2/mask", "picture_missing"),
    }


@pytest.mark.parametrize(
    "controls", [5, [5], [{}], [{"image": 5}], [{"image": "x", "colour": 1}], [{"image": "x", "index": "7"}], {"image": "x"}]
)
def test_controls_that_are_none(controls) -> None:
    """A list of references of the wrong shape is a problem, not a crash."""
    try:
        problems = modes.from_json({"mode": "single", "controls": controls}).check()
    except UserError as error:
        problems = error.problems
    assert any(field.startswith("controls") for field, _ in found(problems))


@pytest.mark.parametrize("mode", MODES)
def test_text_that_no_file_can_hold_is_refused_at_once(mode: str, pictures: list[str]) -> None:
    """Half a surrogate pair (JSON can carry it) cannot be written as UTF-8 into the PNG: say so before the GPU's work."""
    broken = modes.from_json(json.loads(json.dumps({**to_json(request(mode, pictures[0])), "prompt": "a\ud800b"})))
    assert "prompt" in {field for field, _ in found(broken.check())}


def test_requests_are_values(pictures: list[str]) -> None:
    """Requests are immutable, so that nobody can change one that a job or a page also holds."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        request("single", pictures[0]).seed = 5
    assert request("reverse", pictures[0]) == request("reverse", pictures[0])
