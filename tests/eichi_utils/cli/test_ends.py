"""Test how the command line begins and ends: all problems at once, paths of request files, stop signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from PIL import Image

from eichi_utils.cli import main
from eichi_utils.cli.progress import Progress
from eichi_utils.exchange.metadata import read_document
from eichi_utils.exchange.named_files import with_paths
from eichi_utils.files.pictures import open_mask
from eichi_utils.jobs.events import Step
from eichi_utils.jobs.queue import Stop
from eichi_utils.render.section_loop import SectionSampler
from eichi_utils.requests import modes
from eichi_utils.requests.request import to_json
from tests.eichi_utils.helpers import request


def eichi(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, dict]:
    """Run the command line; return the exit code and the JSON of the last line."""
    code = main.main([str(argument) for argument in (*arguments, "--json", "--lang", "en")])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_problems_of_request_models_device_and_folder_come_at_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Problems of the picture, the models and the output folder are told together; they used to come one after the other."""
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    code, document = eichi(
        capsys, "render", "--image", tmp_path / "no.png", "--prompt", "x", "--models", tmp_path / "gone",
        "--out", in_the_way / "out", "--attention", "magic", "--device", "warp",
    )  # fmt: skip
    assert code == 2
    keys = {(problem["field"], problem["key"]) for problem in document["problems"]}
    assert keys == {
        ("image", "picture_missing"),
        ("models", "models_missing"),
        ("out", "folder_not_writable"),
        ("attention", "attention_unusable"),
        ("device", "device_unknown"),
    }


def test_a_damaged_checkpoint_leaves_no_output_folder(checkpoint: Path, pictures: list[str], tmp_path: Path, capsys) -> None:
    """A damaged checkpoint leaves no output folder behind; the folder used to be created before the models were checked."""
    models = shutil.copytree(checkpoint, tmp_path / "models")
    (models / "vae" / "config.json").unlink()
    flags = ["--image", pictures[0], "--prompt", "x", "--models", models, "--out", tmp_path / "out"]
    code, document = eichi(capsys, "render", *flags)
    assert code == 2 and [problem["key"] for problem in document["problems"]] == ["checkpoint_file_missing"]
    assert not (tmp_path / "out").exists()


def test_paths_in_a_request_file_are_relative_to_it(
    checkpoint: Path, pictures: list[str], tmp_path: Path, capsys, monkeypatch
) -> None:
    """Paths in a request file are relative to it. They were stored unchanged, so that a result's metadata meant nothing
    elsewhere."""
    shutil.copy(pictures[0], tmp_path / "here.png")
    document = to_json(request("single", "here.png", controls=()))
    document["controls"] = [{"image": "here.png", "mask": "here.png"}]
    (tmp_path / "request.json").write_text(json.dumps(document))
    monkeypatch.chdir("/")
    flags = ["--models", checkpoint, "--device", "cpu", "--out", tmp_path / "out"]
    code, result = eichi(capsys, "render", "--request", tmp_path / "request.json", *flags)
    assert code == 0
    stored = read_document(result["files"][0])
    # Known by their content, wherever they lie.
    stored, here = with_paths(stored, [tmp_path]), str(tmp_path / "here.png")
    assert (stored["image"], stored["controls"][0]["image"], stored["controls"][0]["mask"]) == (here, here, here)


def test_another_mode_takes_over_what_both_have(pictures: list[str], tmp_path: Path, capsys) -> None:
    """`--request film.mp4 --mode forward` used to complain about four settings nobody had typed."""
    (tmp_path / "request.json").write_text(json.dumps(to_json(request("reverse", pictures[0], crf=20, size=640))))
    code, plan = eichi(capsys, "render", "--request", tmp_path / "request.json", "--mode", "forward", "--dry-run")
    assert code == 0 and plan["checkpoint"] == "framepack_f1"


