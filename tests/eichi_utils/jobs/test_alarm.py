"""Test the sound at the end: when it is played, by which player, and that nobody waits for it. No sound is made here."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eichi_utils.jobs import alarm as notify
from eichi_utils.jobs.alarm import ALARM, Alarm, play_sound, players
from eichi_utils.jobs.events import StopLevel
from eichi_utils.jobs.queue import Jobs
from eichi_utils.problems import UserError
from eichi_utils.user_data.settings import AppSettings, JsonFile
from tests.eichi_utils.jobs.fakes import WAIT, Fake, ending, some

MODE = "single"


class Heard:
    """Stand in for a player and count how often it is called."""

    def __init__(self) -> None:
        self.times = 0
        self.played = threading.Semaphore(0)

    def __call__(self) -> None:
        self.times += 1
        self.played.release()


@pytest.fixture
def settings(tmp_path: Path) -> AppSettings:
    return AppSettings(JsonFile(tmp_path / "app_settings.json"))


@pytest.fixture
def fake() -> Fake:
    return Fake(go=threading.Semaphore(0))


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def jobs(fake: Fake, settings: AppSettings, heard: Heard) -> Iterator[Jobs]:
    jobs = Jobs(fake, [Alarm(settings, heard)])
    yield jobs
    fake.go.release(10_000)
    jobs.close(WAIT)


def silence(heard: Heard) -> bool:
    """Wait until all sounds have ended, and return whether none was heard."""
    began = time.monotonic()
    # Threads are not joined, because one that has not started yet cannot be.
    while any(thread.name == "eichi-alarm" for thread in threading.enumerate()) and time.monotonic() - began < WAIT:
        time.sleep(0.01)
    return not heard.played.acquire(blocking=False)


def test_every_film_that_is_done_is_heard(jobs: Jobs, fake: Fake, heard: Heard) -> None:
    """The sound is on by default, as in the existing program, and is played after a failure too, which also needs the user."""
    fake.go.release(10_000)
    ending(jobs, jobs.submit(some()))
    assert heard.played.acquire(timeout=WAIT)

    def fail(request: object, point: str) -> None:
        raise UserError([])

    fake.fail = fail
    assert ending(jobs, jobs.submit(some())).state == "failed"
    assert heard.played.acquire(timeout=WAIT) and silence(heard) and heard.times == 2


@pytest.mark.parametrize("level", [StopLevel.NOW, StopLevel.SECTION])
def test_a_stop_is_silent(jobs: Jobs, fake: Fake, heard: Heard, level: StopLevel) -> None:
    """A stop rings no alarm, nor do the queued jobs that it drops: whoever pressed Stop sits at the computer."""
    job, waiting = jobs.submit(some()), jobs.submit(some())
    assert fake.at_step.acquire(timeout=WAIT)
    jobs.remove(waiting.id)
    jobs.stop(level)
    fake.go.release(10_000)
    assert ending(jobs, job).state == "stopped" and silence(heard) and heard.times == 0


def test_a_film_that_may_end_is_heard(jobs: Jobs, fake: Fake, heard: Heard) -> None:
    """The stop "Finish this one, drop the rest" keeps the alarm of the film that is finished."""
    job, _ = jobs.submit(some()), jobs.submit(some())
    assert fake.at_step.acquire(timeout=WAIT)
    jobs.stop(StopLevel.JOB)
    fake.go.release(10_000)
    assert ending(jobs, job).state == "finished"
    assert heard.played.acquire(timeout=WAIT) and silence(heard) and heard.times == 1


@pytest.mark.parametrize("on", [True, False])
def test_what_counts_is_the_switch_when_the_film_ends(
    jobs: Jobs, fake: Fake, heard: Heard, settings: AppSettings, on: bool
) -> None:
    """The alarm obeys its switch at the film's end; the existing F1 page obeyed the switch of the program's start."""
    settings.save_program({ALARM: not on})
    job = jobs.submit(some())
    assert fake.at_step.acquire(timeout=WAIT)
    settings.save_program({ALARM: on})
    fake.go.release(10_000)
    ending(jobs, job)
    assert heard.played.acquire(timeout=WAIT) is on if on else silence(heard)
    assert heard.times == int(on)


def test_each_page_of_the_existing_program_has_its_switch(settings: AppSettings, heard: Heard) -> None:
    """Each page's alarm switch of the existing program is taken over, until one is clicked here, which then counts for all."""
    settings.file.update(lambda document: document.update(app_settings_f1={ALARM: False}))
    alarm = Alarm(settings, heard)
    alarm.sound("forward")
    assert heard.times == 0
    alarm.sound("reverse")
    assert heard.times == 1
    settings.save_program({ALARM: True})
    alarm.sound("forward")
    assert heard.times == 2


