"""Saying something on stdout or stderr, which may be closed, a pipe that nobody reads any more, or a terminal of few letters.

A film is not lost because nobody can be told of it. Standard library only.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

# The exit code of what was stopped, as shells have it for Ctrl-C.
STOPPED = 130
# What tells a program to end.
ENDING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")


@contextmanager
def ready() -> Iterator[None]:
    """Around a whole program: it has both streams, which take any text, and whatever becomes of them does not change its exit
    code."""
    _open_descriptors()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Windows without a console, or closed by who started the program; libraries ask it for `isatty`.
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (open as long as the program)
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        # Left to Python's own end, a text that finds no reader any more makes the exit code 120.
        for stream in (sys.stdout, sys.stderr):
            write(stream, "")


def leave_when_told() -> None:
    """From now on let Ctrl-C, SIGTERM, a closed terminal (SIGHUP) and Windows' Ctrl-Break end the program at once, in a line
    and with code 130.

    For the time in which a program loads: nothing has begun, and an exception could come out of any library, or be lost there.
    `ending_as_interrupted` takes over. It is said in English, since the words of other languages are not loaded.
    """
    for number in _heard():
        signal.signal(number, _leave)


@contextmanager
def ending_as_interrupted() -> Iterator[None]:
    """Let SIGTERM, a closed terminal (SIGHUP) and Windows' Ctrl-Break end what is inside as Ctrl-C does, by KeyboardInterrupt.

    What is finished by then is kept and named. A signal that is ignored, as by nohup, stays so. In other threads than the
    main one, where Python sets no handlers, this does nothing.
    """
    before = {number: signal.signal(number, signal.default_int_handler) for number in _heard()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _heard() -> list[int]:
    if threading.current_thread() is not threading.main_thread():
        return []
    numbers = [getattr(signal, name) for name in ENDING if hasattr(signal, name)]
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


def _leave(number: int, frame: object) -> None:
    # Past what the stream holds, in which this may have come in between.
    with suppress(OSError):
        os.write(2, b"\nStopped.\n")
    os._exit(STOPPED)


def leave(seconds: float) -> None:
    """End the process with exit code 0 if threads still work that Python would wait for, after so many seconds.

    Nothing interrupts a thread; what is to be kept must have been kept before. Where none works, this returns.
    """
    deadline = time.monotonic() + seconds
    others = [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.current_thread()]
    for thread in others:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in others):
        for stream in (sys.stdout, sys.stderr):
            write(stream, "")
        os._exit(0)


def write(stream: TextIO | None, text: str) -> None:
    """Write text and flush. Where nobody can be told any more, this and what follows is told nobody."""
    if stream is None:
        return
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            stream.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding))
        stream.flush()
    except ValueError:
        # It was closed.
        return
    except OSError:
        _let_go(stream)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether lines of this stream can be drawn again."""
    with suppress(ValueError):
        return stream is not None and stream.isatty()
    return False


def _open_descriptors() -> None:
    """Give each of the three standard descriptors something. A free one would go to the next file that is opened, a film for
    instance, and into that would go what a library says on its console."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The system takes the lowest free number, which is this one.
            if os.open(os.devnull, os.O_RDWR) == number:
                os.set_inheritable(number, True)


def _let_go(stream: TextIO) -> None:
    """Let what the stream still holds, and all that follows, go nowhere without an error."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
