"""The listening socket and what is behind it: how many connections there may be, and how long each may keep silent.

A connection that has a request of the server's is never cut: a film's stream or a download may take as long as it takes. What
is cut is one that sends no request, or only parts of one, and one whose answer nobody takes; and where room is wanted, one of
who was not let in.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import logging
import os
import socket
import sys
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import psutil
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from eichi_utils.setup.console import write
from webui.http.login import network

# Ports tried before giving up.
PORTS_TRIED = 100
# Connections that wait to be accepted. The event loop takes so many at once before it looks at any of them.
BACKLOG = 32
# File descriptors that are left to the films: weights, pictures, the film's own files, threads and pipes.
FOR_FILMS = 64
# Descriptors of a connection: its socket, and the file that is sent or received.
EACH = 2
# Connections at once: where descriptors are plenty or are not counted (Windows), and where they are few.
MOST, LEAST = 400, 8
# Descriptors asked for where a system gives more to those who ask (macOS begins with 256).
WANTED = 4096
# Seconds to wait for a descriptor.
PAUSE = 0.05
# Seconds that what is cancelled at the end has for its own ends, twice.
CUT_SECONDS = 1.0
# Seconds between two lines about connections that were refused.
QUIET = 60.0
# Where a request's scope has the function by which the doors let it in: `Connection.let_in`.
LET_IN = "eichi.let_in"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """Seconds. head: for a request's first lines, from their first byte or the connection's beginning. idle: between requests.

    stalled: without a byte of an answer taken; long, for a browser takes nothing of a film that is paused.
    """

    head: float = 15.0
    idle: float = 10.0
    stalled: float = 600.0


class Listener(socket.socket):
    """Accepts while there are descriptors, and turns away who comes when there are none.

    The event loop would try again and again, each time as often as connections may wait, and log each try. Turning away takes
    a descriptor as well: one that is held for it.
    """

    def __init__(self, family: int):
        super().__init__(family)
        self._spare = os.open(os.devnull, os.O_RDONLY)

    def accept(self) -> tuple[socket.socket, Any]:
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        logger.warning("no file descriptor is left: a connection was turned away")
        os.close(self._spare)
        try:
            super().accept()[0].close()
        except OSError:
            # Another thread was quicker. Whoever waits can be seen only by trying, so not too often.
            time.sleep(PAUSE)
        self._spare = _opened_again()
        raise BlockingIOError(errno.EAGAIN, "no file descriptor was left")

    def close(self) -> None:
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
        super().close()


def _opened_again() -> int:
    """A descriptor to hold; waits for one."""
    while True:
        try:
            return os.open(os.devnull, os.O_RDONLY)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            time.sleep(PAUSE)


class Claim(IntEnum):
    """What is lost with a connection, the least first: nothing, a logged-in browser's next request's way, a login that is being
    looked at; and a request of who was let in, which no other takes the place of."""

    NONE = 0
    KNOWN = 1
    LOGIN = 2
    REQUEST = 3


class Gate:
    """Who may come in: so many connections at all, and half of them from one address; loopback and proxies count as many.

    One more takes the place of one with a lesser claim than a request's, if there is one: of the least, that of the address
    with most connections which has waited longest. So who is not let in keeps nobody out, however many connections he holds.
    Used by the event loop's thread alone.
    """

    def __init__(self, most: int, proxies: tuple[str, ...] = ()):
        self.most = most
        self.proxies = tuple(ipaddress.ip_network(proxy, strict=False) for proxy in proxies)
        self._of: dict[str, int] = {}
        # In the order in which they began to wait.
        self._waiting: dict[Connection, str] = {}
        self._refused, self._told = 0, -QUIET

    def enter(self, address: str) -> bool:
        """Whether there is room for one more from that address, which then is taken."""
        of = network(address)
        crowded = self._of.get(of, 0) >= max(LEAST, self.most // 2) and not self._many(address)
        if (crowded or sum(self._of.values()) >= self.most) and not self._make_room(of if crowded else None):
            self._tell()
            return False
        self._of[of] = self._of.get(of, 0) + 1
        return True

    def leave(self, address: str) -> None:
        of = network(address)
        self._of[of] -= 1
        if not self._of[of]:
            del self._of[of]

    def note(self, connection: Connection, address: str, waits: bool) -> None:
        """Note whether a connection waits to be let in with a request, or has been."""
        if not waits:
            self._waiting.pop(connection, None)
        else:
            self._waiting.setdefault(connection, network(address))

    def _make_room(self, of: str | None) -> bool:
        """End a connection, of those from one address or of all. Whether there was one that may be ended."""
        found = (
            (connection.claim(), -self._of[whose], connection)
            for connection, whose in self._waiting.items()
            if of in (None, whose)
        )
        claim, _, connection = min(found, key=lambda one: one[:2], default=(Claim.REQUEST, 0, None))
        if claim == Claim.REQUEST:
            return False
        connection.give_way()
        return True

    def _many(self, address: str) -> bool:
        """Whether several users may come from that address."""
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return True
        ip = getattr(ip, "ipv4_mapped", None) or ip
        return ip.is_loopback or any(ip in net for net in self.proxies)

    def _tell(self) -> None:
        self._refused += 1
        if time.monotonic() - self._told >= QUIET:
            logger.warning("%d connections refused: there are %d", self._refused, sum(self._of.values()))
            self._refused, self._told = 0, time.monotonic()


class Connection(H11Protocol):
    """A connection that does not wait for ever. Of uvicorn 0.54's class it uses `app`, `cycle` and `transport`."""

    REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 15\r\nContent-Length: 0\r\n\r\n"

    def __init__(self, *args: Any, gate: Gate, patience: Patience, **settings: Any):
        super().__init__(*args, **settings)
        self.gate, self.patience = gate, patience
        self.timeout_keep_alive = patience.idle
        self._address: str | None = None
        self._head: asyncio.TimerHandle | None = None
        self._taken: asyncio.TimerHandle | None = None
        self._left = False
        # Of the last request: whether the doors let it in, and by a login.
        self._let_in, self._known = False, False
        self._doors, self.app = self.app, self._ask

    async def _ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._let_in = self._known = False
        self._note()
        await self._doors({**scope, LET_IN: self.let_in}, receive, send)

    def let_in(self, known: bool) -> None:
        """Give way no more until this request is answered. known: whether by a login; then it also waits longer than others."""
        self._let_in, self._known = True, known
        self._note()

    def connection_made(self, transport: asyncio.Transport) -> None:
        address = str((transport.get_extra_info("peername") or ("",))[0])
        if not self.gate.enter(address):
            transport.write(self.REFUSAL)
            transport.close()
            return
        self._address = address
        super().connection_made(transport)
        self.gate.note(self, address, waits=True)
        self._head = self.loop.call_later(self.patience.head, self._cut)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._address is None:
            return
        self._leave()
        for timer in (self._head, self._taken):
            if timer:
                timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._address is None or self.transport.is_closing():
            return
        if self._head is None and self._between():
            self._head = self.loop.call_later(self.patience.head, self._cut)
        super().data_received(data)
        if self._head and not self._between():
            self._head.cancel()
            self._head = None
        self._note()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        # What is no HTTP may come while an answer is being sent; then there is nothing to say it with.
        if self._between():
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def claim(self) -> Claim:
        """What would be lost with it.

        Of who was not let in only a whole request counts, which can be nothing but a login, until there is an answer: a body
        that does not come and an answer that is not taken are no reason to stay.
        """
        if not self._let_in:
            asks = not self._between() and not self.cycle.more_body and not self.cycle.response_started
            return Claim.LOGIN if asks else Claim.NONE
        if not self._between() or self.transport.get_write_buffer_size():
            return Claim.REQUEST
        return Claim.KNOWN if self._known else Claim.NONE

    def give_way(self) -> None:
        """End, and be counted no more."""
        self._leave()
        self.transport.abort()

    def _leave(self) -> None:
        if not self._left:
            self._left = True
            self.gate.note(self, self._address, waits=False)
            self.gate.leave(self._address)

    def _note(self) -> None:
        if not self._left:
            self.gate.note(self, self._address, self._between() or not self._let_in)

    def _between(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _cut(self) -> None:
        self._head = None
        if self._between():
            self.transport.abort()

    def _watch(self, before: int | None = None) -> None:
        """Cut the connection once nothing of what waits to be sent has been taken for long."""
        if self._taken and before is None:
            return
        self._taken = None
        waiting = self.transport.get_write_buffer_size()
        if waiting and waiting == before:
            self.transport.abort()
        elif waiting:
            self._taken = self.loop.call_later(self.patience.stalled, self._watch, waiting)


class Server(uvicorn.Server):
    """Says where it is as soon as it answers."""

    def __init__(self, app: Any, gate: Gate, url: str = "", inbrowser: bool = False, patience: Patience | None = None):
        connection = functools.partial(Connection, gate=gate, patience=patience or Patience())
        # Without handlers of its own: what the server has to say goes where everything goes. Forwarded headers are the doors'.
        super().__init__(
            uvicorn.Config(
                app,
                http=connection,
                ws="none",
                loop="asyncio",
                log_config=None,
                log_level="warning",
                backlog=BACKLOG,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._url, self._inbrowser = url, inbrowser

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._url:
            write(sys.stdout, f"{self._url}\n")
        if self._inbrowser:
            webbrowser.open(self._url)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to end; but for the end as uvicorn does.

        That waits for handlers which work in threads, where nothing can interrupt them, for as long as they like: here the film
        comes to its end meanwhile.
        """
        loop = (self.config.get_loop_factory() or asyncio.new_event_loop)()
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self.serve(sockets))
        finally:
            # What is left behind goes with the process.
            loop.set_exception_handler(lambda *_: None)
            try:
                with _no_tracebacks():
                    loop.run_until_complete(_cut_off())
            finally:
                asyncio.set_event_loop(None)
                loop.close()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        with _no_tracebacks():
            await super().shutdown(sockets)


@contextmanager
def _no_tracebacks() -> Iterator[None]:
    """Every open tab holds a stream; that it is cut off now is no error worth a traceback."""
    said = logging.getLogger("uvicorn.error")
    level = said.level
    said.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        said.setLevel(level)


async def _cut_off() -> None:
    """Cancel what still runs in the loop, and wait a moment for it."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CUT_SECONDS)
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(asyncio.get_running_loop().shutdown_asyncgens(), CUT_SECONDS)


def room() -> int:
    """Connections for which there are file descriptors beside those of the films, with as many as the system gives."""
    try:
        import resource
    except ImportError:
        return MOST
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft == resource.RLIM_INFINITY:
        return MOST
    return room_of(soft, psutil.Process().num_fds())


def room_of(limit: int, used: int) -> int:
    """Connections where a process may have `limit` descriptors, and has `used` before the first."""
    return min(max((limit - used - FOR_FILMS - BACKLOG) // EACH, LEAST), MOST)


def is_loopback(server: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(server).is_loopback
    except ValueError:
        return server == "localhost"


def listen(server: str, port: int) -> socket.socket:
    """A listening socket at the port or the next free one; port 0 lets the system choose."""
    family, *_, place = socket.getaddrinfo(server, port, type=socket.SOCK_STREAM)[0]
    last = min(port + PORTS_TRIED, 65536) - 1
    for number in range(port, last + 1):
        listener = Listener(family)
        # Elsewhere the option means "take over a port in use", the opposite of looking for a free one.
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((place[0], number, *place[2:]))
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            if number == last:
                raise
        else:
            return listener
    raise AssertionError("at least one port is tried")


def address(server: str, listener: socket.socket) -> str:
    """Where a browser on this machine finds the listener."""
    host = "127.0.0.1" if server in ("0.0.0.0", "::") else server
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