def test_settings_that_cannot_be_read_hold_nobody_up(tmp_path: Path, heard: Heard, fake: Fake) -> None:
    """If the settings are a folder, or a file that another program holds, the alarm behaves as by default and waits for
    nothing."""
    (tmp_path / "settings.json").mkdir()
    Alarm(AppSettings(JsonFile(tmp_path / "settings.json")), heard).sound(MODE)
    assert heard.times == 1
    held = JsonFile(tmp_path / "held.json", wait=0.5)
    held.path.write_text("{}")
    with held._locked():
        jobs = Jobs(fake, [Alarm(AppSettings(held), heard)])
        fake.go.release(10_000)
        began = time.monotonic()
        ending(jobs, jobs.submit(some()))
        assert time.monotonic() - began < 0.4
        assert heard.played.acquire(timeout=WAIT) and heard.played.acquire(timeout=WAIT)
        jobs.close(WAIT)


Commands = Callable[..., list[str]]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return `installed("paplay", "exit 1")`, which puts a player and its sound file in place."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    for name in ("FREEDESKTOP_SOUND", "ALSA_SOUND", "MAC_SOUND"):
        (tmp_path / name).write_text("a sample")
        monkeypatch.setattr(notify, name, str(tmp_path / name))
    monkeypatch.setattr(notify, "_bell", lambda: False)

    def install(name: str, script: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)

    return install


@pytest.mark.process
@pytest.mark.skipif(os.name != "posix", reason="scripts stand in for players")
def test_the_next_player_where_one_cannot(installed: Callable, tmp_path: Path) -> None:
    """A desktop without PulseAudio still has ALSA; without any, the terminal's bell is left."""
    assert play_sound("linux", {}) == ""
    installed("aplay", f'echo "$@" > {tmp_path}/played')
    installed("paplay", "exit 1")
    assert play_sound("linux", {}) == "aplay"
    # ALSA's player takes what it does not know for raw sound: a burst of noise.
    assert (tmp_path / "played").read_text().split() == ["-q", str(tmp_path / "ALSA_SOUND")]
    installed("pw-play", f'echo "$@" > {tmp_path}/played')
    assert play_sound("linux", {}) == "pw-play"
    assert (tmp_path / "played").read_text().strip() == str(tmp_path / "FREEDESKTOP_SOUND")
    (tmp_path / "FREEDESKTOP_SOUND").unlink()
    assert [command[0] for command in players("linux", {})] == ["aplay"]


@pytest.mark.process
@pytest.mark.skipif(os.name != "posix", reason="scripts stand in for players")
def test_other_systems(installed: Callable, tmp_path: Path) -> None:
    installed("afplay", "exit 0")
    assert play_sound("darwin", {}) == "afplay"
    installed("powershell.exe", f'echo "$@" > {tmp_path}/played')
    assert play_sound("linux", {"WSL_DISTRO_NAME": "Ubuntu"}) == "powershell.exe"
    assert "beep(1000,500)" in (tmp_path / "played").read_text()
    assert players("linux", {}) == []


@pytest.mark.parametrize("fails", [False, True])
def test_windows(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows the module winsound plays the sound by name, and a machine without it rings nothing."""
    calls = []

    class Winsound:
        SND_ALIAS = 65536

        @staticmethod
        def PlaySound(name: str, flags: int) -> None:
            calls.append((name, flags))
            if fails:
                raise RuntimeError("Failed to play sound")

    monkeypatch.setitem(__import__("sys").modules, "winsound", Winsound)
    monkeypatch.setattr(notify, "_bell", lambda: False)
    assert play_sound("win32", {}) == ("" if fails else "winsound")
    assert calls == [("SystemExclamation", Winsound.SND_ALIAS)]


@pytest.mark.process
@pytest.mark.skipif(os.name != "posix", reason="scripts stand in for players")
def test_a_player_that_hangs_is_ended(installed: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A player that hangs leaves no process behind, neither running nor dead."""
    monkeypatch.setattr(notify, "PLAYER_SECONDS", 0.2)
    installed("paplay", f"echo $$ > {tmp_path}/pid; exec sleep 60")
    assert play_sound("linux", {}) == ""
    player = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(player, 0)
    with pytest.raises(ChildProcessError):
        os.waitpid(player, os.WNOHANG)


@pytest.mark.process
def test_a_bell_is_for_terminals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """The bell is not written to an output file, and not where there is no output at all (pythonw)."""
    assert play_sound("darwin", {}) == "" and capsys.readouterr().err == ""
    monkeypatch.setattr(notify.sys.stderr, "isatty", lambda: True)
    assert play_sound("darwin", {}) == "bell" and capsys.readouterr().err == "\a"
    monkeypatch.setattr(notify.sys, "stderr", None)
    assert play_sound("darwin", {}) == ""
