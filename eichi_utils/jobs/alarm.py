"""Play a sound when a job has ended, on the machine that runs it; this never fails a job nor makes the worker wait."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from eichi_utils.jobs.events import Event, Failed, Finished
from eichi_utils.jobs.snapshot import Job
from eichi_utils.problems import UserError
from eichi_utils.setup.console import is_terminal, write
from eichi_utils.user_data.settings import CHOICES, AppSettings

# Name of the setting, the same as in the existing program's file.
ALARM = "alarm_on_completion"
# Command for the Windows side of WSL: the existing program's beep, 1000 Hz for half a second.
WSL_BEEP = ("powershell.exe", "-NoProfile", "-Command", "[console]::beep(1000,500)")
MAC_SOUND = "/System/Library/Sounds/Glass.aiff"
# A sound of the theme that Linux desktops bring along, and one of ALSA's samples for its player, which reads no Ogg.
FREEDESKTOP_SOUND = "/usr/share/sounds/freedesktop/stereo/complete.oga"
ALSA_SOUND = "/usr/share/sounds/alsa/Front_Center.wav"
# Seconds after which a player is ended; without a sound server some hang.
PLAYER_SECONDS = 10.0


@dataclass(frozen=True)
class Alarm:
    """Play a sound when a job has finished or failed, as a watcher (`queue.Jobs`), if the settings say so at that moment.

    A job that the user stopped ends without a sound, because the user knows. play: makes the sound; it may take long.
    """

    settings: AppSettings
    play: Callable[[], object] = lambda: play_sound()

    def __call__(self, job: Job, event: Event) -> None:
        """Start a thread that plays the sound, if the event is the end of a job that was not stopped."""
        if isinstance(event, (Finished, Failed)):
            # Reading the settings may have to wait for another program, and playing a sound takes its time.
            threading.Thread(target=self.sound, args=(job.request.mode,), name="eichi-alarm", daemon=True).start()

    def sound(self, mode: str) -> None:
        """Play the sound unless the mode's settings switch it off; unreadable settings count as the default."""
        try:
            wanted = self.settings.choice(mode, ALARM)
        except UserError:
            wanted = CHOICES[ALARM]
        if wanted:
            self.play()


def play_sound(platform: str = sys.platform, environment: Mapping[str, str] = os.environ) -> str:
    """Play the system's sound and wait for its end.

    Returns what played it: "winsound", a command's name, "bell" for the terminal's, or "" if nothing could.
    """
    if platform == "win32" and _windows_sound():
        return "winsound"
    for command in players(platform, environment):
        if _played(command):
            return command[0]
    return "bell" if _bell() else ""


def players(platform: str, environment: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Return the commands that may play a sound on this system, the best first; none on Windows."""
    if platform == "win32":
        return []
    if platform == "darwin":
        return [("afplay", MAC_SOUND)]
    found = [("paplay", FREEDESKTOP_SOUND), ("pw-play", FREEDESKTOP_SOUND), ("aplay", "-q", ALSA_SOUND)]
    own = [command for command in found if shutil.which(command[0]) and Path(command[-1]).is_file()]
    return [WSL_BEEP, *own] if "WSL_DISTRO_NAME" in environment else own


def _windows_sound() -> bool:
    import winsound

    try:
        winsound.PlaySound("SystemExclamation", winsound.SND_ALIAS)
    except RuntimeError:
        return False
    return True


def _played(command: tuple[str, ...]) -> bool:
    try:
        # `run` waits for the child even after ending it at the timeout, so that no process is left behind.
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=PLAYER_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _bell() -> bool:
    """Ring the terminal's bell and tell whether there is a terminal; a file as stderr gets no control characters."""
    if not is_terminal(sys.stderr):
        return False
    write(sys.stderr, "\a")
    return True
