"""Test the command line in one process: runs, exit codes, output, and answers to mistakes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from diffusers_helper.models.transformer import PackedTransformer
from eichi_utils.cli import demo, main
from eichi_utils.cli.output import flag_of
from eichi_utils.cli.progress import Progress
from eichi_utils.exchange.metadata import read_document
from eichi_utils.files.paths import ROOT
from eichi_utils.jobs.job_log import clock
from eichi_utils.jobs.view import View
from eichi_utils.models.catalogue import Models
from eichi_utils.requests import modes
from locales import LANGUAGES, Translator
from tests.eichi_utils.helpers import decoded, names_in

pytestmark = pytest.mark.slow

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def eichi(capsys: pytest.CaptureFixture) -> Run:
    """Return `eichi(...)`, which runs the command line in English: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        language = () if "--lang" in arguments else ("--lang", "en")
        capsys.readouterr()
        try:
            code = main.main([str(argument) for argument in (*arguments, *language)])
        except SystemExit as left:
            code = left.code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


@pytest.fixture
def quick(checkpoint: Path, pictures: list[str], tmp_path: Path) -> list:
    """Return the flags of the quickest run; its results are in tmp_path / "out"."""
    where = ["--models", checkpoint, "--device", "cpu", "--out", tmp_path / "out"]
    return ["--mode", "single", "--image", pictures[0], "--prompt", "a cat", "--size", 128, "--steps", 2, *where]


def last_json(out: str) -> dict:
    """Parse the last line of stdout."""
    return json.loads(out.splitlines()[-1])


