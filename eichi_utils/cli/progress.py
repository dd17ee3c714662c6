"""Show a job's progress on a stream: one redrawn line on a terminal, plain lines elsewhere.

tqdm does not fit: it knows one count and its rate, while a job has sections of unequal steps and its own estimate; it writes
every redrawing into a file; and it raises on a stream without a reader.
"""

from __future__ import annotations

import shutil
import unicodedata
from typing import TextIO

from eichi_utils.jobs.job_log import clock
from eichi_utils.jobs.view import View
from eichi_utils.problems import Translate
from eichi_utils.setup.console import is_terminal, write

BAR = 24


class Progress:
    """Write the progress of jobs to a stream.

    On a terminal one line is redrawn. Elsewhere a line is written when stage or section change, and at every tenth of the steps
    or of decoding.
    """

    def __init__(self, stream: TextIO | None, t: Translate):
        self._stream, self._t = stream, t
        self._redraw = is_terminal(stream)
        self._drawn = False
        self._said: tuple[str, int, int] | None = None
        self._notices = 0

    def show(self, view: View) -> None:
        """Show what a job does now: each new notice in its own line, then the progress."""
        for notice in view.notices[self._notices :]:
            self.say(self._t(f"notice.{notice.key}", **notice.values))
        self._notices = len(view.notices)
        if not view.stage or view.ended:
            return
        line = self._line(view)
        if self._redraw:
            write(self._stream, "\r" + fitted(line, shutil.get_terminal_size().columns - 1))
            self._drawn = True
        else:
            tenth = 10 * view.step // view.steps if view.steps and view.stage == "sample" else int(10 * view.share)
            if (view.stage, view.section, tenth) != self._said:
                self._said = view.stage, view.section, tenth
                write(self._stream, line + "\n")

    def say(self, text: str) -> None:
        """Write a text in its own line."""
        self.close()
        write(self._stream, text + "\n")

    def close(self) -> None:
        """End the redrawn line, so that what follows begins on a new one."""
        if self._drawn:
            write(self._stream, "\n")
            self._drawn = False

    def _line(self, view: View) -> str:
        t, filled = self._t, round(BAR * view.fraction)
        parts = [f"[{'=' * filled}{' ' * (BAR - filled)}] {view.fraction:4.0%}", t(f"stage.{view.stage}")]
        if view.sampling_since is not None:
            parts.append(t("cli.section", section=view.section + 1, sections=view.sections))
            parts.append(t("cli.step", step=view.step, steps=view.steps))
        if view.seconds_left is not None:
            parts.append(t("cli.time", elapsed=clock(view.elapsed), left=clock(view.seconds_left)))
        return "  ".join(parts)


def fitted(line: str, columns: int) -> str:
    """Return a line cut or padded to `columns` of a terminal, on which Chinese and Japanese characters take two."""
    kept, taken = "", 0
    for letter in line:
        width = 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if taken + width > columns:
            break
        kept, taken = kept + letter, taken + width
    return kept + " " * (columns - taken)
