"""Test that mistakes on the command line are found at once, and named as the user wrote them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusers_helper.models.attention import LOADERS
from eichi_utils.cli import main
from eichi_utils.cli.output import place_of
from eichi_utils.files.paths import ROOT
from eichi_utils.render.engine import ATTENTION, DEVICE
from locales import Translator


@pytest.mark.process
def test_a_missing_file_is_told_by_its_flag_and_at_once(pictures: list[str], tmp_path: Path) -> None:
    """A missing file was called `controls/0/image`, and told only after ten seconds, because torch was imported first."""
    code = (
        "import sys; from eichi_utils.cli.main import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'diffusers', 'transformers'} & set(sys.modules); "
        "sys.exit(f'imports {heavy}' if heavy else code)"
    )
    flags = ["render", "--mode", "single", "--image", pictures[0], "--prompt", "p", "--out", str(tmp_path), "--lang", "en"]
    flags += ["--reference", str(tmp_path / "gone.png"), "--attention", "magic", "--device", "warp"]
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    places = {line.split(":")[0] for line in done.stderr.splitlines()}
    assert {place for place in places if place.startswith("--")} == {"--reference", "--attention", "--device"}
    assert "controls" not in done.stderr


@pytest.mark.parametrize(
    ("field", "flags", "place"),
    [
        ("image", ["--image", "a.png"], "--image"),
        ("controls/0/image", ["--reference", "a.png"], "--reference"),
        ("controls/1/mask", ["--reference", "a.png", "--reference", "b.png", "--reference-mask", "c"], "--reference-mask #2"),
        ("keyframes/2", ["--keyframe", "2=a.png"], "--keyframe 2="),
        ("loras/0", ["--lora", "a"], "--lora"),
        ("loras/1/strength", ["--lora", "a", "--lora", "b"], "--lora #2"),
        ("section_prompts", ["--section-prompt", "x"], "--section-prompt"),
        ("prompt", [], "--prompt"),
        ("models", [], "--models"),
        ("controls/0/image", ["--request", "r.json"], "controls/0/image"),
        ("image", ["--request", "r.json", "--image", "a.png"], "--image"),
        ("", [], ""),
    ],
)
def test_a_problem_is_called_as_the_user_wrote_it(field: str, flags: list[str], place: str) -> None:
    """A problem is named by the flag that it came from, or by its place in the request's file."""
    assert place_of(field, main.make_parser(Translator("en")).parse_args(["render", *flags])) == place


def test_what_is_checked_without_torch_is_what_torch_knows() -> None:
    assert set(ATTENTION) == {"auto", *LOADERS}
    for name in ("auto", "cpu", "cuda", "cuda:0"):
        assert DEVICE.fullmatch(name)


@pytest.mark.process
@pytest.mark.skipif(os.name == "nt", reason="written for a POSIX shell")
def test_a_film_is_made_where_nobody_can_be_told(pictures: list[str], checkpoint: Path, tmp_path: Path) -> None:
    """Closed streams and an ASCII terminal ended `eichi render` in a traceback, when the film was there or before."""
    flags = ["render", "--mode", "single", "--image", pictures[0], "--prompt", "猫", "--size", "128", "--steps", "1"]
    flags += ["--models", str(checkpoint), "--device", "cpu", "--cache-gb", "0", "--out", str(tmp_path), "--lang", "ja"]
    command = ["/bin/sh", "-c", '"$0" -m eichi_utils.cli.main "$@" >&- 2>&-', sys.executable, *flags]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert any(path.suffix == ".png" and "_input" not in path.stem for path in tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--seed", "--guidance-scale", "--lora"])
@pytest.mark.parametrize("digits", ["9" * 5000, "1e999", "-inf"])
def test_a_number_that_is_none_is_named_as_it_was_written(flag: str, digits: str, capsys: pytest.CaptureFixture) -> None:
    """A seed of 5,000 digits was answered by "inf is not possible here"."""
    value = f"a={digits}" if flag == "--lora" else digits
    assert main.main(["render", "--dry-run", f"{flag}={value}", "--lang", "en"]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(flag) and "possible" in line]
    assert len(said) == 1 and digits[:70] in said[0] and len(said[0]) < 200


@pytest.mark.parametrize(
    "flags", [["render", "--reserve-gb"], ["render", "--cache-gb"], ["tensors", "trim", "a", "--trim-start"]]
)
def test_a_flag_of_too_many_digits_is_answered_in_a_line(flags: list[str], capsys: pytest.CaptureFixture) -> None:
    """All digits were said again, or "inf"."""
    with pytest.raises(SystemExit) as end:
        main.main([*flags, "9" * 5000])
    said = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and "9" * 70 in said and len(said) < 300


RENDER = ["render", "--image", "{picture}", "--prompt", "x", "--dry-run"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
@pytest.mark.parametrize(
    ("flags", "place"),
    [
        ([*RENDER, "--out", "loop"], "--out"),
        ([*RENDER, "--out", "loop/x"], "--out"),
        ([*RENDER, "--out", "{deep}"], "--out"),
        ([*RENDER, "--out", "o", "--log-folder", "loop"], "--log-folder"),
        ([*RENDER, "--out", "o", "--log-folder", "{deep}"], "--log-folder"),
        ([*RENDER, "--out", "o", "--models", "loop"], "--models"),
        (["render", "--request", "{request}", "--dry-run", "--out", "o"], "output_folder"),
        (["lora", "bake", "{lora}", "--out", "loop"], "--out"),
        (["tensors", "trim", "{picture}", "--out", "loop/a.safetensors"], "--out"),
        (["tensors", "trim", "loop"], "files"),
        (["tensors", "trim", "loop", "--out", "a.safetensors"], "files"),
        (["sections", "export", "{request}", "loop/a.zip"], "zip"),
        (["sections", "export", "{request}", "{deep}/a.zip"], "zip"),
        (["sections", "import", "a.zip", "--uploads", "loop"], "--uploads"),
    ],
)  # fmt: skip
def test_a_circle_of_links_is_told_by_its_flag(
    flags: list[str], place: str, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Most flags ended in a traceback, and a folder of 2,000 levels passed the dry run."""
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    document = {"mode": "single", "image": pictures[0], "prompt": "x", "output_folder": "loop/x"}
    Path("request.json").write_text(json.dumps(document))
    names = {
        "picture": pictures[0],
        "deep": "/".join("d" * 2000),
        "request": "request.json",
        "lora": str(ROOT / "tests/golden/lora/kohya_framepack_names.safetensors"),
    }
    if "{request}" in flags and "render" in flags:
        Path("o").mkdir()
        Path("o/loop").symlink_to("loop")
    assert main.main([*(flag.format_map(names) for flag in flags), "--lang", "en"]) == 2
    places = [line.split(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert place in places
