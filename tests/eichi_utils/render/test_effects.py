"""Test that every field of a request has its effect: latents of whole samplings with the real networks are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diffusers_helper.vae.latents import rounded
from eichi_utils.jobs.queue import Stop
from eichi_utils.jobs.view import View
from eichi_utils.models.pool import ModelPool
from eichi_utils.problems import UserError
from eichi_utils.render import encoding
from eichi_utils.render.conditions import fit_pictures
from eichi_utils.render.section_loop import Decoded, sample_film
from eichi_utils.requests import modes
from eichi_utils.requests.request import Request, to_json
from eichi_utils.requests.single import Control
from tests.eichi_utils.helpers import THREE, carry_out, changed, decoded, notices_of, request

pytestmark = pytest.mark.model


def conditions_of(it: Request, pool: ModelPool) -> tuple:
    plan = it.plan()
    *_, conditions = encoding.encode_conditions(it, plan, fit_pictures(plan, it.size), pool)
    return plan, conditions


def latents_of(it: Request, pool: ModelPool) -> torch.Tensor:
    """Check a request, and return all its sampled latents."""
    assert it.check() == ()
    plan, conditions = conditions_of(it, pool)
    parts = [part.latents for part in sample_film(it, plan, conditions, pool, Stop()) if isinstance(part, Decoded)]
    return torch.cat(parts, dim=2)


def differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape != other.shape or (one - other).abs().max().item() > 1e-5


CHANGES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (mode, fields, change)
    for mode, fields in (("reverse", THREE), ("forward", THREE), ("single", {}))
    for change in (
        {"seed": 8},
        {"image": 1},
        {"prompt": "a dog sleeps"},
        {"steps": 3},
        {"size": 160},
        {"guidance_scale": 5.0},
        {"shift": 2.0},
        {"cfg_scale": 3.0},
        {"precision": "int8"},
    )
] + [
    ("single", {"cfg_scale": 3.0}, {"negative_prompt": "blurry hands"}),
    ("single", {"cfg_scale": 3.0}, {"guidance_rescale": 0.7}),
    ("single", {"steps": 8}, {"step_cache": "teacache", "cache_threshold": 1.0}),
    ("single", {"steps": 8}, {"step_cache": "first_block", "cache_threshold": 1.0}),
    ("single", {"steps": 8, "cache_threshold": 1.0, "step_cache": "teacache"}, {"step_cache": "first_block"}),
    ("reverse", THREE, {"window": 9.0}),
    ("reverse", THREE, {"seconds": 1}),
    ("reverse", THREE, {"end_image": 1}),
    ("reverse", {**THREE, "end_image": 1}, {"end_strength": 0.3}),
    ("reverse", THREE, {"keyframes": {1: 2}}),
    ("reverse", {**THREE, "keyframes": {1: 2}}, {"keyframes": {0: 2}}),
    ("reverse", THREE, {"padding": 0.5}),
    ("reverse", {**THREE, "padding": 0.5}, {"padding": 3.0}),
    ("reverse", THREE, {"section_prompts": {1: "a dog sleeps"}}),
    ("forward", THREE, {"section_prompts": {1: "a dog sleeps"}}),
    ("reverse", {**THREE, "section_prompts": {1: "a dog sleeps"}}, {"section_prompt_mode": "extend"}),
    ("forward", {**THREE, "section_prompts": {1: "a dog sleeps"}}, {"section_prompt_mode": "extend"}),
    ("reverse", THREE, {"loop": True}),
    ("reverse", {**THREE, "end_image": 1}, {"loop": True}),
    ("forward", THREE, {"influence": 102.0}),
    ("forward", {**THREE, "influence": 102.0}, {"influence_sections": "all"}),
    ("single", {}, {"image_mask": "half"}),
    ("single", {}, {"image_index": 3}),
    ("single", {}, {"controls": (1, 10, "")}),
    ("single", {"controls": (1, 10, "")}, {"controls": (2, 10, "")}),
    ("single", {"controls": (1, 10, "")}, {"controls": (1, 13, "")}),
    ("single", {"controls": (1, 10, "")}, {"controls": (1, 10, "half")}),
    ("single", {"controls": (1, 10, "")}, {"context_1x": True}),
    ("single", {}, {"target_index": 4}),
    ("single", {"target_index": 4}, {"rope_value": 12}),
    ("single", {}, {"context_1x": False}),
    ("single", {}, {"context_2x": False}),
    ("single", {}, {"context_4x": False}),
]


@pytest.fixture(scope="module")
def half_mask(tmp_path_factory: pytest.TempPathFactory) -> str:
    mask = Image.new("L", (48, 32), 255)
    mask.paste(0, (0, 0, 24, 32))
    path = tmp_path_factory.mktemp("mask") / "half.png"
    mask.save(path)
    return str(path)


@pytest.fixture(scope="module")
def unchanged() -> dict[str, torch.Tensor]:
    """Keep sampled latents by the JSON of their request, because many changes are compared with the same film."""
    return {}


@pytest.mark.parametrize(("mode", "fields", "change"), CHANGES, ids=str)
def test_every_field_that_should_change_the_film_does(
    mode: str, fields: dict, change: dict, pool: ModelPool, pictures: list[str], half_mask: str, cheap_decode: None,
    unchanged: dict[str, torch.Tensor],
) -> None:  # fmt: skip
    """A control without effect is a lie of the page (the existing program has several); latents are compared."""

    def resolved(values: dict[str, Any]) -> dict[str, Any]:
        out = dict(values)
        for name in ("image", "end_image"):
            if name in out:
                out[name] = pictures[out[name]]
        if out.get("image_mask"):
            out["image_mask"] = half_mask
        if "keyframes" in out:
            out["keyframes"] = {key: pictures[number] for key, number in out["keyframes"].items()}
        if "controls" in out:
            number, index, mask = out["controls"]
            out["controls"] = (Control(pictures[number], index, half_mask if mask else ""),)
        return out

    base = request(mode, pictures[0], **resolved(fields))
    key = json.dumps(to_json(base))
    if key not in unchanged:
        unchanged[key] = latents_of(base, pool)
    assert differ(latents_of(changed(base, **resolved(change)), pool), unchanged[key])


def test_a_section_prompt_leaves_earlier_sections_alone(pool: ModelPool, pictures: list[str], cheap_decode: None) -> None:
    """Sections sampled before it are the same to the last bit; it and what looks back at it differ."""
    for mode in ("reverse", "forward"):
        base = request(mode, pictures[0], **THREE)
        one, other = latents_of(base, pool), latents_of(changed(base, section_prompts={2: "a dog sleeps"}), pool)
        assert torch.equal(one[:, :, :10], other[:, :, :10])
        assert differ(one[:, :, 10:], other[:, :, 10:])


def test_a_mask_hides_only_what_it_covers(pool: ModelPool, pictures: list[str], half_mask: str) -> None:
    """A mask's black sets the latent to zero there and leaves it unchanged elsewhere."""
    _plan, conditions = conditions_of(request("single", pictures[0], image_mask=half_mask), pool)
    mask = conditions.masks["start"]
    assert mask.shape[-2:] == conditions.latents["start"].shape[-2:]
    assert (mask[..., :, :8] == 0).all()
    assert (mask[..., :, 10:] == 1).all()


