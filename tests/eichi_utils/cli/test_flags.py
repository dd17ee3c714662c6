"""Test that flags become the fields of a request, alone and over a given request."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from eichi_utils.cli import main
from eichi_utils.cli.output import flag_of
from eichi_utils.files.pictures import fitted_size
from eichi_utils.requests import modes
from eichi_utils.requests.request import to_json
from locales import Translator
from tests.eichi_utils.helpers import latent_file
from tests.eichi_utils.requests.test_request import other_values


def flags_for(values: dict) -> list[str]:
    """Return the command line flags for request fields."""
    flags = []
    for name, value in values.items():
        flag = flag_of(name)
        if name == "controls":
            for control in value:
                flags += ["--reference", control.image, "--reference-index", str(control.index)]
                flags += ["--reference-mask", control.mask] if control.mask else []
        elif name == "loras":
            for lora in value:
                flags += [flag, f"{lora.file}={lora.strength}"]
        elif isinstance(value, dict):
            for key, text in value.items():
                flags += [flag, f"{key}={text}"]
        elif isinstance(value, bool):
            flags += [flag, "on" if value else "off"]
        else:
            flags += [flag, str(value)]
    return flags


@pytest.mark.parametrize("mode", list(modes.MODES))
def test_every_flag_reaches_its_field(mode: str, pictures: list[str]) -> None:
    """A request with every field set can be said in flags."""
    values = other_values(mode, pictures)
    options = main.make_parser(Translator("en")).parse_args(["render", "--mode", mode, *flags_for(values)])
    request = main.read_request(options, {})
    assert request == modes.MODES[mode](**values)
    for field in dataclasses.fields(request):
        assert type(getattr(request, field.name)) is type(values[field.name]), field.name


@pytest.mark.slow
def test_flags_lie_over_the_request_they_change(pictures: list[str], tmp_path: Path) -> None:
    """Each flag by itself changes its field and no other."""
    for mode in modes.MODES:
        values = other_values(mode, pictures)
        base = modes.MODES[mode](image=pictures[0], prompt="p", **({} if mode == "single" else {"seconds": 8.0}))
        (tmp_path / "r.json").write_text(json.dumps(to_json(base)))
        if mode != "single":
            # The base's size is another one.
            values["append_latents"] = latent_file(tmp_path / "a.safetensors", 6, *fitted_size(pictures[0], base.size))
        for name, value in values.items():
            flags = ["render", "--request", str(tmp_path / "r.json"), *flags_for({name: value})]
            options = main.make_parser(Translator("en")).parse_args(flags)
            assert main.read_request(options, {}) == dataclasses.replace(base, **{name: value}), name


def test_references_keep_their_order(pictures: list[str]) -> None:
    """Index and mask belong to the reference before them."""
    flags = ["render", "--mode", "single", "--image", pictures[0], "--prompt", "p"]
    flags += ["--reference", pictures[1], "--reference-mask", pictures[2]]
    flags += ["--reference", pictures[2], "--reference-index", "13", "--reference", pictures[3]]
    controls = main.read_request(main.make_parser(Translator("en")).parse_args(flags), {}).controls
    assert [(control.image, control.index, control.mask) for control in controls] == [
        (pictures[1], 10, pictures[2]),
        (pictures[2], 13, ""),
        (pictures[3], 10, ""),
    ]


def test_pictures_are_found_from_the_current_folder(
    pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative names become absolute, so that what is stored works from anywhere."""
    shutil.copy(pictures[0], tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    flags = ["render", "--image", "a.png", "--prompt", "p", "--keyframe", "0=a.png", "--end-image", "./a.png"]
    request = main.read_request(main.make_parser(Translator("en")).parse_args(flags), {})
    assert request.image == request.end_image == request.keyframes[0] == str(tmp_path / "a.png")
