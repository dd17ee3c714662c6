"""Test the command line on a computer without the real models: it says what it does, and never downloads unasked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from eichi_utils.cli import main
from eichi_utils.exchange.metadata import read_document
from eichi_utils.files.paths import MINIATURE
from eichi_utils.models import hub
from eichi_utils.requests import modes
from eichi_utils.requests.request import to_json
from tests.eichi_utils.helpers import request

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def eichi(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Return `eichi(...)`, which runs the command line with an empty hub cache; a download fails the test."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **settings: pytest.fail("asks the hub"))

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main.main([str(argument) for argument in (*arguments, "--lang", "en")])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def photo_flags(pictures: list[str], tmp_path: Path) -> list:
    return ["--image", pictures[0], "--prompt", "The camera zooms in.", "--device", "cpu", "--out", tmp_path / "out"]


@pytest.mark.parametrize("mode", modes.MODES)
def test_a_dry_run_says_which_model(mode: str, eichi: Run, photo_flags: list) -> None:
    """A dry run prints the miniature's own size and steps, and how to get the real model."""
    code, out, err = eichi("render", "--mode", mode, *photo_flags, "--dry-run")
    assert code == 0
    assert out.startswith("miniature, size 128, 15 steps")
    assert "42 GB" in err and "--model framepack" in err and "128 to 192" in err
    code, out, err = eichi("render", "--mode", mode, *photo_flags, "--dry-run", "--json", "--model", "framepack")
    plan = json.loads(out)
    assert (code, plan["model"]) == (0, "framepack") and "about 42 GB will be downloaded" in err
    assert plan["checkpoint"] == modes.MODES[mode].checkpoint


@pytest.mark.slow
def test_render_without_models(eichi: Run, photo_flags: list) -> None:
    """A film with the miniature; its metadata makes it again without a word, now that the model is named."""
    code, out, err = eichi("render", "--mode", "single", *photo_flags, "--steps", 2, "--seed", 3, "--json")
    assert code == 0 and "miniature" in err.splitlines()[0]
    (file, *_) = json.loads(out.splitlines()[-1])["files"]
    stored = read_document(file)
    assert (stored["model"], stored["size"], stored["steps"]) == ("miniature", 128, 2)
    # Metadata name no path; the picture is known by its content, beside the film.
    shutil.copy(photo_flags[1], Path(file).with_name(Path(photo_flags[1]).name))
    code, out, err = eichi("render", "--request", file, *photo_flags[4:], "--json")
    assert code == 0 and "--model framepack" not in err
    (again, *_) = json.loads(out.splitlines()[-1])["files"]
    assert Path(again).read_bytes() == Path(file).read_bytes()


def test_a_size_of_the_other_model(eichi: Run, photo_flags: list, tmp_path: Path) -> None:
    """A size of the other model is told at its field before anything is made, in a dry run too, beside every other problem."""
    for flags in (["--dry-run"], []):
        code, out, err = eichi("render", *photo_flags, "--size", 640, *flags)
        assert (code, out) == (2, "")
        assert "size: 640 is not a size of this model. Choose one of: 128, 160, 192." in err
    assert not (tmp_path / "out").exists()


def test_an_older_request_names_no_model(eichi: Run, photo_flags: list, pictures: list[str], tmp_path: Path) -> None:
    """A request that names no model does not choose the real one: opening a file from elsewhere downloads no 42 GB."""
    document = to_json(request("single", pictures[0], size=160))
    del document["model"]
    (tmp_path / "old.json").write_text(json.dumps(document))
    code, out, err = eichi("render", "--request", tmp_path / "old.json", "--dry-run", "--json")
    assert (code, json.loads(out)["model"]) == (0, "miniature") and "--model framepack" in err


def test_a_folder_that_is_named_is_used(eichi: Run, checkpoint: Path, photo_flags: list) -> None:
    """`--models FOLDER` works as ever, whatever else is there; a described folder brings its own settings."""
    code, out, err = eichi("render", *photo_flags, "--models", checkpoint, "--dry-run")
    assert (code, err) == (0, "") and out.startswith("framepack, size 640, 25 steps")
    code, out, err = eichi("render", *photo_flags, "--models", MINIATURE, "--dry-run")
    # The program's own: it recorded "framepack", and repeating the film began a download of 42 GB.
    assert (code, err) == (0, "") and out.startswith("miniature, size 128, 15 steps")
    code, _, err = eichi("render", *photo_flags, "--models", MINIATURE, "--size", 384, "--dry-run")
    assert code == 2 and "128, 160, 192" in err


@pytest.mark.slow
def test_the_demo_is_the_miniatures_first_example(eichi: Run, tmp_path: Path) -> None:
    """The demo takes its picture, prompt, size and steps from the miniature's own description, the one place for them."""
    described = json.loads((MINIATURE / "eichi.json").read_text())
    code, out, err = eichi("demo", "--dry-run", "--json")
    plan = json.loads(out)
    assert (code, err, plan["model"]) == (0, "", "miniature")
    first = described["examples"][0]
    assert plan["sections"][0]["prompt"] == first["prompt"]
    assert Path(plan["pictures"]["start"]) == (MINIATURE / first["picture"]).resolve()
    code, out, _ = eichi("demo", "--dry-run")
    assert out.startswith(f"miniature, size {described['size']}, {described['steps']} steps: 1 sections")
    code, out, _ = eichi("demo", "--mode", "single", "--steps", 1, "--device", "cpu", "--out", tmp_path / "out", "--json")
    assert code == 0 and read_document(json.loads(out.splitlines()[-1])["files"][0])["model"] == "miniature"


def test_doctor_lists_the_miniature(eichi: Run) -> None:
    code, out, _ = eichi("doctor", "--device", "cpu")
    assert code == 0
    assert "Models for miniature: complete" in out.splitlines()
    code, out, _ = eichi("doctor", "--device", "cpu", "--json")
    states = json.loads(out)["models"]
    assert states["miniature"] == {"complete": True, "missing": []} and not states["framepack"]["complete"]


def test_a_download_is_announced_with_its_size(eichi: Run, photo_flags: list, tmp_path: Path) -> None:
    _, _, err = eichi("render", *photo_flags, "--dry-run", "--models", tmp_path, "--lang", "en")
    assert f"complete in {tmp_path}: about 42 GB" in err