def test_what_has_no_effect_is_said(pool: ModelPool, pictures: list[str], tmp_path: Path) -> None:
    """Settings that cannot act are told to the user, and others are not; they used to be taken without a word."""
    base = request("single", pictures[0])
    idle = changed(base, negative_prompt="blurry", guidance_rescale=0.5)
    assert not differ(latents_of(base, pool), latents_of(idle, pool))
    said = [[(e.key, e.values["name"]) for e in notices_of(carry_out(r, pool, tmp_path))] for r in (base, idle)]
    assert said == [[], [("no_effect", "negative_prompt"), ("no_effect", "guidance_rescale")]]


@pytest.mark.parametrize(
    ("mode", "fields", "idle"),
    [
        ("single", {"cache_threshold": 0.5}, ("cache_threshold",)),
        ("single", {"cache_threshold": 0.5, "step_cache": "teacache"}, ()),
        ("reverse", {"end_strength": 0.5}, ("end_strength",)),
        ("reverse", {"section_prompt_mode": "extend"}, ("section_prompt_mode",)),
        ("forward", {"section_prompt_mode": "extend", "section_prompts": {0: " "}}, ("section_prompt_mode",)),
        ("reverse", {"padding": 1.0}, ("padding",)),
        ("reverse", {"padding": 1.0, "seconds": 3}, ()),
        ("forward", {"influence_sections": "all", "seconds": 3}, ("influence_sections",)),
        ("forward", {"influence_sections": "all", "influence": 101.0}, ("influence_sections",)),
        ("forward", {"influence_sections": "all", "influence": 101.0, "seconds": 3}, ()),
    ],
)
def test_settings_that_cannot_act(pictures: list[str], mode: str, fields: dict, idle: tuple) -> None:
    """A setting without effect is named exactly where nothing else makes it act."""
    assert request(mode, pictures[0], **fields).idle() == idle


