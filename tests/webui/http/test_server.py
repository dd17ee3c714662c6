"""Test connections: how many there may be, how long each may be silent, and how the program ends."""

from __future__ import annotations

import logging
import os
import re
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
from tests.webui.doorstep import answer, connect, doors, head, served
from webui.http import doors as doors_module
from webui.http import login as login_module
from webui.http.connection import Patience
from webui.http.gate import LEAST, MOST, Claim, Gate
from webui.http.login import Login
from webui.http.server import BACKLOG, EACH, FOR_FILMS, room_of

pytestmark = pytest.mark.slow

QUICK = Patience(head=0.5, idle=0.5, stalled=0.5)
unix = pytest.mark.skipif(sys.platform == "win32", reason="descriptors and signals of Unix")


def lasted(connection: socket.socket) -> float:
    """Return the seconds until the server ends the connection."""
    began = time.monotonic()
    answer(connection)
    return time.monotonic() - began


def test_a_connection_that_asks_nothing_ends() -> None:
    """300 of 300 were open after 75 s: uvicorn waits for ever for the first request, and for the rest of its first lines."""
    with served(doors(), QUICK) as port:
        silent, partly = connect(port), connect(port, b"GET /told HTTP/1.1\r\nhost: local")
        drop = connect(port, b"GET /told HTTP/1.1\r\n")
        began = time.monotonic()
        try:
            while time.monotonic() - began < 5:
                drop.sendall(b"x: y\r\n")
                time.sleep(0.1)
        except ConnectionError:
            pass
        finally:
            drop.close()
        assert time.monotonic() - began < 2.5
        assert lasted(silent) < 0.5 and lasted(partly) < 0.5


def test_a_connection_that_asks_nothing_more_ends() -> None:
    """Also one that begins its next request after each answer, a byte at a time."""
    with served(doors(), QUICK) as port:
        assert lasted(connect(port, head())) < 2
        began = connect(port, head() + b"GET / HT")
        assert lasted(began) < 2
        again = connect(port, head())
        again.recv(10_000)
        again.sendall(b"GET")
        assert lasted(again) < 2


def test_a_connection_that_is_used_lasts() -> None:
    """Requests one after the other, a stream whose words come slowly, and an answer that is fetched slowly are no waste."""
    with served(doors(), QUICK) as port:
        with connect(port) as kept:
            for _ in range(6):
                kept.sendall(head())
                got = b""
                while not got.endswith(b"seen"):
                    got += kept.recv(10_000)
                assert b" 200 " in got
                time.sleep(0.2)
        assert answer(connect(port, head("/ticking", connection="close"))).count(b"\r\ndata: ") == 8
        size = 12 << 20
        with socket.socket() as slow:
            # Else the system takes all of it at once, and then nothing for long.
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
            slow.connect(("127.0.0.1", port))
            slow.sendall(head(f"/large?bytes={size}", connection="close"))
            got, began = 0, time.monotonic()
            while time.monotonic() < began + 2:
                got += len(slow.recv(100_000))
                time.sleep(0.02)
            got += len(answer(slow))
        assert got > size


def test_an_answer_that_nobody_takes_ends() -> None:
    """The socket, and the file behind it, stayed open for as long as somebody pretended to read."""
    with served(doors(), QUICK) as port, connect(port, head("/large?bytes=50000000")) as connection:
        connection.recv(1000)
        time.sleep(2)
        connection.settimeout(10)
        with pytest.raises(ConnectionError):
            while connection.recv(1 << 20):
                pass
            raise ConnectionResetError("ended without the whole")


def test_more_than_there_is_room_for(caplog: pytest.LogCaptureFixture) -> None:
    """What is too much is told so at once, and is logged once; when others leave, there is room again."""
    with served(doors(), QUICK, most=10) as port, ExitStack() as held:
        for _ in range(10):
            held.enter_context(connect(port, head("/ticking"))).recv(1000)
        began = time.monotonic()
        refused = [answer(connect(port)) for _ in range(30)]
        assert all(said.startswith(b"HTTP/1.1 503") or said == b"" for said in refused) and time.monotonic() - began < 3
        time.sleep(1)
        assert b" 200 " in answer(connect(port, head(connection="close")))
    assert len([record for record in caplog.records if "refused" in record.getMessage()]) == 1