def test_an_empty_name_of_a_request_is_a_mistake(capsys: pytest.CaptureFixture) -> None:
    """An empty value of --request is refused; it used to be taken for no request at all."""
    code, document = eichi(capsys, "render", "--request", "")
    assert code == 2 and document["problems"][0]["key"] == "request_missing"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_polite_end_keeps_what_is_finished(
    checkpoint: Path, pictures: list[str], tmp_path: Path, capsys, monkeypatch, name: str
) -> None:
    """SIGTERM used to leave a temporary folder behind and to name nothing.

    The second section waits to be told: on a busy machine the film was finished before."""
    if not hasattr(signal, name):
        pytest.skip("this system has no such signal")
    show, section = Progress.show, SectionSampler.section

    def show_and_signal(self: Progress, view) -> None:
        show(self, view)
        if view.film and view.stage == "sample" and not view.stopping:
            os.kill(os.getpid(), getattr(signal, name))

    def held(self: SectionSampler, which, number: int, pool, stop: Stop):
        made = section(self, which, number, pool, stop)
        while True:
            try:
                event = next(made)
            except StopIteration as end:
                return end.value
            deadline = time.monotonic() + 60
            while number and isinstance(event, Step) and not stop.level and time.monotonic() < deadline:
                time.sleep(0.01)
            yield event

    monkeypatch.setattr(Progress, "show", show_and_signal)
    monkeypatch.setattr(SectionSampler, "section", held)
    flags = ["--image", pictures[0], "--prompt", "x", "--seconds", 3, "--size", 128, "--steps", 3, "--step-cache", "none"]
    before = signal.getsignal(signal.SIGTERM)
    code, result = eichi(capsys, "render", *flags, "--models", checkpoint, "--device", "cpu", "--out", tmp_path / "out")
    assert code == 130 and result["state"] == "stopped" and result["frames"] == 33
    assert signal.getsignal(signal.SIGTERM) == before
    assert {str(path) for path in (tmp_path / "out").iterdir()} == set(result["files"])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_an_end_before_the_run_begins_is_said(name: str, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    """While a request was checked, SIGHUP and SIGTERM ended the program without a word, and Ctrl-C by its code alone."""
    if not hasattr(signal, name):
        pytest.skip("this system has no such signal")
    before = signal.getsignal(getattr(signal, name))
    monkeypatch.setattr(main, "read_request", lambda *about: os.kill(os.getpid(), getattr(signal, name)))
    assert main.main(["render", "--lang", "ru"]) == 130
    assert capsys.readouterr().err == "Остановлено.\n"
    assert signal.getsignal(getattr(signal, name)) == before


def test_a_second_interrupt_leaves_at_once(checkpoint: Path, pictures: list[str], tmp_path: Path, capsys, monkeypatch) -> None:
    """Stopping waits for the step in hand, which can take minutes on a slow card; who presses again wants out."""

    def interrupt(self: Progress, view) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "show", interrupt)
    flags = ["--image", pictures[0], "--prompt", "x", "--size", 128, "--models", checkpoint, "--out", tmp_path / "out"]
    assert main.main([str(flag) for flag in ["render", *flags, "--lang", "en"]]) == 130


@pytest.mark.parametrize("mode", ["LAB", "CMYK", "1", "L"])
def test_masks_of_any_colour_model(tmp_path: Path, mode: str) -> None:
    """A LAB mask passed the check and ended the job as a program error."""
    path = tmp_path / "mask.tiff"
    Image.new("L", (32, 32), 255).convert("RGB").convert(mode if mode != "LAB" else "RGB").save(path)
    if mode == "LAB":
        Image.merge("LAB", [Image.new("L", (32, 32), level) for level in (255, 128, 128)]).save(path)
    assert open_mask(path).mode == "L"


def test_every_mode_has_a_request_that_says_what_is_idle() -> None:
    """The driver asks every request for its idle settings."""
    for kind in modes.MODES.values():
        assert isinstance(kind().idle(), tuple)
