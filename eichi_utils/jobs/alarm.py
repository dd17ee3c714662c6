"""A sound when a film is done, on the machine that makes it. It never fails a job and never makes the worker wait."""

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

# The setting, called as in the existing program's file.
ALARM = "alarm_on_completion"
# The existing program's beep on Windows' side of WSL: 1000 Hz for half a second.
WSL_BEEP = ("powershell.exe", "-NoProfile", "-Command", "[console]::beep(1000,500)")
MAC_SOUND = "/System/Library/Sounds/Glass.aiff"
# The sound theme that Linux desktops bring along, and a sample of ALSA's for its player, which reads no Ogg.
FREEDESKTOP_SOUND = "/usr/share/sounds/freedesktop/stereo/complete.oga"
ALSA_SOUND = "/usr/share/sounds/alsa/Front_Center.wav"
# A player that hangs, for want of a sound server, is ended after this long.
PLAYER_SECONDS = 10.0


@dataclass(frozen=True)
class Alarm:
    """Watches jobs (`Jobs.watchers`), and sounds when one has finished or failed, if the settings say so at that moment.

    A job that the user stopped ends in silence: who stopped it knows. play: makes the sound, and may take its time.
    """

    settings: AppSettings
    play: Callable[[], object] = lambda: play_sound()

    def __call__(self, job: Job, event: Event) -> None:
        """Sound in a thread of its own at the end of a job that was not stopped."""
        if isinstance(event, (Finished, Failed)):
            # The file of the settings may be held by another program, and a sound takes as long as it takes.
            threading.Thread(target=self.sound, args=(job.request.mode,), name="eichi-alarm", daemon=True).start()

    def sound(self, mode: str) -> None:
        """Play it, unless it is switched off."""
        try:
            wanted = self.settings.choice(mode, ALARM)
        except UserError:
            wanted = CHOICES[ALARM]
        if wanted:
            self.play()


def play_sound(platform: str = sys.platform, environment: Mapping[str, str] = os.environ) -> str:
    """Play the system's sound and wait for its end; what has sounded, or "" where nothing can."""
    if platform == "win32" and _windows_sound():
        return "winsound"
    for command in players(platform, environment):
        if _played(command):
            return command[0]
    return "bell" if _bell() else ""


def players(platform: str, environment: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Commands that may make a sound here, the best first."""
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
        # `run` waits for the child, also for one that it had to end: none is left behind.
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
    """The terminal's, where the program has one. A file that its output goes to gets no control characters."""
    if not is_terminal(sys.stderr):
        return False
    write(sys.stderr, "\a")
    return True
