"""Test connections: how long each may be silent, how many there may be, and which of them gives way to others."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from contextlib import ExitStack, suppress
from functools import partial

import pytest

from tests.virtual_time import in_virtual_time
from tests.waiting import LONG, until
from tests.webui.doorstep import Watched, answer, connect, doors, head, lasted, lines_to, rest, served
from webui.http import doors as doors_module
from webui.http import gate as gate_module
from webui.http import login as login_module
from webui.http.connection import Patience
from webui.http.gate import Claim, Gate
from webui.http.login import Login

pytestmark = pytest.mark.slow

PATIENCE = Patience()


def test_a_connection_that_asks_nothing_ends() -> None:
    """300 of 300 were open after 75 s: uvicorn waits for ever for the first request, and for the rest of its first lines."""

    async def wait(said: bytes, more: bytes) -> float:
        line = await lines_to(doors())(said)
        ended = asyncio.create_task(lasted(line))
        while more and not ended.done():
            line[1].write(more)
            await asyncio.wait([ended], timeout=1)
        return await ended

    for said, more in ((b"", b""), (b"GET /told HTTP/1.1\r\nhost: local", b""), (b"GET /told HTTP/1.1\r\n", b"x: y\r\n")):
        assert in_virtual_time(wait(said, more)) == pytest.approx(PATIENCE.head)


def test_a_connection_that_asks_nothing_more_ends() -> None:
    """Also one that begins its next request after each answer, a byte at a time."""

    async def wait(said: bytes, more: bytes) -> float:
        line = await lines_to(doors())(said)
        await line[0].readuntil(b"seen")
        for byte in more:
            await asyncio.sleep(0.9 * PATIENCE.idle)
            line[1].write(bytes([byte]))
        return await lasted(line)

    assert in_virtual_time(wait(head(), b"")) == pytest.approx(PATIENCE.idle)
    assert in_virtual_time(wait(head() + b"GET / HT", b"")) == pytest.approx(PATIENCE.idle)
    assert in_virtual_time(wait(head(), b"G")) == pytest.approx(PATIENCE.head)
    assert in_virtual_time(wait(head(), b"GE")) == pytest.approx(PATIENCE.head - 0.9 * PATIENCE.idle)


def test_a_connection_that_is_used_lasts() -> None:
    """Requests one after the other, a stream whose words come slowly, and an answer that is fetched slowly are no waste."""
    size = 12 << 20

    async def ask_often() -> None:
        reader, writer = await lines_to(doors())(b"")
        for _ in range(6):
            writer.write(head())
            assert b" 200 " in await reader.readuntil(b"seen")
            await asyncio.sleep(0.9 * PATIENCE.idle)
        writer.close()

    async def take_a_stream() -> bytes:
        quick = Patience(head=0.3, idle=0.3, stalled=0.3)
        return await rest(await lines_to(doors(), quick)(head("/ticking", connection="close")))

    async def fetch_slowly() -> None:
        loop = asyncio.get_running_loop()
        reader, writer = await lines_to(doors())(head(f"/large?bytes={size}", connection="close"))
        got = 0
        while loop.time() < 3 * PATIENCE.stalled:
            got += len(await reader.read(100_000))
            await asyncio.sleep(0.1 * PATIENCE.stalled)
        assert got < size < got + len(await rest((reader, writer)))

    in_virtual_time(ask_often())
    assert in_virtual_time(take_a_stream()).count(b"\r\ndata: ") == 8
    in_virtual_time(fetch_slowly())


def test_an_answer_that_nobody_takes_ends() -> None:
    """The socket, and the file behind it, stayed open for as long as somebody pretended to read."""

    async def leave() -> None:
        line = await lines_to(doors())(head("/large?bytes=50000000"))
        await line[0].read(1000)
        await asyncio.sleep(2.1 * PATIENCE.stalled)
        assert len(await rest(line)) < 50_000_000 - 1000

    in_virtual_time(leave())


def test_more_than_there_is_room_for(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too much is told so at once, and is logged once; when others leave, there is room again."""
    monkeypatch.setattr(gate_module, "QUIET", 100 * LONG)
    with served(doors(), most=10) as port:
        with ExitStack() as held:
            for _ in range(10):
                held.enter_context(connect(port, head("/lasting"))).recv(1000)
            refused = [answer(connect(port)) for _ in range(30)]
            assert all(said.startswith(b"HTTP/1.1 503") or said == b"" for said in refused)
        until(lambda: b" 200 " in answer(connect(port, head(connection="close"))))
    assert len([record for record in caplog.records if "refused" in record.getMessage()]) == 1


