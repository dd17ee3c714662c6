"""Test that the files of a killed process are removed at the next start, and those of a living one are kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from eichi_utils.files import paths, temporary
from eichi_utils.files.paths import written_atomically
from eichi_utils.files.temporary import OLD_SECONDS, UNSURE_SECONDS, is_abandoned, own_prefix, remove_abandoned

WRITER = """
import sys, tempfile, time
from pathlib import Path
from eichi_utils.files.paths import written_atomically
from eichi_utils.files.temporary import own_prefix
folder = tempfile.mkdtemp(prefix=own_prefix(), dir=sys.argv[1])
Path(folder, "00000.mp4").write_bytes(b"a section")
with written_atomically(Path(sys.argv[1], "film.mp4")) as path:
    path.write_bytes(b"half a film")
    print("writing", flush=True)
    time.sleep(60)
"""


def aged(path: Path, seconds: float) -> Path:
    os.utime(path, (time.time() - seconds,) * 2)
    return path


@pytest.mark.process
def test_what_a_killed_process_has_left_goes_at_the_next_start(tmp_path: Path):
    """Partial films of killed processes lay hidden in the output folder for ever, gigabytes of them."""
    results = tmp_path / "results"
    results.mkdir()
    with subprocess.Popen([sys.executable, "-c", WRITER, str(results)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        (results / "deep").mkdir()
        before = sorted(results.iterdir())
        assert len(before) == 3 and remove_abandoned([results]) == 0 and sorted(results.iterdir()) == before
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert remove_abandoned([tmp_path]) == 2, "also in a folder below"
    assert list(results.iterdir()) == [results / "deep"]


def named(machine: str = "", pid: int = 0, start: int = 0) -> str:
    """Return the name of an unfinished file, by default of this process."""
    own = temporary.OURS.fullmatch(f"{own_prefix()}x.part.png")
    parts = (machine or own["machine"], pid or own["pid"], start or own["start"])
    return ".eichi-{}-{}-{}-0123.part.png".format(*parts)


def test_numbers_of_processes_are_given_again(tmp_path: Path):
    """A process id is used again by a process that began later, and clocks are set: only an old file of the same id is
    abandoned."""
    file = tmp_path / named(start=1_000_000_000)
    file.touch()
    assert not is_abandoned(file) and is_abandoned(aged(file, UNSURE_SECONDS + 60))
    own = tmp_path / named()
    own.touch()
    assert not is_abandoned(aged(own, 100 * OLD_SECONDS)), "a process that lives finishes it, however long it takes"


def test_another_machine_on_a_network_share_is_left_a_day(tmp_path: Path):
    file = tmp_path / named(machine="00000000", pid=2**22 + 5)
    file.touch()
    assert not is_abandoned(aged(file, OLD_SECONDS - 60)) and is_abandoned(aged(file, OLD_SECONDS + 60))


@pytest.mark.parametrize("name", [".film.part.mp4", ".eichi-abcd1_2x", f"{'a' * 64}.01234567.part"])
def test_those_of_earlier_versions_go_after_a_day(name: str, tmp_path: Path):
    (tmp_path / name).touch()
    assert remove_abandoned([tmp_path]) == 0
    aged(tmp_path / name, OLD_SECONDS + 60)
    assert remove_abandoned([tmp_path]) == 1


@pytest.mark.parametrize("name", ["film.mp4", "model.safetensors.part", ".hidden.mp4", ".eichi-notes.txt", "a.part"])
def test_other_files_stay(name: str, tmp_path: Path):
    """Files of others stay: browsers call their downloads `.part` too."""
    (tmp_path / name).touch()
    aged(tmp_path / name, 100 * OLD_SECONDS)
    assert remove_abandoned([tmp_path, tmp_path / "gone"]) == 0 and (tmp_path / name).exists()


def test_a_full_folder_does_not_hide_what_was_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The search ended after 100,000 entries, so the rest was never found. Files no longer count, and other folders come
    next time."""
    monkeypatch.setattr(temporary, "MOST_FOLDERS", 4)
    gone = named(pid=2**30)
    for number in range(20):
        (tmp_path / f"{number:02}.png").touch()
        folder = tmp_path / f"{number:02}"
        folder.mkdir()
        (folder / gone).touch()
    (tmp_path / gone).touch()
    assert remove_abandoned([tmp_path]) == 4, "its own and those of three folders below"
    assert not (tmp_path / gone).exists()
    rounds = 0
    while list(tmp_path.rglob(gone)) and (rounds := rounds + 1) < 1000:
        remove_abandoned([tmp_path])
    assert not list(tmp_path.rglob(gone)) and len(list(tmp_path.glob("*.png"))) == 20


