"""Test how files of a request are named in files for others: by name and content, without paths, and found again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import av
import numpy
import pytest
from PIL import Image

from eichi_utils.exchange import named_files
from eichi_utils.exchange.latent_files import trim, write_latents
from eichi_utils.exchange.metadata import document_of, mp4_tags, png_info, read_document, read_placed_document
from eichi_utils.exchange.named_files import identity, lora_name, with_paths, without_paths
from eichi_utils.exchange.picture_text import read_text, request_fields
from eichi_utils.exchange.section_zip import export_sections, import_sections
from eichi_utils.exchange.video import FilmWriter, write_png
from eichi_utils.files.copies import keep
from eichi_utils.files.latent_header import read_info
from eichi_utils.requests import modes
from eichi_utils.requests.loras import Lora
from eichi_utils.requests.request import Request, to_json
from tests.eichi_utils.helpers import changed, latent_file, picture, request
from tests.eichi_utils.requests.test_request import LORA, other_values

MODES = list(modes.MODES)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a folder whose path has its owner's name, with four pictures."""
    folder = tmp_path / "Users" / "Erika Mustermann"
    folder.mkdir(parents=True)
    for number in range(4):
        picture(folder / f"{number}.png", seed=number)
    return folder


def whole(mode: str, home: Path) -> Request:
    """Make a request with every file that a mode can name, none of them in the LoRA folder."""
    lora = shutil.copy(LORA, home / "style.safetensors")
    values = other_values(mode, [str(home / f"{number}.png") for number in range(4)])
    return modes.MODES[mode](**{**values, "loras": (Lora(str(lora), 0.5),), "output_folder": str(home / "films")})


def written(made: Request, folder: Path) -> list[Path]:
    """Write the request into every kind of file that can hold it."""
    folder.mkdir(exist_ok=True)
    write_png(folder / "a.png", Image.new("RGB", (16, 16)), png_info(made))
    with FilmWriter(folder, "back", 30, mp4_tags(made)) as writer:
        writer.write(folder / "a.mp4", numpy.zeros((3, 16, 16, 3), numpy.uint8))
    import torch

    write_latents(folder / "a.safetensors", torch.zeros(1, 16, 2, 2, 2), made)
    return [folder / name for name in ("a.png", "a.mp4", "a.safetensors")]


@pytest.mark.parametrize("mode", MODES)
def test_nothing_that_is_given_to_others_has_a_path(mode: str, home: Path, tmp_path: Path) -> None:
    """Every film carried the folders of its pictures, and people's names are in them; contents travel instead."""
    made = whole(mode, home)
    for file in written(made, tmp_path / "out"):
        data = file.read_bytes()
        assert b"Mustermann" not in data and os.fsencode(tmp_path) not in data, file
        assert hashlib.sha256(Path(made.image).read_bytes()).hexdigest().encode() in data, file
    document = json.loads(document_of(made))
    assert document["image"] == "0.png" and document["output_folder"] == ""
    assert document["files"]["image"] == identity(made.image)
    assert document["loras"][0]["file"] == "style.safetensors" and "sha256" in document["files"]["loras/0/file"]
    assert to_json(made)["image"] == made.image, "the job keeps what it was given"


@pytest.mark.parametrize("mode", MODES)
def test_files_are_found_again(mode: str, home: Path, tmp_path: Path) -> None:
    """Files that a request names are found beside the film under any name, among pictures kept by pages, and in folders that
    the user names."""
    made = changed(whole(mode, home), output_folder="")
    png, film, _ = written(made, tmp_path / "out")
    for file in (png, film):
        assert modes.from_json(read_placed_document(file, [home])) == made
    missing = {path for path in json.dumps(read_placed_document(film)).split('"') if path.endswith(".png")}
    assert missing and all(path.startswith(str(tmp_path / "out")) and not Path(path).exists() for path in missing)
    beside = tmp_path / "elsewhere"
    beside.mkdir()
    for file in home.iterdir():
        shutil.copy(file, beside / f"renamed {file.name}")
    shutil.copy(film, beside / "film.mp4")
    found = modes.from_json(read_placed_document(beside / "film.mp4"))
    assert Path(found.image) == beside / "renamed 0.png"
    assert found.loras[0].path == beside / "renamed style.safetensors"
    uploads = tmp_path / "uploads"
    kept = keep(Path(made.image), uploads)
    assert read_text(png, [uploads]).document["image"] == str(kept)
    # What the pages kept is called as the user called it.
    assert without_paths({"image": str(kept)})["image"] == "0.png"


def test_a_file_of_that_name_with_another_content_is_not_meant(home: Path, tmp_path: Path) -> None:
    """Pictures are called start.jpg; a film made of somebody's cat must not go on with somebody's dog."""
    made = request("reverse", home / "0.png")
    png, _, _ = written(made, tmp_path / "out")
    shutil.copy(home / "1.png", tmp_path / "out" / "0.png")
    document = read_placed_document(png)
    assert not Path(document["image"]).exists() and document["image"].endswith("_0.png")
    # Whoever writes another name into a copy of the document means that file.
    by_hand = {**read_document(png), "image": "0.png", "files": {"image": {"name": "1.png", "sha256": "0" * 64}}}
    assert with_paths(by_hand, (), tmp_path / "out")["image"] == str(tmp_path / "out" / "0.png")


