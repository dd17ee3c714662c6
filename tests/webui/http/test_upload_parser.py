"""Test uploads while they are read: files open at once, memory, and what is left of a failed one."""

from __future__ import annotations

import errno
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gradio import route_utils
from starlette.datastructures import FormData, Headers
from starlette.formparsers import MultiPartException

from eichi_utils.problems import UserError
from eichi_utils.user_data.passing import LEAST_FREE
from tests.threads import in_a_loop
from webui.gradio_compat import LOOK_BYTES, UploadParser

FILE = 'name="files"; filename="{}.png"'


def body(*parts: tuple[str, bytes], end: bytes = b"\r\n--b--\r\n") -> bytes:
    heads = [f"--b\r\nContent-Disposition: form-data; {said}\r\n\r\n".encode() + data for said, data in parts]
    return b"\r\n".join(heads) + end


def read(folder: Path, sent: bytes, size: int = 1 << 18, **settings: Any) -> FormData:
    """Parse a body that comes in pieces of some bytes."""

    async def stream() -> AsyncIterator[bytes]:
        for at in range(0, len(sent), size):
            yield sent[at : at + size]

    headers = Headers({"content-type": "multipart/form-data; boundary=b"})
    return in_a_loop(UploadParser(headers, stream(), upload_dir=folder, max_file_size=1 << 20, **settings).parse())


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list: for each file of an upload that is opened, how many are open then."""
    files: list[Any] = []
    counts: list[int] = []
    real = route_utils.NamedTemporaryFile

    def open_file(**settings: Any) -> Any:
        files.append(real(**settings))
        counts.append(sum(not file.closed for file in files))
        return files[-1]

    monkeypatch.setattr(route_utils, "NamedTemporaryFile", open_file)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 7, 64, 1 << 18])
def test_an_upload_has_one_file_open(tmp_path: Path, opened: list[int], size: int) -> None:
    """Each part kept its file open until the end of all: 360 tiny ones took the films' descriptors, and the films failed.

    Two are open for as long as the end of the one and the beginning of the next lie in the same piece.
    """
    parts = [(FILE.format(number), bytes([number]) * number) for number in range(100)]
    form = read(tmp_path, body(*parts), size)
    assert len(opened) == 100 and max(opened) <= 2
    files = form.getlist("files")
    assert [file.filename for file in files] == [f"{number}.png" for number in range(100)]
    assert [Path(file.file.name).read_bytes() for file in files] == [data for _, data in parts]


@pytest.mark.parametrize("said", ['name="files"', 'name="k"', 'name="other"; filename="a.png"'])
def test_every_part_is_a_file(tmp_path: Path, said: str) -> None:
    """A part without a file's name was kept in memory, 512 MB of each request; one by another name stayed on the disk."""
    sent = body((FILE.format("a"), b"x"), (said, b"y" * 1000), end=b"")
    with pytest.raises(MultiPartException, match="has to be a file"):
        read(tmp_path, sent)
    assert not list(tmp_path.iterdir())


def test_a_failed_upload_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that failed for want of a descriptor or of room on the disk left its files: 222,822 in one night."""
    real, made = route_utils.NamedTemporaryFile, []

    def open_file(**settings: Any) -> Any:
        if len(made) == 3:
            raise OSError(errno.EMFILE, "Too many open files")
        made.append(real(**settings))
        return made[-1]

    monkeypatch.setattr(route_utils, "NamedTemporaryFile", open_file)
    progress = route_utils.FileUploadProgress()
    with pytest.raises(OSError, match="Too many"):
        read(tmp_path, body(*[(FILE.format(n), b"x") for n in range(9)]), upload_id="u", upload_progress=progress)
    assert len(made) == 3 and not list(tmp_path.iterdir())
    # Who watches the progress is told that there is no more.
    assert progress.is_done("u")


def test_an_upload_leaves_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether there was room was asked once, at the beginning: several at once, or one larger than what was left, took it all
    and the film that ran was lost."""
    free: list[int] = []

    def usage(place: Path) -> SimpleNamespace:
        """Simulate a disk on which another upload writes as much."""
        there = sum(path.stat().st_size for path in tmp_path.iterdir())
        free.append(LEAST_FREE + (5 << 20) - 2 * there)
        return SimpleNamespace(free=free[-1])

    monkeypatch.setattr(shutil, "disk_usage", usage)
    parts = [(FILE.format(number), bytes(900_000)) for number in range(9)]
    with pytest.raises(UserError) as refused:
        read(tmp_path, body(*parts))
    assert refused.value.problems[0].key == "disk_low"
    assert not list(tmp_path.iterdir())
    # Seen before much more of it was gone.
    assert free[-1] < LEAST_FREE and free[-1] > LEAST_FREE - 3 * LOOK_BYTES
    read(tmp_path, body(*parts[:2]))
    assert len(list(tmp_path.iterdir())) == 2
