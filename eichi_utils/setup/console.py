"""Write to stdout or stderr, which may be closed, a pipe without a reader, or a terminal with a small character set.

Such a stream must not end the program and lose a film. Standard library only.
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

# Exit code of a stopped program, as shells have it for Ctrl-C.
STOPPED = 130
# Signals that ask a program to end.
ENDING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")


@contextmanager
def ready() -> Iterator[None]:
    """Wrap a whole program: both streams exist and take any text, and no failure of theirs changes its exit code."""
    _open_descriptors()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # No stream on Windows without a console, or if the caller closed it; libraries ask it for `isatty`.
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (open as long as the program)
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        # Flushed here: if Python's own end cannot flush a stream, it makes the exit code 120.
        for stream in (sys.stdout, sys.stderr):
            write(stream, "")


def leave_when_told() -> None:
    """End the program at once, with a line and code 130, when a signal asks it to end.

    The signals are Ctrl-C, SIGTERM, a closed terminal (SIGHUP) and Windows' Ctrl-Break. This is for the time in which a program
    loads: nothing has begun, and an exception could come out of any library, or be lost there. `ending_as_interrupted` takes
    over. The line is English, since the words of other languages are not loaded.
    """
    for number in _heard():
        signal.signal(number, _leave)


@contextmanager
def ending_as_interrupted() -> Iterator[None]:
    """Let SIGTERM, a closed terminal (SIGHUP) and Windows' Ctrl-Break raise KeyboardInterrupt inside, as Ctrl-C does.

    Results that are finished by then are kept and named. A signal that is ignored, as by nohup, stays ignored. Outside of the
    main thread, where Python sets no handlers, this does nothing.
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
    # Bypasses the stream's buffer, which the signal may have interrupted.
    with suppress(OSError):
        os.write(2, b"\nStopped.\n")
    os._exit(STOPPED)


def leave(seconds: float) -> None:
    """End the process with exit code 0 if other threads, for which Python would wait, are still working after `seconds`.

    Nothing interrupts a thread, so everything worth keeping must be saved before. If none is working, this returns.
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
    """Write text and flush. On a stream without a reader this text and all that follows are dropped."""
    if stream is None:
        return
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            stream.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding))
        stream.flush()
    except ValueError:
        # The stream is closed.
        return
    except OSError:
        _let_go(stream)


def is_terminal(stream: TextIO | None) -> bool:
    """Say whether the stream is a terminal, on which lines can be redrawn."""
    with suppress(ValueError):
        return stream is not None and stream.isatty()
    return False


def _open_descriptors() -> None:
    """Open the null device for each standard descriptor that is free.

    The next file that is opened, such as a film, would get a free one, and what a library prints would go into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The system gives the lowest free number, which is this one.
            if os.open(os.devnull, os.O_RDWR) == number:
                os.set_inheritable(number, True)


def _let_go(stream: TextIO) -> None:
    """Redirect a stream to the null device, with what it still holds, so that nothing more fails."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