@pytest.mark.parametrize(
    "entry",
    [None, 5, {}, {"name": 5}, {"name": "../0.png", "bytes": 1}, {"name": "0.png", "bytes": "1", "sha256": []},
     {"name": "0.png", "bytes": True}, {"name": "x" * 5000, "bytes": 10**30}],
)  # fmt: skip
def test_what_a_strangers_entry_says_is_not_believed(entry: Any, home: Path) -> None:
    name = entry.get("name") if isinstance(entry, dict) and isinstance(entry.get("name"), str) else "0.png"
    assert with_paths({"image": name, "files": {"image": entry}}, [home]) == {"image": name}
    assert with_paths({"image": "0.png", "files": [entry]}, [home]) == {"image": "0.png"}


def test_paths_of_earlier_versions_and_of_other_systems(home: Path) -> None:
    """Files that were made before have paths in them; what is made of them has none."""
    old = {"image": r"C:\Users\bob\cat.png", "keyframes": {"1": "sub/dog.png"}, "output_folder": r"D:\films"}
    new = without_paths(old)
    assert (new["image"], new["keyframes"], new["output_folder"]) == ("cat.png", {"1": "dog.png"}, "")
    assert without_paths(new) == new, "once is enough"
    assert with_paths({"image": str(home / "0.png")}, ()) == {"image": str(home / "0.png")}
    assert [lora_name(file) for file in ("a/b.safetensors", "/x/b.safetensors", "../b.safetensors", "C:b")] == [
        "a/b.safetensors", "b.safetensors", "b.safetensors", "C:b",
    ]  # fmt: skip


def test_what_is_very_large_is_known_by_its_size(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A LoRA of gigabytes is known by its size, not hashed at every save; a smaller file is hashed once."""
    monkeypatch.setattr(named_files, "MOST_HASHED", 10)
    made = whole("reverse", home)
    document = json.loads(document_of(made))
    assert set(document["files"]["loras/0/file"]) == {"name", "bytes"}
    assert with_paths(document, [home])["loras"][0]["file"] == made.loras[0].file
    opened = []
    monkeypatch.setattr(named_files, "MOST_HASHED", 2**30)
    real = named_files.open_regular
    monkeypatch.setattr(named_files, "open_regular", lambda path: opened.append(path) or real(path))
    for _ in range(5):
        document_of(made)
    assert len(opened) == len(set(opened)) <= 6


def test_parts_of_joined_latents_lose_their_paths(home: Path, tmp_path: Path) -> None:
    """A file of latents of an earlier version has paths in it, and what is trimmed of it had them too."""
    import torch

    old = json.dumps(to_json(whole("reverse", home)))
    path = latent_file(tmp_path / "old.safetensors", 3, 32, 32, eichi=old)
    piece = trim(read_info(path), torch.zeros(1, 16, 3, 4, 4))
    assert "Mustermann" not in json.dumps(piece.parts) and piece.parts[0]["request"]["image"] == "0.png"


def test_section_zips_name_no_paths(home: Path, tmp_path: Path) -> None:
    """The pictures are in the ZIP; LoRA and the output folder were there with their whole paths."""
    import zipfile

    made = changed(whole("reverse", home), image=str(home / "0.png"))
    export_sections(made, tmp_path / "a.zip", "en")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        text = b"".join(archive.read(name) for name in archive.namelist() if name.endswith(".yaml"))
    assert b"Mustermann" not in text and b"style.safetensors" in text
    back, _notes = import_sections(tmp_path / "a.zip", None, "replace", tmp_path / "uploads")
    assert back.loras == (Lora("style.safetensors", 0.5),) and back.steps == made.steps
    assert Path(back.image).read_bytes() == Path(made.image).read_bytes()


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_the_request_survives_a_copy_of_the_film(suffix: str, home: Path, tmp_path: Path) -> None:
    """`ffmpeg -c copy` keeps tags that a container knows and drops others; the request was gone."""
    made = request("reverse", home / "0.png", prompt="猫が走る")
    _, film, _ = written(made, tmp_path / "out")
    copy = film.with_name(f"copy{suffix}")
    with av.open(str(film)) as source, av.open(str(copy), "w") as target:
        # As ffmpeg does: all tags are handed over, and the container takes those that it knows.
        target.metadata.update(source.metadata)
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    if suffix != ".mkv":
        with av.open(str(copy)) as container:
            assert "eichi" not in container.metadata
    assert modes.from_json(read_placed_document(copy, [home])) == made
    fields, notes = request_fields(read_text(copy, [home]), "reverse", "everything")
    assert notes == [] and fields["image"] == made.image and fields["prompt"] == made.prompt


def test_a_comment_that_is_another_programs_is_not_ours(home: Path, tmp_path: Path) -> None:
    for comment in ("Made with love", json.dumps({"prompt": "x"}), json.dumps({"mode": ["reverse"]}), "[1]"):
        with FilmWriter(tmp_path, "back", 30, {"comment": comment}) as writer:
            writer.write(tmp_path / "a.mp4", numpy.zeros((3, 16, 16, 3), numpy.uint8))
        with pytest.raises(Exception, match="request_not_in_file"):
            read_document(tmp_path / "a.mp4")
