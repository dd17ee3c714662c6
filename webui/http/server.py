"""The listening socket, and the server behind it from its start to its end."""

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

from eichi_utils.setup.console import write
from webui.http.connection import Connection, Patience
from webui.http.gate import LEAST, MOST, Gate

# Ports tried before giving up.
PORTS_TRIED = 100
# Connections that wait to be accepted. The event loop takes so many at once before it looks at any of them.
BACKLOG = 32
# File descriptors that are left to the films: weights, pictures, the film's own files, threads and pipes.
FOR_FILMS = 64
# Descriptors of a connection: its socket, and the file that is sent or received.
EACH = 2
# Descriptors asked for where a system gives more to those who ask (macOS begins with 256).
WANTED = 4096
# Seconds to wait for a descriptor.
PAUSE = 0.05
# Seconds that what is cancelled at the end has for its own ends, twice.
CUT_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Listener(socket.socket):
    """Accepts while there are descriptors, and turns away who comes when there are none.

    The event loop would try again and again, each time as often as connections may wait, and log each try. Turning away takes
    a descriptor as well: one that is held for it.
    """

    def __init__(self, family: int):
        super().__init__(family)
        self._spare = os.open(os.devnull, os.O_RDONLY)

    def accept(self) -> tuple[socket.socket, Any]:
        """Return the next connection and where it comes from. Raises OSError; where no descriptor is left, BlockingIOError."""
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
        """Stop listening, and give the spare descriptor back."""
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


class Server(uvicorn.Server):
    """Says where it is as soon as it answers."""

    def __init__(self, app: Any, gate: Gate, url: str = "", inbrowser: bool = False, patience: Patience | None = None):
        connection = functools.partial(Connection, gate=gate, patience=patience or Patience())
        # Without handlers of its own: what the server has to say goes where everything goes. Forwarded headers are the doors'.
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
        """Begin to answer, then print the address and open it in a browser, if asked to."""
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
        """End as uvicorn does, without the tracebacks of what is cut off."""
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
