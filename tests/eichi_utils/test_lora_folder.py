"""The user's folder of LoRA files: what is found in it, what lies beside a file, and uploads."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from eichi_utils import loras
from eichi_utils.lora_folder import About, about, found, keep_upload
from eichi_utils.loras import is_below
from eichi_utils.problems import UserError
from tests.diffusers_helper.inputs import GOLDEN
from tests.eichi_utils import helpers

FILE = GOLDEN / "lora" / "kohya_framepack_names.safetensors"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(loras, "LORAS", tmp_path / "lora")
    return tmp_path / "lora"


def put(path: Path, metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(load_file(FILE), path, metadata)
    return path


def test_files_of_the_folder_and_those_below_it(folder: Path, tmp_path: Path) -> None:
    """Whatever the case of the suffix, with dots in the name, through links, even to a folder above; nothing else."""
    assert found() == ()
    for name in ("b.safetensors", "A.SAFETENSORS", "style/ink.v1.SafeTensors", "絵/水彩.safetensors", ".part.safetensors"):
        put(folder / name)
    (folder / "c.pt").write_bytes(b"x")
    shared = put(tmp_path / "shared" / "far.safetensors")
    os.symlink(shared.parent, folder / "linked")
    os.symlink(folder, folder / "style" / "again")
    assert found() == (
        "A.SAFETENSORS",
        "b.safetensors",
        "linked/far.safetensors",
        "style/ink.v1.SafeTensors",
        "絵/水彩.safetensors",
    )
    assert all(loras.Lora(name).check("loras/0") == [] for name in found())


@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("a.safetensors", True),
        ("x/../a", False),
        ("../a", False),
        ("..\\a", False),
        ("/etc/a", False),
        ("x/a..b", True),
        ("", False),
    ],
)
def test_a_name_that_can_only_mean_a_file_of_the_folder(name: str, below: bool) -> None:
    assert is_below(name) is below


def test_words_beside_a_file_and_in_it(folder: Path) -> None:
    """What tools and users put there, the nearest to the file's own page first."""
    path = put(folder / "ink.v1.safetensors", {"modelspec.trigger_phrase": "in ink", "ss_trigger_words": "other"})
    assert about(path) == About("in ink")
    (folder / "ink.v1.txt").write_text("  ink wash,\n brush  ", encoding="utf-8")
    assert about(path).words == "ink wash, brush"
    (folder / "ink.v1.json").write_text(json.dumps({"activation text": "inky"}))
    assert about(path).words == "inky"
    (folder / "ink.v1.civitai.info").write_text(json.dumps({"trainedWords": ["inkstyle", "sumi"]}))
    assert about(path).words == "inkstyle, sumi"
    for damaged in ("{", "[]", '{"trainedWords": []}', '{"trainedWords": [5]}'):
        (folder / "ink.v1.civitai.info").write_text(damaged)
        assert about(path).words == "inky"
    (folder / "long.txt").write_bytes(b"\xff" + b"word " * 10_000)
    assert len(about(put(folder / "long.safetensors")).words) <= 600
    assert about(folder / "gone.safetensors") == About()


@pytest.mark.parametrize("suffix", [".png", ".preview.png", ".jpg", ".webp"])
def test_a_picture_beside_a_file(folder: Path, suffix: str) -> None:
    path = put(folder / "ink.safetensors")
    Image.new("RGB", (800, 400), "red").save(path.with_suffix(suffix))
    with Image.open(io.BytesIO(about(path).picture)) as small:
        assert small.size == (192, 96) and small.convert("RGB").getpixel((5, 5))[0] > 240
    # Another one under the same name is another picture.
    Image.new("RGB", (400, 800), "blue").save(path.with_suffix(suffix))
    with Image.open(io.BytesIO(about(path).picture)) as small:
        assert small.size == (96, 192)


def test_a_picture_in_a_file(folder: Path) -> None:
    """And a damaged one in either place, which is no reason for anything."""
    data = io.BytesIO()
    Image.new("RGB", (64, 64), "blue").save(data, "JPEG")
    text = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
    path = put(folder / "a.safetensors", {"modelspec.thumbnail": text})
    (folder / "a.png").write_bytes(b"no picture")
    with Image.open(io.BytesIO(about(path).picture)) as small:
        assert small.size == (64, 64)
    for damaged in (text[:60], "data:image/jpeg;base64,!", "x", text.replace("/9j/", "AAAA")):
        assert about(put(folder / "b.safetensors", {"modelspec.thumbnail": damaged})).picture == b""


def test_an_upload_stays_in_the_folder(folder: Path, tmp_path: Path) -> None:
    """Once for equal content, beside another of its name; a film's metadata names it as it does every other."""
    upload = tmp_path / "upload" / "ink.v1.safetensors"
    put(upload)
    assert keep_upload(upload) == "uploads/ink.v1.safetensors" == keep_upload(upload)
    assert (folder / "uploads" / "ink.v1.safetensors").read_bytes() == upload.read_bytes()
    put(upload, {"other": "one"})
    assert keep_upload(upload) == "uploads/ink.v1-2.safetensors" == keep_upload(upload)
    assert found() == ("uploads/ink.v1-2.safetensors", "uploads/ink.v1.safetensors")
    assert loras.named(folder / "uploads" / "ink.v1.safetensors") == "uploads/ink.v1.safetensors"


@pytest.mark.parametrize("kind", ["cut", "pickle", "other"])
def test_an_upload_that_is_no_lora_file_is_refused_with_the_reason(folder: Path, tmp_path: Path, kind: str) -> None:
    upload = tmp_path / {"cut": "a.safetensors", "pickle": "a.pt", "other": "a.zip"}[kind]
    upload.write_bytes(FILE.read_bytes()[:-1])
    with pytest.raises(UserError) as error:
        keep_upload(upload)
    key = {"cut": "lora_damaged", "pickle": "lora_pickle", "other": "lora_suffix"}[kind]
    assert helpers.found(error.value.problems) == {("loras/file", key)}
    assert error.value.problems[0].values["file"] == upload.name and not folder.exists()


def test_an_upload_to_a_folder_that_nobody_may_write_to(folder: Path, tmp_path: Path) -> None:
    folder.write_text("a file in the folder's way")
    shutil.copy(FILE, tmp_path / "a.safetensors")
    with pytest.raises(UserError) as error:
        keep_upload(tmp_path / "a.safetensors")
    assert helpers.found(error.value.problems) == {("loras", "lora_folder_not_writable")}
