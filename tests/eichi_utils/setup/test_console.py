"""Test the program with a console that is closed, broken, limited to few characters, or absent."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from eichi_utils.cli.progress import Progress, fitted
from eichi_utils.files.paths import ROOT
from eichi_utils.jobs.view import View
from eichi_utils.setup import console
from locales import Translator

pytestmark = pytest.mark.process

# A program that shows progress, opens a file, and ends by a code of its own; a library speaks on descriptor 2 meanwhile.
PROGRAM = """
import os, sys
from eichi_utils.setup.console import ready, write
from eichi_utils.cli.progress import Progress
from eichi_utils.jobs.view import View
from locales import Translator

with ready():
    progress = Progress(sys.stderr, Translator("ja"))
    with open(sys.argv[1], "w", encoding="utf-8") as film:
        for section in range(400):
            progress.show(View(state="running", stage="decode", sections=400, section=section))
            write(sys.stdout, "\\u732b \\udce9.mp4\\n")
        film.write("film")
        film.flush()
        os.write(2, b"x264 [info]: noise\\n")
    sys.stderr.isatty(), sys.stdout.isatty()
    progress.close()
    print("\\u732b")
sys.exit(7)
"""


@pytest.mark.skipif(os.name == "nt", reason="written for a POSIX shell")
@pytest.mark.parametrize(
    ("streams", "encoding"),
    # An encoding with all characters has fewer ways to fail, so it is tried with both streams and with one.
    [(streams, "ascii") for streams in (">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "", ">/dev/full", "2>/dev/full")]
    + [("", "utf-8"), (">&-", "utf-8")],
)
def test_the_console_decides_nothing(streams: str, encoding: str, tmp_path: Path) -> None:
    """`eichi render >&-` ended in a traceback when the film was done; an ASCII terminal ended it at its first line. With a
    closed descriptor the film could get its number, and what libraries say landed in the film."""
    program, film = tmp_path / "program.py", tmp_path / "film"
    program.write_text(PROGRAM)
    command = f'"{sys.executable}" "{program}" "{film}" {streams}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    done = subprocess.run(["/bin/sh", "-c", command], env=environment, capture_output=True, timeout=60)
    assert done.returncode == 7, done.stderr.decode()
    assert film.read_bytes() == b"film"
    assert b"Traceback" not in done.stderr and b"ignored" not in done.stderr
    if not streams:
        cat = b"\\u732b" if encoding == "ascii" else "猫".encode()
        assert done.stdout.splitlines() == [cat + b" \\udce9.mp4"] * 400 + [cat]


@pytest.mark.parametrize("broken", ["stdout", "stderr"])
def test_a_reader_that_leaves_does_not_end_the_program(broken: str, tmp_path: Path) -> None:
    """`eichi render | head -1` lost the film at the second line, or ended with code 120 when all was done."""
    program, film = tmp_path / "program.py", tmp_path / "film"
    program.write_text(PROGRAM)
    reader, writer = os.pipe()
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, broken: writer}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen([sys.executable, program, film], env=environment, **streams)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    said = running.communicate(timeout=60)
    assert running.returncode == 7
    assert film.read_bytes() == b"film"
    assert not any(b"Traceback" in text or b"ignored" in text for text in said if text)


def test_streams_that_are_none_or_closed_are_told_nothing() -> None:
    """Windows has none without a console; there is no number of the stream to be had then either."""
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        console.write(stream, "x\n")
        progress = Progress(stream, Translator("en"))
        progress.show(View(state="running", stage="text"))
        progress.say("x")
        progress.close()


def test_a_program_without_a_console_has_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries ask sys.stdout whether it is a terminal; `None` has no answer."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with console.ready():
        assert not sys.stdout.isatty()
        sys.stderr.write("猫")
        sys.stdout.close()
        sys.stderr.close()


@pytest.mark.parametrize("line", ["[====] 40 %  decode", "[====] 40 %  \u30c7\u30b3\u30fc\u30c9\u4e2d " + "\u732b" * 60, ""])
def test_a_redrawn_line_fits_the_terminal(line: str) -> None:
    """A redrawn line fits the terminal. In Japanese it was wider, and each redraw filled a new line."""
    shown = fitted(line, 79)
    assert sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in shown) == 79
    assert shown.startswith(line[:30])