def test_who_asks_nothing_gives_way() -> None:
    """420 connections with half a head each had everybody else refused until they were cut."""
    with served(doors(), most=10) as port, ExitStack() as held:
        working = held.enter_context(connect(port, head("/ticking", connection="close")))
        working.recv(1000)
        partly = [held.enter_context(connect(port, b"GET /login HTTP/1.1\r\nx: y")) for _ in range(9)]
        kept = connect(port, head())
        got = b""
        while not got.endswith(b"seen"):
            got += kept.recv(10_000)
        assert answer(partly[0]) == b""
        for _ in range(30):
            held.enter_context(connect(port, b"GET /login HTTP/1.1\r\n"))
            assert b" 200 " in answer(connect(port, head(connection="close")))
        # A client that was answered and asks nothing more counts as waiting; one whose answer goes on does not.
        assert answer(kept) == b""
        assert answer(working).endswith(b"0\r\n\r\n")


def session(port: int) -> str:
    """Log in and return the session's cookie."""
    form = b"username=me&password=secret"
    got = answer(connect(port, head("/login", "POST", content_length=len(form), connection="close") + form))
    return re.search(rb"set-cookie: (eichi-session-[^;]+)", got)[1].decode()


@pytest.fixture
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login_module, "COST", {"n": 2, "r": 8, "p": 1})


@pytest.mark.usefixtures("quick_hashes")
def test_a_stranger_keeps_no_owner_out() -> None:
    """400 connections, each with a byte of a login's form, had the owner refused for 25 s, as often as somebody liked."""
    begun = [
        head("/login", "POST", content_length=100) + b"a",
        head("/login", "POST", transfer_encoding="chunked"),
        head("/login", transfer_encoding="chunked"),
        head("/gradio_api/upload", "POST", content_length=10**8) + b"a",
        head("/length", "POST", content_length=100) + b"a",
        head("/length", "POST", content_length=100, host="elsewhere.example") + b"a",
        # A session is of a request, not of what came before.
        head("/login") + head("/length", "POST", content_length=100),
    ]
    with served(doors(Login({"me": "secret"})), most=10) as port, ExitStack() as held:
        cookie = session(port)
        film = held.enter_context(connect(port, head("/ticking", cookie=cookie, connection="close")))
        upload = head("/gradio_api/upload", "POST", content_length=1000, cookie=cookie, connection="close")
        sending = held.enter_context(connect(port, upload + b"x" * 500))
        kept = held.enter_context(connect(port, head(cookie=cookie)))
        while not kept.recv(10_000).endswith(b"seen"):
            pass
        for said in begun:
            for _ in range(12):
                held.enter_context(connect(port, said))
            time.sleep(0.1)
            assert b" 200 " in answer(connect(port, head(cookie=cookie, connection="close"))), said
        # Running requests, and a browser between two requests, are not pushed out either.
        kept.sendall(head(cookie=cookie, connection="close"))
        assert b" 200 " in answer(kept)
        sending.sendall(b"x" * 500)
        assert answer(sending).endswith(b"1000") and answer(film).endswith(b"0\r\n\r\n")


@pytest.mark.usefixtures("quick_hashes")
def test_answers_that_a_stranger_does_not_take_keep_no_owner_out() -> None:
    """They stayed for ten minutes."""
    with served(doors(Login({"me": "secret"})), most=4) as port, ExitStack() as held:
        cookie = session(port)
        for _ in range(4):
            idle = held.enter_context(socket.socket())
            idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            idle.connect(("127.0.0.1", port))
            idle.settimeout(0.3)
            # Until nothing more is taken: the answers fill what the system holds.
            with suppress(OSError):
                for _ in range(100_000):
                    idle.sendall(head("/login") * 20)
        for _ in range(3):
            assert b" 200 " in answer(connect(port, head(cookie=cookie, connection="close")))


