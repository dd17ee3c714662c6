"""Open the listening socket, and run the HTTP server on it from start to shutdown."""

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
from typing import Any

import psutil
import uvicorn
from starlette.types import ASGIApp

from eichi_utils.setup.console import write
from webui.http.connection import Connection, Patience
from webui.http.gate import LEAST, MOST, Gate

# Ports tried before giving up.
PORTS_TRIED = 100
# The most connections that wait to be accepted. The event loop accepts up to as many before it handles any of them.
BACKLOG = 32
# File descriptors reserved for making films: weights, pictures, the film's own files, threads and pipes.
FOR_FILMS = 64
# File descriptors per connection: its socket, and the file that is sent or received.
EACH = 2
# The soft limit of file descriptors to ask the system for (macOS begins with 256).
WANTED = 4096
# Seconds to wait until the next try when no descriptor is free.
PAUSE = 0.05
# Seconds that cancelled tasks have to end at shutdown, and again as many for asynchronous generators.
CUT_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Listener(socket.socket):
    """Accept connections, and close new ones at once while no file descriptor is free.

    Otherwise the event loop would try again without end, each time as often as connections may wait, and log each try.
    Accepting a connection only to close it takes a descriptor too, so a spare one is kept for that.
    """

    def __init__(self, family: int):
        super().__init__(family)
        self._spare = os.open(os.devnull, os.O_RDONLY)

    def accept(self) -> tuple[socket.socket, Any]:
        """Return the next connection's socket and its address. Raises OSError; BlockingIOError if no descriptor is free."""
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
            # Another thread took the descriptor. Pause, because the event loop tries again at once.
            time.sleep(PAUSE)
        self._spare = _opened_again()
        raise BlockingIOError(errno.EAGAIN, "no file descriptor was left")

    def close(self) -> None:
        """Stop listening, and close the spare descriptor."""
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
        super().close()


def _opened_again() -> int:
    """Return a new spare descriptor; wait until one is free."""
    while True:
        try:
            return os.open(os.devnull, os.O_RDONLY)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            time.sleep(PAUSE)


class Server(uvicorn.Server):
    """Serve an ASGI application through `Connection`, and print the address once it answers.

    gate: which counts the connections. url: the address to print, "" for none. inbrowser: whether to open it in a browser.
    """

    def __init__(self, app: ASGIApp, gate: Gate, url: str = "", inbrowser: bool = False, patience: Patience | None = None):
        connection = functools.partial(Connection, gate=gate, patience=patience or Patience())
        # log_config=None: uvicorn's messages go to the program's log. proxy_headers=False: `Doors` reads forwarded headers.
        super().__init__(
            uvicorn.Config(
                app,
                http=connection,  # pyright: ignore[reportArgumentType] (it is called, and is a class to nobody)
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
        """Begin to answer, then print the address and open it in a browser if wanted."""
        await super().startup(sockets)
        if self._url:
            write(sys.stdout, f"{self._url}\n")
        if self._inbrowser:
            webbrowser.open(self._url)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the process is told to end. Only the end differs from uvicorn's.

        Uvicorn's would wait without a limit for handlers that work in threads, which nothing can interrupt, while here the
        worker has to end its film.
        """
        loop = (self.config.get_loop_factory() or asyncio.new_event_loop)()
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self.serve(sockets))
        finally:
            # Errors of tasks that are left behind do not matter: the process ends.
            loop.set_exception_handler(lambda *_: None)
            try:
                with _no_tracebacks():
                    loop.run_until_complete(_cut_off())
            finally:
                asyncio.set_event_loop(None)
                loop.close()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down as uvicorn does, without the tracebacks of interrupted requests."""
        with _no_tracebacks():
            await super().shutdown(sockets)


@contextmanager
def _no_tracebacks() -> Iterator[None]:
    """Silence uvicorn's error log inside: open requests of tabs that are cut off at the end are no errors."""
    said = logging.getLogger("uvicorn.error")
    level = said.level
    said.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        said.setLevel(level)


async def _cut_off() -> None:
    """Cancel all other tasks of the event loop, and wait at most twice CUT_SECONDS for their ends."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CUT_SECONDS)
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(asyncio.get_running_loop().shutdown_asyncgens(), CUT_SECONDS)


def room() -> int:
    """Raise the process's limit of file descriptors as far as allowed, and return how many connections it has room for."""
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
    """Return how many connections fit if a process may have `limit` file descriptors and already has `used` of them."""
    return min(max((limit - used - FOR_FILMS - BACKLOG) // EACH, LEAST), MOST)


def is_loopback(server: str) -> bool:
    """Tell whether only this machine can reach an address to listen at."""
    try:
        return ipaddress.ip_address(server).is_loopback
    except ValueError:
        return server == "localhost"


def listen(server: str, port: int) -> socket.socket:
    """Return a socket that listens at the port or the next free one of PORTS_TRIED; port 0 lets the system choose.

    Raises OSError if none is free.
    """
    family, *_, place = socket.getaddrinfo(server, port, type=socket.SOCK_STREAM)[0]
    last = min(port + PORTS_TRIED, 65536) - 1
    for number in range(port, last + 1):
        listener = Listener(family)
        # On Windows the option would take over a port that is in use.
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
    """Return the http address at which a browser on this machine reaches the listener."""
    host = "127.0.0.1" if server in ("0.0.0.0", "::") else server
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
