"""Test request files from elsewhere: mistakes end in a sentence, and nothing is written to unexpected places."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from eichi_utils.cli import main
from eichi_utils.exchange.metadata import png_info, read_document
from eichi_utils.exchange.video import write_png
from eichi_utils.files.pictures import open_picture
from eichi_utils.requests import modes
from eichi_utils.requests.request import to_json
from locales import Translator
from tests.eichi_utils.helpers import names_in, request

HOSTILE = Path(__file__).parents[2] / "cases" / "hostile"


def eichi(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, list[dict], str]:
    """Run `eichi render`; return the exit code, the problems and stderr."""
    capsys.readouterr()
    code = main.main(["render", *map(str, arguments), "--json", "--lang", "en"])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, json.loads(out.splitlines()[-1]).get("problems", []), err


@pytest.mark.parametrize("name", sorted(path.name for path in HOSTILE.glob("request_*.json")))
def test_strange_numbers_and_names(name: str, tmp_path: Path, pictures: list[str], capsys: pytest.CaptureFixture) -> None:
    """A name of 5,000 characters and a seed of 400 digits were tracebacks."""
    shutil.copy(HOSTILE / name, tmp_path / name)
    shutil.copy(pictures[0], tmp_path / "start.jpg")
    before, started = names_in(tmp_path), time.process_time()
    code, problems, _ = eichi(capsys, "--request", tmp_path / name, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 2 and problems
    assert time.process_time() - started < 5
    assert names_in(tmp_path) == before


@pytest.mark.parametrize("seconds", [-1e308, 1e308, 1e22])
def test_a_number_out_of_range_is_said_in_few_characters(seconds: float, pictures: list[str]) -> None:
    """-1e308 seconds were a sentence with 309 digits."""
    (problem,) = modes.from_json({**to_json(request("reverse", pictures[0])), "seconds": seconds}).check()
    assert problem.key == "out_of_range" and len(Translator("en")(f"problem.{problem.key}", **problem.values)) < 60


@pytest.mark.parametrize("kind", ["json", "png"])
def test_a_file_chooses_no_folder_outside(
    kind: str, tmp_path: Path, pictures: list[str], checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    """A stranger's request named a folder, and `--out` did not keep it from writing there; who types the folder may."""
    elsewhere = tmp_path / "elsewhere"
    document = to_json(request("single", pictures[0])) | {"output_folder": str(elsewhere)}
    file = tmp_path / "a.json"
    file.write_text(json.dumps(document))
    if kind == "png":
        # As an earlier version wrote it, with the folder's path.
        made = png_info(request("single", pictures[0]))
        made.chunks = [chunk for chunk in made.chunks if b"eichi" not in chunk[1][:6]]
        made.add_text("eichi", json.dumps(document))
        write_png(tmp_path / "a.png", open_picture(pictures[0]), made)
        file = tmp_path / "a.png"
    flags = ["--request", file, "--out", tmp_path / "out", "--models", checkpoint, "--device", "cpu"]
    before = names_in(tmp_path)
    code, problems, said = eichi(capsys, *flags)
    assert code == 2 and [problem["key"] for problem in problems] == ["folder_from_file"]
    assert str(elsewhere) in said and names_in(tmp_path) == before
    for more, wanted in ((["--output-folder", ""], "out"), (["--output-folder", elsewhere], "elsewhere")):
        code, _, _ = eichi(capsys, *flags, *more, "--steps", 1)
        assert code == 0 and any((tmp_path / wanted).glob("*_oneframe.png")), more
    document["output_folder"] = "cats"
    (tmp_path / "b.json").write_text(json.dumps(document))
    code, _, _ = eichi(capsys, *flags, "--request", tmp_path / "b.json", "--steps", 1)
    assert code == 0 and any((tmp_path / "out" / "cats").glob("*_oneframe.png"))


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_encodings_of_json_files(coding: str, tmp_path: Path, pictures: list[str]) -> None:
    """Windows' editor saves with a byte order mark or in UTF-16."""
    document = to_json(request("reverse", pictures[0], prompt="猫が走る"))
    mark = "\ufeff" if coding == "utf-16-le" else ""
    (tmp_path / "a.json").write_bytes((mark + json.dumps(document, ensure_ascii=False)).encode(coding))
    assert read_document(tmp_path / "a.json") == json.loads(json.dumps(document))


def test_a_folder_to_look_in(tmp_path: Path, pictures: list[str], capsys: pytest.CaptureFixture) -> None:
    """A film names its picture by content; where it does not lie, it is missed by name, and `--look-in` finds it."""
    made = request("single", pictures[0])
    write_png(tmp_path / "a.png", open_picture(pictures[0]), png_info(made))
    flags = ["--request", tmp_path / "a.png", "--dry-run", "--size", 640]
    code, problems, said = eichi(capsys, *flags)
    assert code == 2 and [problem["key"] for problem in problems] == ["picture_missing"]
    assert Path(pictures[0]).name in said
    assert eichi(capsys, *flags, "--look-in", tmp_path, "--look-in", Path(pictures[0]).parent)[0] == 0
    assert eichi(capsys, *flags, "--image", pictures[1])[0] == 0