def test_a_cache_that_lets_nothing_pass_is_no_cache(pool: ModelPool, pictures: list[str]) -> None:
    """Threshold 0 computes every step: bit for bit as without."""
    base = request("single", pictures[0], steps=6)
    for cache in ("teacache", "first_block"):
        assert torch.equal(latents_of(changed(base, step_cache=cache, cache_threshold=0.0), pool), latents_of(base, pool))


def test_the_vae_cache_changes_the_frames_and_nothing_else(pool: ModelPool, pictures: list[str], tmp_path: Path) -> None:
    """The VAE cache keeps the latents and the number of frames, and changes the pictures: each part is decoded once,
    unblended."""
    base = request("forward", pictures[0], seconds=1.1, window=4.5)
    films = {}
    for cache in (False, True):
        it = changed(base, vae_cache=cache)
        plan, conditions = conditions_of(it, pool)
        parts = [part for part in sample_film(it, plan, conditions, pool, Stop()) if isinstance(part, Decoded)]
        assert [part.open.shape[2] > 0 for part in parts] == [not cache] * 2
        frames = torch.cat([*(part.final for part in parts), rounded(parts[-1].open)], dim=2)
        films[cache] = torch.cat([part.latents for part in parts], dim=2), frames
    assert torch.equal(films[False][0], films[True][0])
    assert films[False][1].shape == films[True][1].shape and films[True][1].shape[2] == plan.frames
    assert (films[False][1].float() - films[True][1].float()).abs().mean() > 0.5
    events = carry_out(changed(base, vae_cache=True), pool, tmp_path)
    assert len(decoded(events[-1].files[0])) == plan.frames


@pytest.mark.parametrize("mode", ["reverse", "single"])
def test_only_a_film_made_in_order_has_a_vae_cache(mode: str, pictures: list[str]) -> None:
    """Only modes that make a film in order have a VAE cache; in others the frames before a frame do not exist yet."""
    with pytest.raises(UserError) as error:
        modes.from_json({"mode": mode, "image": pictures[0], "prompt": "x", "vae_cache": True})
    assert ("vae_cache", "key_unknown") in {(problem.field, problem.key) for problem in error.value.problems}


def test_the_run_says_how_many_steps_it_computed(pool: ModelPool, pictures: list[str], tmp_path: Path) -> None:
    """The run reports its computed steps at each event and in the view's total; without a cache every step is computed."""
    for cache, fewer in (("none", False), ("teacache", True), ("first_block", True)):
        view = View()
        wanted = request("single", pictures[0], steps=8, step_cache=cache, cache_threshold=0.5)
        for event in carry_out(wanted, pool, tmp_path / cache):
            view = view.after(event)
        assert view.all_steps == 8 and (view.computed_steps < 8) == fewer and view.computed_steps >= 2
