"""New files: whole or not at all, and readable by whom the system says."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from eichi_utils.latent_files import write_latents
from eichi_utils.media import FilmWriter, write_png
from eichi_utils.paths import written_atomically
from eichi_utils.sections_zip import export_sections
from eichi_utils.settings import JsonFile
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
    """As safetensors' save_file does."""
    with written_atomically(tmp_path / "a.bin") as temporary:
        other = tmp_path / "other"
        other.touch(mode=0o600)
        os.replace(other, temporary)
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == 0o666 & ~umask
