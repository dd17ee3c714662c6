"""Test the user's folder of LoRA files: what is found in it, what lies beside a file, and uploads."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from eichi_utils.problems import UserError
from eichi_utils.requests import loras
from eichi_utils.requests.loras import is_below
from eichi_utils.user_data.lora_library import About, about, found, keep_upload
from lora_utils.files import read_header
from tests.diffusers_helper.inputs import GOLDEN
from tests.eichi_utils import helpers

FILE = GOLDEN / "lora" / "kohya_framepack_names.safetensors"
CASES = Path(__file__).parents[2] / "cases"


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
    (folder / "linked").symlink_to(shared.parent)
    (folder / "style" / "again").symlink_to(folder)
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
    """Trigger words are read from what tools and users put beside a LoRA file and from the file itself, the nearest source
    first."""
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
    """A picture is read from a file's metadata; a damaged one there or beside the file causes no error."""
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
    """An uploaded LoRA is kept once for equal content, beside another of its name; a film's metadata names it like any
    other."""
    upload = tmp_path / "upload" / "ink.v1.safetensors"
    put(upload)
    assert keep_upload(upload) == "uploads/ink.v1.safetensors" == keep_upload(upload)
    assert (folder / "uploads" / "ink.v1.safetensors").read_bytes() == upload.read_bytes()
    put(upload, {"other": "one"})
    assert keep_upload(upload) == "uploads/ink.v1-2.safetensors" == keep_upload(upload)
    assert found() == ("uploads/ink.v1-2.safetensors", "uploads/ink.v1.safetensors")
    assert loras.named(folder / "uploads" / "ink.v1.safetensors") == "uploads/ink.v1.safetensors"


def test_an_upload_loses_what_nobody_sees_of_its_name(folder: Path, tmp_path: Path) -> None:
    """U+202E turns the end of a name around, and was kept."""
    assert keep_upload(put(tmp_path / "upload" / "ink\u202e\u200b猫.safetensors")) == "uploads/ink猫.safetensors"
    assert keep_upload(put(tmp_path / "upload" / "\u202e.safetensors", {"other": "one"})) == "uploads/lora.safetensors"


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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp932"])
def test_words_in_any_encoding(folder: Path, encoding: str) -> None:
    """A text from a Japanese editor was shown as garbage, and one of UTF-16 as nothing but NUL."""
    words = "花火 着物, hanabi style"
    path = put(folder / "hanabi.safetensors")
    path.with_suffix(".txt").write_bytes(f"{words}\r\n".encode(encoding))
    assert about(path).words == words
    path.with_suffix(".json").write_bytes(json.dumps({"activation text": f"{words}!"}, ensure_ascii=False).encode(encoding))
    assert about(path).words == f"{words}!"


def test_the_words_of_a_japanese_editor(folder: Path) -> None:
    path = put(folder / "hanabi.safetensors")
    shutil.copy(CASES / "lora_trigger_words_shift_jis.txt", path.with_suffix(".txt"))
    assert about(path).words == "花火 着物, hanabi style"


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"trainedWords": ["\\ud800"]}', '{"trainedWords": "x", "n": NaN}', " " * 2**21]
)
def test_descriptions_that_no_tool_wrote_say_nothing(folder: Path, text: str) -> None:
    """Half a surrogate pair ended where the page was sent."""
    path = put(folder / "a.safetensors", {"ss_trigger_words": "own"})
    path.with_suffix(".civitai.info").write_text(text)
    assert about(path).words == "own"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_what_lies_beside_a_file_and_is_no_file(folder: Path) -> None:
    path = put(folder / "a.safetensors", {"ss_trigger_words": "own"})
    for suffix in (".txt", ".json", ".png"):
        os.mkfifo(path.with_suffix(suffix))
    path.with_suffix(".civitai.info").mkdir()
    assert about(path) == About("own")
    assert about(folder / ("x" * 5000 + ".safetensors")) == About()


def thumbnail(picture: bytes) -> dict[str, str]:
    return {"modelspec.thumbnail": "data:image/png;base64," + base64.b64encode(picture).decode()}


@pytest.mark.slow
def test_thumbnails_that_no_trainer_wrote(folder: Path) -> None:
    """PostScript, which Pillow would hand to a program of its own; a picture of 400 megapixels; nine megabytes of nothing."""
    small = (CASES / "hostile" / "eps_endless_loop_named.png").read_bytes()
    bomb = io.BytesIO()
    Image.new("1", (5000, 5000)).save(bomb, "PNG")
    for number, data in enumerate((small, bomb.getvalue(), bomb.getvalue()[:90], b"\0" * 9_000_000)):
        path = folder / f"{number}.safetensors"
        put(path)
        save_file({"large": torch.zeros(2**25)} if len(data) > 2**20 else load_file(FILE), path, thumbnail(data))
        assert read_header(path).metadata and about(path).picture == b""


def test_uploads_of_one_name_at_once(folder: Path, tmp_path: Path) -> None:
    """Two uploads of one name at once used a single hidden file: one found it gone, or one lay there under the other's name."""
    uploads = [tmp_path / str(number) / "ink.safetensors" for number in range(8)]
    for number, upload in enumerate(uploads):
        put(upload, {"number": str(number // 2)})
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(keep_upload, uploads))
    for name, upload in zip(names, uploads, strict=True):
        assert (folder / name).read_bytes() == upload.read_bytes()
    assert len(set(names)) == 4 and len(list((folder / "uploads").iterdir())) == 4


def test_an_upload_to_a_file_system_without_links(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", lambda *names: (_ for _ in ()).throw(PermissionError(1, "Operation not permitted")))
    upload = put(tmp_path / "ink.safetensors")
    assert keep_upload(upload) == "uploads/ink.safetensors" == keep_upload(upload)
    put(upload, {"other": "one"})
    assert keep_upload(upload) == "uploads/ink-2.safetensors"
    assert len(list((folder / "uploads").iterdir())) == 2


def test_an_upload_with_the_longest_name(folder: Path, tmp_path: Path) -> None:
    """The temporary name of an upload is no longer than its final name, so that the longest name can be copied."""
    upload = put(tmp_path / ("x" * 243 + ".safetensors"))
    assert keep_upload(upload) == f"uploads/{upload.name}"


def test_a_large_upload_is_not_read_into_memory(folder: Path, tmp_path: Path) -> None:
    upload = tmp_path / "large.safetensors"
    save_file({"a": torch.zeros(2**24)}, upload)
    tracemalloc.start()
    keep_upload(upload)
    keep_upload(upload)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22
