"""Files that mean harm, through the command that takes them: a sentence, soon, in little memory, and nothing is written."""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import pytest

from eichi_utils import cli, lora_fit, paths
from tests.eichi_utils.helpers import names_in, picture

HOSTILE = sorted((Path(__file__).parents[1] / "cases" / "hostile").iterdir())
MOST_SECONDS, MOST_BYTES = 2.0, 300 * 2**20


def commands(file: Path, place: Path) -> list[list[str]]:
    """The commands that take such a file, by its name."""
    name, kind = file.name, file.name.split("_")[0]
    start = picture(place / "start.png")
    plan = ["render", "--plan", "--mode", "reverse", "--prompt", "a cat"]
    if file.suffix == ".zip":
        return [["sections", "import", str(file), "--uploads", str(place / "uploads")]]
    if file.suffix == ".json":
        return [["render", "--plan", "--request", str(file)], ["render", "--request", str(file), "--out", str(place / "out")]]
    if kind == "latents":
        return [["tensors", "info", str(file)], [*plan, "--image", start, "--append-latents", str(file)]]
    if kind == "lora":
        return [["lora", str(file)], [*plan, "--image", start, "--lora", str(file)]]
    if "parameters" in name:
        return [["render", "--plan", "--request", str(file)]]
    return [[*plan, "--image", str(file)], ["render", *plan[2:], "--image", str(file), "--out", str(place / "out")]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Whatever a command might write lies below the test's folder."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for name in ("DEFAULT_OUTPUTS", "DEFAULT_UPLOADS", "CACHE", "SETTINGS"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    lora_fit.published_layers()
    return tmp_path


@pytest.mark.parametrize("file", HOSTILE, ids=lambda file: file.name)
def test_a_hostile_file_ends_in_a_sentence(file: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """6 GB of a ZIP of 4 kB, a number of 400 digits, a regular expression that takes hours: each cost the program its life."""
    for command in commands(file, place):
        before, peak = names_in(place), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.process_time()
        code = ended(command)
        seconds = time.process_time() - began
        said = capsys.readouterr()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
        assert code in (0, 2) and "Traceback" not in said.err, (command, said.err[-1000:])
        assert code == 2 or says_all(file), (command, said.out[-500:])
        assert (said.out + said.err).strip(), command
        assert seconds < MOST_SECONDS and grown < MOST_BYTES, (command, seconds, grown)
        assert names_in(place) == before


def ended(command: list[str]) -> int:
    """The command line's code; argparse leaves with its own."""
    try:
        return cli.main(command)
    except SystemExit as error:
        return int(error.code or 0)


def says_all(file: Path) -> bool:
    """Files that have something good: what is wrong with them is told beside it, or has no part in what was asked for."""
    return file.name.startswith(("png_palette", "png_parameters", "latents_", "lora_alpha", "sections_yaml_base60"))