def test_links_are_not_followed(tmp_path: Path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir(), inside.mkdir()
    (outside / ".film.part.mp4").touch()
    aged(outside / ".film.part.mp4", 9 * OLD_SECONDS)
    (inside / "link").symlink_to(outside)
    (inside / "around").symlink_to(inside)
    assert remove_abandoned([inside]) == 0


def test_threads_write_one_file_at_once(tmp_path: Path):
    """600 writes by two threads gave 189 errors, and half files were read under the final name: they shared a temporary one."""
    path, errors, seen = tmp_path / "a.json", [], set()
    texts = [letter * 50_000 for letter in "ab"]

    def write(text: str) -> None:
        for _ in range(150):
            try:
                with written_atomically(path) as part:
                    part.write_text(text)
                seen.add(path.read_text())
            except OSError as error:
                errors.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and seen <= set(texts) and list(tmp_path.iterdir()) == [path]


def test_a_long_name_has_room_for_no_longer_one(tmp_path: Path):
    with written_atomically(tmp_path / f"{'a' * 250}.png") as part:
        assert part.suffix == ".png" and part.name.startswith(".")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_vanished_is_made_again(tmp_path: Path):
    """A film that was computed for an hour was lost because its folder had been deleted meanwhile."""
    with written_atomically(tmp_path / "gone" / "film.mp4") as part:
        part.write_bytes(b"film")
    assert (tmp_path / "gone" / "film.mp4").read_bytes() == b"film"


def test_a_file_that_somebody_reads_is_replaced_a_little_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Replacing a file is tried again: on Windows a virus scanner holds a new file open for a moment."""
    real, tries = Path.replace, []

    def replace(source: Path, target: Path) -> None:
        tries.append(source)
        if len(tries) < 3:
            raise PermissionError(13, "in use")
        real(source, target)

    monkeypatch.setattr(paths, "REPLACE_AGAIN", (0.001,) * 5)
    monkeypatch.setattr(Path, "replace", replace)
    (tmp_path / "a").write_text("old")
    with written_atomically(tmp_path / "a") as part:
        part.write_text("new")
    assert (tmp_path / "a").read_text() == "new" and len(tries) == 3
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(PermissionError(13, "in use")))
    with pytest.raises(PermissionError), written_atomically(tmp_path / "a") as part:
        part.write_text("newer")
    assert (tmp_path / "a").read_text() == "new" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.name != "posix", reason="folders cannot be flushed elsewhere")
def test_durable_means_file_and_folder_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A durable write flushes the file before it is renamed, and its folder afterwards."""
    done: list[str] = []
    real = os.fsync, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (done.append("folder" if Path(f"/dev/fd/{fd}").is_dir() else "file"), real[0](fd))
    )
    monkeypatch.setattr(Path, "replace", lambda *names: (done.append("rename"), real[1](*names)))
    with written_atomically(tmp_path / "a", durable=True) as part:
        part.write_text("x")
    assert done == ["file", "rename", "folder"]
    with written_atomically(tmp_path / "a") as part:
        part.write_text("x")
    assert done[3:] == ["rename"]