def test_who_asks_nothing_gives_way() -> None:
    """420 connections with half a head each had everybody else refused until they were cut."""
    app = doors()
    with served(app, most=10) as port, ExitStack() as held:
        working = held.enter_context(connect(port, head("/lasting", connection="close")))
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
        app.app.state.enough = True
        assert answer(working).endswith(b"0\r\n\r\n")


def session(port: int) -> str:
    """Log in and return the session's cookie."""
    form = b"username=me&password=secret"
    got = answer(connect(port, head("/login", "POST", content_length=len(form), connection="close") + form))
    return re.search(rb"set-cookie: (eichi-session-[^;]+)", got)[1].decode()


def test_a_stranger_keeps_no_owner_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 connections, each with a byte of a login's form, had the owner refused for 25 s, as often as somebody liked."""
    # No limit of time helps the owner here.
    for name in ("BODY_SECONDS", "LOGIN_SECONDS"):
        monkeypatch.setattr(doors_module, name, 10 * LONG)
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
    app = doors(Login({"me": "secret"}))
    watched = Watched(app)
    with served(watched, Patience(idle=10 * LONG), most=10) as port, ExitStack() as held:
        cookie = session(port)
        film = held.enter_context(connect(port, head("/lasting", cookie=cookie, connection="close")))
        upload = head("/gradio_api/upload", "POST", content_length=1000, cookie=cookie, connection="close")
        sending = held.enter_context(connect(port, upload + b"x" * 500))
        kept = held.enter_context(connect(port, head(cookie=cookie)))
        while not kept.recv(10_000).endswith(b"seen"):
            pass
        for kind, said in enumerate(begun):
            for number in range(12):
                before, _, body = said.rpartition(b"\r\n\r\n")
                mark = b"%d-%d" % (kind, number)
                held.enter_context(connect(port, before + b"\r\nnumber: " + mark + b"\r\n\r\n" + body))
            until(partial(watched.has_seen, mark))
            assert b" 200 " in answer(connect(port, head(cookie=cookie, connection="close"))), said
        # Running requests, and a browser between two requests, are not pushed out either.
        kept.sendall(head(cookie=cookie, connection="close"))
        assert b" 200 " in answer(kept)
        sending.sendall(b"x" * 500)
        app.app.state.enough = True
        assert answer(sending).endswith(b"1000") and answer(film).endswith(b"0\r\n\r\n")


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


def test_a_login_is_looked_at_in_a_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose form has come whole is not pushed out by those who send none, also where looking at it takes a while."""
    right, looking, go = login_module.matches, threading.Event(), threading.Event()

    def matches(*args: str) -> bool:
        looking.set()
        return go.wait(LONG) and right(*args)

    monkeypatch.setattr(doors_module, "LOGIN_SECONDS", 10 * LONG)
    form = b"username=me&password=secret"
    app = Watched(doors(Login({"me": "secret"})))
    monkeypatch.setattr(login_module, "matches", matches)
    with served(app, most=10) as port, ExitStack() as held:
        asked = head("/login", "POST", content_length=len(form), connection="close", number="phone")
        phone = held.enter_context(connect(port, asked))
        until(lambda: app.has_seen(b"phone"))
        phone.sendall(form)
        assert looking.wait(LONG)
        for number in range(30):
            held.enter_context(connect(port, head("/login", "POST", content_length=100, number=number) + b"a"))
        until(lambda: app.has_seen(b"29"))
        go.set()
        assert b"set-cookie: eichi-session" in answer(phone)


def test_a_login_comes_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """It had the half minute of a large form. A request that needs none has no more."""
    monkeypatch.setattr(doors_module, "BODY_SECONDS", 10 * LONG)
    monkeypatch.setattr(doors_module, "LOGIN_SECONDS", 0.3)
    monkeypatch.setattr(doors_module, "DRAIN_SECONDS", 0.1)
    app = Watched(doors(Login({"me": "secret"})))
    with served(app) as port:
        never = connect(port, head("/login", "POST", content_length=100) + b"a")
        nor = connect(port, head("/login", transfer_encoding="chunked"))
        assert b" 408 " in answer(never) and b" 408 " in answer(nor)
        monkeypatch.setattr(doors_module, "LOGIN_SECONDS", LONG)
        asked = head("/login", "POST", content_length=26, connection="close", number="slow")
        slow = connect(port, asked + b"username=me")
        until(lambda: app.has_seen(b"slow"))
        slow.sendall(b"&password=wrong")
        assert b" 401 " in answer(slow)


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
