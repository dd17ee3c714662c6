"""Test the server: what it logs, how it goes on without file descriptors, and how the program ends."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from eichi_utils.setup.console import ending_as_interrupted
from eichi_utils.user_data import log_file as logs
from eichi_utils.user_data.log_file import Seldom
from tests.waiting import LONG
from tests.webui.doorstep import answer, connect, doors, head, served
from webui.http.gate import LEAST, MOST
from webui.http.server import BACKLOG, EACH, FOR_FILMS, room_of

pytestmark = pytest.mark.slow

unix = pytest.mark.skipif(sys.platform == "win32", reason="descriptors and signals of Unix")


def test_room_is_what_films_leave() -> None:
    """Connections get what films leave of 1024 descriptors, as most systems give, of macOS' 256, of many, and of very few."""
    for limit, used in ((1024, 60), (256, 60), (100_000, 60), (64, 60)):
        room = room_of(limit, used)
        assert LEAST <= room <= MOST
        assert room == LEAST or room * EACH + BACKLOG + FOR_FILMS + used <= limit
    assert room_of(256, 60) >= 50 and room_of(1024, 60) == MOST


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[logging.LogRecord]]:
    """Collect log records as in a new process, whatever other tests' servers have changed in the loggers."""
    for name in ("uvicorn", "uvicorn.error"):
        said = logging.getLogger(name)
        monkeypatch.setattr(said, "propagate", True)
        monkeypatch.setattr(said, "disabled", False)
        monkeypatch.setattr(said, "level", logging.NOTSET)
        said.manager._clear_cache()
    kept: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = kept.append
    handler.addFilter(Seldom())
    logging.getLogger().addHandler(handler)
    yield kept
    logging.getLogger().removeHandler(handler)


def test_what_is_no_http_is_answered_and_logged_seldom(
    records: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line of nonsense was a line of the log; and nonsense behind a request that is being answered was a traceback."""
    monkeypatch.setattr(logs, "PERIOD", 100 * LONG)
    with served(doors()) as port:
        for _ in range(logs.OFTEN + 40):
            assert answer(connect(port, b"nonsense\r\n\r\n")).startswith(b"HTTP/1.1 400")
        answer(connect(port, head("/ticking") + b"nonsense\r\n\r\n"))
        assert b" 200 " in answer(connect(port, head(connection="close")))
    assert len(records) == logs.OFTEN and not any(record.exc_info for record in records)


@unix
def test_a_server_without_descriptors_turns_away(records: list[logging.LogRecord]) -> None:
    """Each try to accept was logged with a traceback, and each was followed by as many more as may wait: 2048, every second."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with served(doors()) as port, ExitStack() as held:
        visitors = [held.enter_context(socket.socket()) for _ in range(20)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(file.name) for file in Path("/dev/fd").iterdir()) + 1, hard))
        taken = []
        try:
            with suppress(OSError):
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            began = time.process_time()
            for visitor in visitors:
                visitor.settimeout(LONG)
                visitor.connect(("127.0.0.1", port))
                # Not closed meanwhile: that would leave a descriptor.
                with suppress(ConnectionError):
                    assert visitor.recv(100) == b""
            busy = time.process_time() - began
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in taken:
                os.close(descriptor)
        assert b" 200 " in answer(connect(port, head(connection="close")))
    assert len(records) == 20 and not any(record.exc_info for record in records) and busy < 2


@unix
def test_the_end_is_the_same_by_sigterm() -> None:
    """What SIGTERM interrupts ends as by Ctrl-C; afterwards the signal means again what it meant."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), ending_as_interrupted():
        signal.raise_signal(signal.SIGTERM)
        time.sleep(LONG)
    assert signal.getsignal(signal.SIGTERM) is before


@contextmanager
def film(tmp_path: Path, step_seconds: float, descriptors: int = 256) -> Iterator[tuple[subprocess.Popen, str]]:
    """Run the program while it makes a film; yield its process and its address."""
    flags = ["--port", "0", "--out", str(tmp_path / "out"), "--lang", "en"]
    command = [sys.executable, "-m", "tests.webui.served_film", str(descriptors), str(step_seconds), *flags]
    with (tmp_path / "errors").open("wb") as errors:
        program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            url = program.stdout.readline().strip()
            # A busy machine takes longer to start the server than the film would take.
            assert urllib.request.urlopen(f"{url}/begin", timeout=60).status == 200
            yield program, url
        finally:
            program.kill()
            program.communicate()


@pytest.mark.process
@unix
def test_sigterm_stops_the_film_and_then_the_program(tmp_path: Path) -> None:
    """SIGTERM, as of service managers and containers, ended the process at once: the film had no end, the log none either.

    A page's handler that read a large file kept the program from ending for as long as that took, films and all; and a
    traceback said that it had been cancelled.
    """
    with film(tmp_path, 0.5) as (program, url), ExitStack() as held:
        place = ("127.0.0.1", int(url.rpartition(":")[2]))
        assert urllib.request.urlopen(f"{url}/pulse/reverse").status == 200
        for path in ("slow", "pulse/reverse", "slow"):
            visitor = held.enter_context(socket.create_connection(place, 10))
            visitor.sendall(f"GET /{path} HTTP/1.1\r\nhost: {place[0]}\r\n\r\n".encode())
        assert [program.stdout.readline() for _ in range(2)] == ["Working\n"] * 2
        program.terminate()
        out, _ = program.communicate(timeout=60)
        assert out == "Stopped\n" and program.returncode == 0
    assert (tmp_path / "errors").read_text() == ""


@pytest.mark.process
@unix
def test_a_film_survives_300_idle_connections(tmp_path: Path) -> None:
    """At the limit of descriptors the film failed that was being made, and the log grew by 103 MB in 40 s."""
    with film(tmp_path, 0.1) as (program, url), ExitStack() as held:
        place = ("127.0.0.1", int(url.rpartition(":")[2]))
        for _ in range(300):
            held.enter_context(socket.create_connection(place, 10))
        assert program.stdout.readline() == "Finished\n"
        deadline = time.monotonic() + LONG
        status = None
        while status != 200 and time.monotonic() < deadline:
            try:
                status = urllib.request.urlopen(f"{url}/pulse/reverse", timeout=5).status
            except OSError:
                time.sleep(0.2)
        assert status == 200
    assert len(list((tmp_path / "out").rglob("*.mp4"))) >= 1
    assert (tmp_path / "errors").stat().st_size < 2000
