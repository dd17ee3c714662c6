"""Test hostile files with the commands that take them: a sentence, soon, in little memory, and nothing is written."""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from eichi_utils.cli import main
from eichi_utils.files import paths
from eichi_utils.models import lora_fit
from tests.eichi_utils.helpers import names_in, picture

HOSTILE = sorted((Path(__file__).parents[2] / "cases" / "hostile").iterdir())
MOST_SECONDS, MOST_BYTES = 2.0, 300 * 2**20
# Files that hold something good: what is wrong with them is told beside it.
SAYS_ALL = ("sections_yaml_base60_number_hangs_import.zip",)
# Words that a sentence must have where only a part of the file is wrong, so that the file's name is not in it.
IN_IT = defaultdict(
    lambda: "\0",
    {
        "request_lora_name_5000_characters.json": "loras/0/file",
        "request_output_folder_elsewhere.json": "output_folder",
        "sections_prompt_lone_surrogate.zip": "sections.yaml",
        "sections_yaml_timestamp_tag.zip": "sections.yaml",
        "zip_ten_bz2_entries_declare_190_MB_each.zip": "sections/000.png has 181 MB",
        "sections_yaml_base60_number_hangs_import.zip": "seed: 1:00:00",
    },
)


def commands(file: Path, place: Path) -> list[list[str]]:
    """Return the commands that take a file, by the beginning of its name."""
    name, kind = file.name, file.name.split("_")[0]
    start = picture(place / "start.png")
    plan = ["render", "--dry-run", "--mode", "reverse", "--prompt", "a cat"]
    if file.suffix == ".zip":
        return [["sections", "import", str(file), "--uploads", str(place / "uploads")]]
    if file.suffix == ".json":
        return [
            ["render", "--dry-run", "--request", str(file)],
            ["render", "--request", str(file), "--out", str(place / "out")],
        ]
    if kind == "latents":
        return [["tensors", "info", str(file)], [*plan, "--image", start, "--append-latents", str(file)]]
    if kind == "lora":
        return [["lora", str(file)], [*plan, "--image", start, "--lora", str(file)]]
    if file.suffix == ".mp4":
        return [["render", "--dry-run", "--request", str(file)], [*plan, "--image", str(file)]]
    if "parameters" in name or "texts" in name:
        return [["render", "--dry-run", "--request", str(file)]]
    return [[*plan, "--image", str(file)], ["render", *plan[2:], "--image", str(file), "--out", str(place / "out")]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the test's folder, and let everything that a command might write lie below it."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for name in ("DEFAULT_OUTPUTS", "DEFAULT_UPLOADS", "CACHE", "SETTINGS"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    lora_fit.published_layers()
    return tmp_path


@pytest.fixture
def given(place: Path) -> Callable[[Path], Path]:
    """Return a function that copies a file beside the start picture that hostile requests name."""

    def copied(file: Path) -> Path:
        (place / "given").mkdir()
        picture(place / "given" / "start.jpg")
        return Path(shutil.copy(file, place / "given"))

    return copied


@pytest.mark.parametrize("file", HOSTILE, ids=lambda file: file.name)
def test_a_hostile_file_ends_in_a_sentence(
    file: Path, place: Path, given: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """6 GB of a ZIP of 4 kB, a number of 400 digits, a regular expression that takes hours: each cost the program its life.

    A film of 688 bytes that promises 80 million frames took 2.9 GB.
    """
    for command in commands(given(file), place):
        before, peak = names_in(place), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.process_time()
        code = ended(command)
        seconds = time.process_time() - began
        said = capsys.readouterr()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
        assert code == (0 if file.name in SAYS_ALL else 2) and "Traceback" not in said.err, (command, said.err[-1000:])
        # It is the file that is refused, or something in it, not a flag of the command.
        text = said.out + said.err
        assert "usage:" not in text and (file.name in text or IN_IT[file.name] in text), (command, text)
        assert seconds < MOST_SECONDS and grown < MOST_BYTES, (command, seconds, grown)
        assert names_in(place) == before


def ended(command: list[str]) -> int:
    """Run the command line and return its exit code, also where argparse raises SystemExit."""
    try:
        return main.main([*command, "--lang", "en"])
    except SystemExit as error:
        return int(error.code or 0)
