"""Test that new files are whole or not there, and readable for whom the system says."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from eichi_utils.exchange.latent_files import write_latents
from eichi_utils.exchange.section_zip import export_sections
from eichi_utils.exchange.video import FilmWriter, write_png
from eichi_utils.files import paths
from eichi_utils.files.paths import beside_program, folder_problem, is_writable, user_folders, written_atomically
from eichi_utils.user_data.settings import JsonFile
from tests.eichi_utils.helpers import request


@pytest.fixture(params=[0o022, 0o027])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such modes")
def test_all_results_may_be_read_by_the_same_people(umask: int, tmp_path: Path):
    """Latents alone could be read by nobody but their owner: safetensors makes its own file with mode 0600."""
    it = request("reverse", "")
    write_latents(tmp_path / "a.safetensors", torch.zeros(1, 16, 1, 2, 2), it)
    write_png(tmp_path / "a.png", Image.new("RGB", (16, 16)), PngInfo())
    export_sections(it, tmp_path / "a.zip")
    JsonFile(tmp_path / "a.json").update(lambda document: document.update(a=1))
    with FilmWriter(tmp_path, "back", 30, {}) as writer:
        writer.write(tmp_path / "a.mp4", torch.zeros(2, 16, 16, 3, dtype=torch.uint8).numpy())
    names = ("a.safetensors", "a.png", "a.zip", "a.json", "a.mp4")
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names}
    assert modes == dict.fromkeys(names, 0o666 & ~umask)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such modes")
def test_a_writer_that_replaces_the_file_changes_no_mode(umask: int, tmp_path: Path):
    """A writer such as safetensors' save_file may replace the temporary file by one with another mode."""
    with written_atomically(tmp_path / "a.bin") as temporary:
        other = tmp_path / "other"
        other.touch(mode=0o600)
        other.replace(temporary)
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == 0o666 & ~umask


PLACES = ("DEFAULT_OUTPUTS", "DEFAULT_UPLOADS", "SETTINGS", "PRESETS", "CACHE")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a program folder of the test's own, with a user's settings and a picture."""
    webui = tmp_path / "program" / "webui"
    monkeypatch.setattr(paths, "WEBUI", webui)
    for name, folder in zip(PLACES, ("outputs", "inputs/uploads", "settings", "presets", "cache"), strict=True):
        monkeypatch.setattr(paths, name, webui / folder)
    monkeypatch.setattr(paths, "user_home", lambda: tmp_path / "home")
    (webui / "settings").mkdir(parents=True)
    (webui / "settings" / "app_settings.json").write_text('{"a": 1}')
    return webui


def test_what_can_be_written_stays_beside_the_program(program: Path):
    folders = user_folders()
    assert folders == beside_program() and not folders.moved and folders.outputs == program / "outputs"
    folders.take_over()
    assert not (program.parent.parent / "home").exists(), "nothing is made in vain"


def test_a_program_that_cannot_be_written_keeps_things_with_its_user(program: Path, tmp_path: Path):
    """Start never worked for a program that an administrator had installed, whatever `--out` said.

    What was saved beside it is taken over once, and what its user saves later is not overwritten by it.
    """
    folders = user_folders(lambda folder: False)
    home = tmp_path / "home"
    assert folders.moved and folders.uploads == home / "inputs" / "uploads" and folders.logs == home
    assert folders.outputs == home / "outputs" and folders.settings == home / "settings" and folders.cache == home / "cache"
    folders.take_over()
    saved = home / "settings" / "app_settings.json"
    assert saved.read_text() == '{"a": 1}'
    saved.write_text('{"a": 2}')
    folders.take_over()
    assert saved.read_text() == '{"a": 2}' and not folders.presets.exists()


def test_single_folders_move(program: Path, tmp_path: Path):
    """Each folder can be moved by itself: in a container often only the folder of results can be written."""
    folders = user_folders(lambda folder: folder.name == "outputs")
    assert folders.outputs == program / "outputs" and folders.presets == tmp_path / "home" / "presets" and folders.moved


def test_a_users_own_folder_stays_in_use_while_nothing_lies_beside_the_program(program: Path, tmp_path: Path):
    """Somebody has made the program's folder writable since."""
    for name in ("presets", "settings"):
        (tmp_path / "home" / name).mkdir(parents=True)
        (tmp_path / "home" / name / "a.json").touch()
    folders = user_folders()
    assert folders.presets == tmp_path / "home" / "presets" and folders.settings == program / "settings"


@pytest.mark.parametrize(("number", "writable"), [(errno.EROFS, False), (errno.EACCES, False), (errno.ENOSPC, True)])
def test_a_full_disk_is_no_folder_that_cannot_be_written(
    number: int, writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A full disk does not count as a folder that cannot be written, or settings would vanish until there is room again."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    assert is_writable(tmp_path / "not" / "yet") and list(tmp_path.iterdir()) == []
    monkeypatch.setattr(Path, "open", refuse)
    assert is_writable(tmp_path) is writable


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the administrator may write anywhere")
def test_a_folder_of_somebody_else_is_not_writable(tmp_path: Path):
    tmp_path.chmod(0o500)
    assert not is_writable(tmp_path / "outputs") and folder_problem(tmp_path / "outputs").key == "folder_not_writable"
