"""Run an installation's tools: show progress in one line, log their output, and let one launcher work at a time.

Standard library only, and parses on Python 3.7, as everything that runs before anything is installed.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from eichi_utils.setup import console

CHILD_DEFAULTS = MappingProxyType({"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONUTF8": "1"})


class SetupError(Exception):
    """Report that setting up failed; the text says what to do, `tail` holds the tool's last lines."""

    def __init__(self, advice: str, tail: tuple[str, ...] = ()) -> None:
        super().__init__(advice)
        self.tail = tail


def child_environment(environ: dict[str, str]) -> dict[str, str]:
    """Return the environment variables for child processes: this program's defaults, overridden by those already set."""
    return {**CHILD_DEFAULTS, **environ}


class PipProgress:
    """Sum up pip's output in one short line of progress."""

    def __init__(self) -> None:
        self.found = 0
        self.fetched = 0
        self.activity = ""

    def feed(self, line: str) -> None:
        """Take one line of pip's output into account."""
        fetching = re.match(r"\s*(?:Downloading|Using cached) (?:\S*/)?(\S+)(?: (\(.+\)))?", line)
        if line.startswith("Collecting "):
            self.found += 1
        elif fetching and not fetching.group(1).endswith(".metadata"):
            self.fetched += 1
            self.activity = " ".join(filter(None, fetching.groups()))
        elif line.startswith("Installing collected packages:"):
            self.activity = f"unpacking {line.count(',') + 1} packages"

    def text(self, seconds: float) -> str:
        """Return the line of progress after so many seconds."""
        minutes, rest = divmod(int(seconds), 60)
        counts = f"{self.found} packages found, {self.fetched} fetched" if self.found else ""
        return ", ".join(filter(None, (f"{minutes}:{rest:02d}", counts, self.activity)))


def say(text: str = "") -> None:
    """Write a line to the user on stderr; stdout is left alone."""
    console.write(sys.stderr, text + "\n")


def run_logged(command: list[str], root: Path, log_path: Path, title: str) -> tuple[int, list[str]]:
    """Run a tool, append its output to the log and show pip's progress. Returns its exit code and its lines of output."""
    live = console.is_terminal(sys.stderr)
    interval = 1 if live else 20
    progress = PipProgress()
    output: list[str] = []
    lines: queue.Queue[str | None] = queue.Queue()
    started = time.monotonic()
    shown = started
    process = subprocess.Popen(
        command,
        cwd=str(root),
        env=child_environment(dict(os.environ)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )

    def pump() -> None:
        # Always a pipe, as given to Popen; this tells the type checker.
        if process.stdout is not None:
            with process.stdout as stream:
                for line in stream:
                    lines.put(line)
        lines.put(None)

    threading.Thread(target=pump, daemon=True).start()
    try:
        with log_path.open("a", encoding="utf-8") as log:
            log.write(f"== {title}\n")
            line: str | None = ""
            while line is not None:
                try:
                    line = lines.get(timeout=interval)
                except queue.Empty:
                    line = ""
                if line:
                    log.write(line)
                    log.flush()
                    output.append(line.rstrip())
                    progress.feed(line)
                now = time.monotonic()
                if line is not None and now - shown >= interval:
                    shown = now
                    text = "      " + progress.text(now - started)
                    if live:
                        width = shutil.get_terminal_size().columns - 1
                        console.write(sys.stderr, "\r" + text[:width].ljust(width))
                    else:
                        say(text)
        code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        if live and shown != started:
            say()
    return code, output


@contextmanager
def setup_lock(path: Path) -> Iterator[None]:
    """Let one launcher set up at a time: a second double-click waits instead of undoing the first's work."""
    with path.open("a+b") as handle:
        waiting = False
        while not try_lock(handle.fileno()):
            if not waiting:
                say("Another window is setting this up; waiting for it ...")
                waiting = True
            time.sleep(1)
        yield


def try_lock(descriptor: int) -> bool:
    """Lock an open file until it is closed. Returns False if it is locked, and True where files cannot be locked at all."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True