@pytest.mark.process
def test_dry_run_prints_a_plan_without_torch(pictures: list[str], tmp_path: Path) -> None:
    """A dry run imports neither torch nor gradio, each of which takes seconds, and so answers at once."""
    code = (
        "import sys; from eichi_utils.cli.main import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'gradio', 'diffusers', 'transformers'} & set(sys.modules); "
        "sys.exit(f'imports {heavy}' if heavy else code)"
    )
    flags = ["render", "--image", pictures[0], "--prompt", "猫", "--seconds", "4", "--dry-run", "--json"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    plan = last_json(done.stdout.decode())
    assert (plan["checkpoint"], plan["grows"], plan["output"]) == ("framepack", "front", "film")
    assert (plan["latents"], plan["frames"], plan["seconds"]) == (28, 109, 3.633)
    assert [section["frames"][0] for section in plan["sections"]] == [19, 10, 1]
    assert plan["sections"][0]["clean"][0] == {"source": "start", "at": [0], "skip": 0, "scale": 1.0, "mask": None}
    assert plan["sections"][0]["prompt"] == "猫"
    assert plan["closing"]["source"] == "start"


def test_dry_run_for_reading(eichi: Run, pictures: list[str], tmp_path: Path) -> None:
    """A line of totals and one for each section; no folder is made."""
    code, out, _err = eichi(
        "render", "--mode", "forward", "--image", pictures[0], "--prompt", "p", "--seconds", 2,
        "--section-prompt", "1=and jumps", "--out", tmp_path / "out", "--dry-run",
    )  # fmt: skip
    assert code == 0
    lines = out.splitlines()
    assert len(lines) == 4 and "GiB of RAM" in lines.pop(1)
    assert "73 frames" in lines[0]
    assert "20-28" in lines[1]
    assert "start@0" in lines[1]
    assert lines[2].endswith("and jumps")
    assert not (tmp_path / "out").exists()


def test_render_says_where_the_file_is(eichi: Run, quick: list, tmp_path: Path) -> None:
    """stdout is the files, result first, and nothing else; progress and the end go to stderr."""
    code, out, err = eichi("render", *quick, "--seed", 3)
    assert code == 0
    files = [Path(line) for line in out.splitlines()]
    assert {file.name for file in files} == names_in(tmp_path / "out")
    assert files[0].name.endswith("_oneframe.png")
    assert all(file.is_absolute() for file in files)
    assert "sampling" in err
    assert "100%" not in err.splitlines()[0]
    assert "Done: 1 frames" in err


def test_render_as_json_and_again_from_its_files(eichi: Run, quick: list, tmp_path: Path, pictures: list[str]) -> None:
    """The last line of stdout is the result; a drawn seed is named; PNG, MP4 and JSON make the same again, flags change
    single fields."""
    code, out, _ = eichi("render", *quick, "--json")
    first = last_json(out)
    assert code == 0
    assert {"files", "frames", "seconds", "seed", "took"} <= set(first)
    assert (first["frames"], first["seconds"], first["state"]) == (1, 0.033, "finished")
    assert first["seed"] >= 0
    assert first["took"] > 0 and first["steps"] == first["computed_steps"] > 0
    document = read_document(first["files"][0])
    assert document["seed"] == first["seed"]

    where = [*quick[quick.index("--models") :], "--look-in", Path(pictures[0]).parent]
    same = last_json(eichi("render", "--request", first["files"][0], *where, "--json")[1])
    assert Path(same["files"][0]).read_bytes() == Path(first["files"][0]).read_bytes()
    (tmp_path / "request.json").write_text(json.dumps(document))
    other = last_json(eichi("render", "--request", tmp_path / "request.json", "--seed", 5, *where, "--json")[1])
    assert read_document(other["files"][0]) == {**document, "seed": 5}


def test_a_film_from_a_film(
    eichi: Run, quick: list, tmp_path: Path, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--request film.mp4 --seed 5` is the same film with another seed, in the folder of its picture."""
    monkeypatch.chdir(Path(pictures[0]).parent)
    film = ["--mode", "reverse", "--seconds", 0.5, "--window", 4.5, "--step-cache", "none", "--seed", 1]
    first = last_json(eichi("render", *quick, *film, "--json")[1])
    assert (first["frames"], first["seconds"]) == (21, 0.7)
    assert len(decoded(first["files"][0])) == 21
    where = quick[quick.index("--models") :]
    again = last_json(eichi("render", "--request", first["files"][0], *where, "--json")[1])
    assert (decoded(again["files"][0]) == decoded(first["files"][0])).all()
    longer = ["--seconds", 4, "--window", 9, "--dry-run", "--json"]
    code, out, _ = eichi("render", "--request", first["files"][0], *longer, *where)
    assert (code, last_json(out)["frames"]) == (0, 109)


def test_every_mistake_is_said_and_nothing_is_written(eichi: Run, quick: list, tmp_path: Path) -> None:
    """All at once, one sentence a line, exit code 2, before a folder is made or a network read."""
    bad = [
        "--image", tmp_path / "gone.png", "--mode", "reverse", "--seconds", "nan", "--steps", "many", "--seed", "1.5",
        "--padding", 7, "--size", 641, "--window", "nine", "--step-cache", "magic", "--keyframe", "first.png",
        "--section-prompt", "x=jump", "--guidance-scale", 0, "--crf", 52,
    ]  # fmt: skip
    code, out, err = eichi("render", *quick, *bad)
    assert (code, out) == (2, "")
    lines = err.splitlines()
    fields = {
        "image", "seconds", "steps", "seed", "padding", "size", "window", "step_cache", "keyframes", "section_prompts",
        "guidance_scale", "crf",
    }  # fmt: skip
    assert {re.split("[: ]", line)[0] for line in lines} == {flag_of(field) for field in fields}
    assert len(lines) == len(fields)
    assert not (tmp_path / "out").exists()
    code, out, _ = eichi("render", *quick, *bad, "--json")
    assert code == 2
    assert last_json(out)["files"] == []
    assert {problem["field"] for problem in last_json(out)["problems"]} == fields
    assert all(problem["text"] and problem["key"] for problem in last_json(out)["problems"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_mistakes_are_said_in_the_users_language(language: str, eichi: Run, tmp_path: Path) -> None:
    """The command line prints the sentence of the language's catalogue."""
    code, _, err = eichi("render", "--image", tmp_path / "gone.png", "--prompt", "p", "--lang", language)
    assert code == 2
    assert Translator(language)("problem.picture_missing", file=str(tmp_path / "gone.png")) in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["paint"],
        ["render", "--colour", "red"],
        ["render", "--lang", "fr"],
        ["render", "--reference-index", "5"],
        ["render", "--prom", "abbreviated"],
    ],
)
def test_what_the_parser_refuses(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    """Unknown commands and flags are bad input: exit code 2."""
    with pytest.raises(SystemExit) as left:
        main.main(arguments)
    assert left.value.code == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[1]", "not_an_object"),
        ("null", "not_an_object"),
        ("{}", "mode_unknown"),
        ('{"mode": 5}', "mode_unknown"),
        ('{"mode": "sing', "request_damaged"),
        ("", "request_not_in_file"),
        (None, "request_missing"),
    ],
)
def test_request_files_that_hold_none(text: str | None, key: str, eichi: Run, tmp_path: Path) -> None:
    """Any file may be handed over; each gets its sentence and exit code 2."""
    if text is not None:
        (tmp_path / "r.json").write_text(text)
    code, out, _ = eichi("render", "--request", tmp_path / "r.json", "--json")
    assert code == 2
    assert [problem["key"] for problem in last_json(out)["problems"]] == [key]


def test_folders_that_cannot_be_written(eichi: Run, quick: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the way, and a disk that is too small: exit code 2, said before a network is loaded."""
    (tmp_path / "file").write_text("x")
    for out_folder in (tmp_path / "file", tmp_path / "file" / "below"):
        code, out, err = eichi("render", *quick, "--out", out_folder)
        assert (code, out) == (2, "")
        assert str(out_folder) in err
    usage = type("usage", (), {"free": 10 * 2**20})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    code, _, err = eichi("render", *quick)
    assert code == 2
    assert "10 MB free" in err
    assert names_in(tmp_path / "out") == set()


def test_models_devices_and_kernels_that_do_not_exist(eichi: Run, quick: list, tmp_path: Path) -> None:
    """Exit code 2 and the name of the flag."""
    for flag, value in (("--models", tmp_path / "gone"), ("--device", "warp"), ("--attention", "magic")):
        code, out, err = eichi("render", *quick, flag, value)
        assert (code, out) == (2, "")
        assert f"{flag.removeprefix('--')}: " in err


def test_a_failure_while_sampling(eichi: Run, quick: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure while sampling ends with exit code 1, the reason in a sentence, and the files so far."""

    def fail(*args, **settings):
        raise RuntimeError("as if broken")

    monkeypatch.setattr(PackedTransformer, "step", fail)
    code, out, err = eichi("render", *quick)
    assert code == 1
    assert "as if broken" in err
    assert all(Path(line).is_file() for line in out.splitlines())
    code, out, _ = eichi("render", *quick, "--json")
    result = last_json(out)
    assert (code, result["state"], [p["key"] for p in result["problems"]]) == (1, "failed", ["unexpected"])


def test_ctrl_c_stops_and_keeps_what_is_done(eichi: Run, quick: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the film with exit code 130; the files so far are named and exist."""
    pressed, show = [], Progress.show

    def show_and_press(self, view: View) -> None:
        show(self, view)
        if view.stage == "sample" and not pressed:
            pressed.append(view)
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "show", show_and_press)
    code, out, err = eichi("render", *quick, "--steps", 100, "--step-cache", "none", "--json")
    result = last_json(out)
    assert (code, result["state"]) == (130, "stopped")
    assert {Path(file).name for file in result["files"]} == names_in(tmp_path / "out")
    assert "Stopping" in err


def test_doctor(eichi: Run, checkpoint: Path, tmp_path: Path) -> None:
    """The doctor prints what a bug report needs: machine, packages, what would be used, and the state of the models."""
    code, out, _ = eichi("doctor", "--models", checkpoint, "--device", "cpu", "--json")
    found = last_json(out)
    assert code == 0
    assert set(found) == {
        "system", "python", "packages", "memory_gib", "memory_free_gib", "disk_free_gib", "cards", "cuda", "cudnn", "device",
        "transformer_dtype", "precision", "precision_rejected", "locks_memory", "attention", "attention_rejected", "compiled",
        "compiled_rejected", "cached_bytes", "models",
    }  # fmt: skip
    assert (found["device"], found["transformer_dtype"]) == ("cpu", "float32")
    assert (found["precision"], found["locks_memory"]) == ("float32", None)
    assert found["packages"]["torch"]
    assert found["compiled"] is False and "CUDA" in found["compiled_rejected"]
    code, out, _ = eichi("doctor", "--models", checkpoint, "--device", "cpu", "--compile", "off", "--json")
    assert last_json(out)["compiled_rejected"] == "not asked for"
    assert eichi("doctor", "--compile", "maybe")[0] == 2
    names = ("framepack", "framepack_f1", "miniature")
    assert found["models"] == {name: {"complete": True, "missing": []} for name in names}
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    (broken / "vae" / "config.json").unlink()
    code, out, _ = eichi("doctor", "--models", broken, "--device", "cpu")
    assert code == 0
    assert "vae" in next(line for line in out.splitlines() if "framepack_f1" in line)
    assert eichi("doctor", "--models", tmp_path / "gone")[0] == 2


def test_demo(eichi: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo works without any flag and in any mode, and flags change it."""
    code, out, _ = eichi("demo", "--dry-run", "--json")
    assert (code, last_json(out)["frames"]) == (0, 37)
    for mode in modes.MODES:
        assert eichi("demo", "--dry-run", "--mode", mode)[0] == 0
    monkeypatch.setattr(main, "Models", partial(Models, miniature=tmp_path / "none"))
    monkeypatch.setattr(demo, "UNTRAINED", tmp_path / "models" / "untrained")
    flags = ["demo", "--mode", "single", "--steps", 1, "--device", "cpu", "--out", tmp_path / "out", "--json"]
    code, out, err = eichi(*flags)
    assert code == 0
    assert "noise" in err
    assert Path(last_json(out)["files"][0]).is_file()
    made = (tmp_path / "models" / "untrained" / "vae" / "config.json").stat().st_mtime_ns
    assert names_in(tmp_path / "models").isdisjoint({"checkpoint"})
    assert eichi(*flags)[0] == 0
    assert (tmp_path / "models" / "untrained" / "vae" / "config.json").stat().st_mtime_ns == made


@pytest.mark.parametrize("language", LANGUAGES)
def test_help_in_every_language(language: str, capsys: pytest.CaptureFixture) -> None:
    """argparse formats help texts itself: a percent sign in one would be a crash."""
    for command in ("render", "demo", "doctor"):
        with pytest.raises(SystemExit) as left:
            main.main([command, "--lang", language, "--help"])
        assert left.value.code == 0
        out = capsys.readouterr().out
        assert "--json" in out
    assert Translator(language)("cli.doctor").split()[0] in out


def test_times_for_reading() -> None:
    """Minutes and seconds, hours only when there are some."""
    assert [clock(seconds) for seconds in (0, 59.6, 61, 3600, 3725)] == ["0:00", "1:00", "1:01", "1:00:00", "1:02:05"]