@pytest.mark.usefixtures("quick_hashes")
def test_a_login_is_looked_at_in_a_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose form has come whole is not pushed out by those who send none, also where looking at it takes a while."""
    right = login_module.matches
    monkeypatch.setattr(login_module, "matches", lambda *args: time.sleep(1) or right(*args))
    form = b"username=me&password=secret"
    with served(doors(Login({"me": "secret"})), most=10) as port, ExitStack() as held:
        phone = held.enter_context(connect(port, head("/login", "POST", content_length=len(form), connection="close")))
        time.sleep(0.2)
        phone.sendall(form)
        for _ in range(30):
            held.enter_context(connect(port, head("/login", "POST", content_length=100) + b"a"))
        assert b"set-cookie: eichi-session" in answer(phone)


def test_a_login_comes_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """It had the half minute of a large form. A request that needs none has no more."""
    monkeypatch.setattr(doors_module, "LOGIN_SECONDS", 0.5)
    with served(doors(Login({"me": "secret"}))) as port:
        began = time.monotonic()
        never = connect(port, head("/login", "POST", content_length=100) + b"a")
        nor = connect(port, head("/login", transfer_encoding="chunked"))
        slow = connect(port, head("/login", "POST", content_length=26, connection="close") + b"username=me")
        time.sleep(0.2)
        slow.sendall(b"&password=wrong")
        assert b" 401 " in answer(slow) and b" 408 " in answer(never) and b" 408 " in answer(nor)
        assert time.monotonic() - began < 5


class Held:
    """Stand in for a connection as the gate sees it."""

    def __init__(self, gate: Gate, address: str, claim: Claim):
        self.gate, self.address, self.ended = gate, address, False
        self.claim = lambda: claim
        assert gate.enter(address)
        gate.note(self, address, waits=True)

    def give_way(self) -> None:
        self.ended = True
        self.gate.note(self, self.address, waits=False)
        self.gate.leave(self.address)


def test_who_gives_way_first() -> None:
    """Whoever had waited longest did, which may be the owner's browser between two requests, or his slow line."""
    gate = Gate(20)
    owner = [Held(gate, "10.0.0.3", Claim.NONE), Held(gate, "10.0.0.3", Claim.KNOWN), Held(gate, "10.0.0.3", Claim.LOGIN)]
    intervals = [Held(gate, f"10.0.0.{1 + number % 2}", Claim.NONE) for number in range(17)]
    # One after the other, while those that came before are there.
    intervals.extend(Held(gate, "10.0.0.1", Claim.NONE) for _ in range(100))
    assert not any(one.ended for one in owner) and [one.ended for one in intervals[-9:]] == [False] * 9
    # One address ends its own when it has half, and what is being answered never.
    full = Gate(20)
    busy = [Held(full, "10.0.0.1", Claim.REQUEST) for _ in range(10)]
    assert not full.enter("10.0.0.1")
    later = [Held(full, "10.0.0.2", claim) for claim in (Claim.LOGIN, Claim.KNOWN, Claim.NONE)]
    busy += [Held(full, "10.0.0.3", Claim.REQUEST) for _ in range(7)]
    for number in (2, 1, 0):
        busy.append(Held(full, "10.0.0.4", Claim.REQUEST))
        assert [one.ended for one in later] == [place >= number for place in range(3)]
    assert not full.enter("10.0.0.5") and not any(one.ended for one in busy)


def test_a_subscriber_is_one_address() -> None:
    """Of IPv6 one has 2**64 of them, and each had half of all connections."""
    gate = Gate(40)
    assert [gate.enter(f"2001:db8::{number:x}") for number in range(30)].count(True) == 20
    assert gate.enter("2001:db8:0:1::1") and gate.enter("::ffff:10.0.0.1")
    assert [gate.enter("::ffff:127.0.0.1") for _ in range(30)].count(True) == 18


def test_one_address_takes_half() -> None:
    """One address may have half of the connections; this machine, and a proxy that serves everybody, may have all."""
    gate = Gate(40, ("10.0.0.0/24",))
    assert [gate.enter("192.168.1.5") for _ in range(25)].count(True) == 20
    assert gate.enter("192.168.1.6") and [gate.enter("10.0.0.7") for _ in range(30)].count(True) == 19
    for _ in range(20):
        gate.leave("192.168.1.5")
    assert gate.enter("192.168.1.5") and [gate.enter("127.0.0.1") for _ in range(30)].count(True) == 19


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


def test_what_is_no_http_is_answered_and_logged_seldom(records: list[logging.LogRecord]) -> None:
    """Every line of nonsense was a line of the log; and nonsense behind a request that is being answered was a traceback."""
    with served(doors(), QUICK) as port:
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
                visitor.settimeout(10)
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
        time.sleep(1)
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
        deadline = time.monotonic() + 15
        status = None
        while status != 200 and time.monotonic() < deadline:
            try:
                status = urllib.request.urlopen(f"{url}/pulse/reverse", timeout=5).status
            except OSError:
                time.sleep(0.2)
        assert status == 200
    assert len(list((tmp_path / "out").rglob("*.mp4"))) >= 1
    assert (tmp_path / "errors").stat().st_size < 2000
