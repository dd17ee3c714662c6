"""Limit how long one HTTP connection may stay silent, and state what would be lost if it were closed.

A connection whose request is being answered is never closed: a stream of a film or a download may take any time. Closed are
connections that send no request or only part of one, and those whose client does not read the answer. When the server needs
room, a connection that was not let in (no login) is closed too.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from webui.http.gate import Claim, Gate

# The key in a request's scope of the function that the doors call to let it in: `Connection.let_in`.
LET_IN = "eichi.let_in"


@dataclass(frozen=True)
class Patience:
    """Hold the timeouts of a connection, in seconds.

    head: for the request line and headers, from their first byte or the connection's beginning. idle: between two requests.
    stalled: without the client reading a byte of the answer; long, because a browser reads nothing of a paused film.
    """

    head: float = 15.0
    idle: float = 10.0
    stalled: float = 600.0


class Connection(H11Protocol):
    """Speak HTTP/1.1 on one connection, with timeouts and with a place counted by the gate.

    From uvicorn 0.54's class it uses `app`, `cycle`, `transport` and `_unset_keepalive_if_required` (`test_gradio_names.py`).
    """

    REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 15\r\nContent-Length: 0\r\n\r\n"

    def __init__(self, *args: Any, gate: Gate, patience: Patience, **settings: Any):
        super().__init__(*args, **settings)
        self.gate, self.patience = gate, patience
        self.timeout_keep_alive = patience.idle
        self._address: str | None = None
        self._head: asyncio.TimerHandle | None = None
        self._taken: asyncio.TimerHandle | None = None
        self._left = False
        # Whether the doors let the last request in, and whether they did so by a login.
        self._let_in, self._known = False, False
        self._doors, self.app = self.app, self._ask

    async def _ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._let_in = self._known = False
        self._note()
        await self._doors({**scope, LET_IN: self.let_in}, receive, send)

    def let_in(self, known: bool) -> None:
        """Protect the connection from being closed for others until this request is answered.

        known: whether it was let in by a login; then it also keeps a claim (Claim.KNOWN) between requests.
        """
        self._let_in, self._known = True, known
        self._note()

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Take a place at the gate and wait for the first request; answer 503 and close if the gate has no room."""
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
        """Give the place at the gate back and cancel the timers."""
        if self._address is None:
            return
        self._leave()
        for timer in (self._head, self._taken):
            if timer:
                timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the received bytes, and start or stop the timer for a request's head."""
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
        """Wait for the next request, and watch whether the client reads the answer."""
        super().on_response_complete()
        self._note()
        self._watch()

    def pause_writing(self) -> None:
        """Watch whether the client reads the bytes that wait to be sent."""
        super().pause_writing()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Answer malformed HTTP with 400, or close the connection if another answer is being sent on it."""
        if self._between():
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def claim(self) -> Claim:
        """Return what would be lost if the connection were closed.

        A client that was not let in has a claim only with a complete request without an answer so far, which can only be a
        login: an unfinished body or an answer that is not read gives none.
        """
        if not self._let_in:
            asks = not self._between() and not self.cycle.more_body and not self.cycle.response_started
            return Claim.LOGIN if asks else Claim.NONE
        if not self._between() or self.transport.get_write_buffer_size():
            return Claim.REQUEST
        return Claim.KNOWN if self._known else Claim.NONE

    def give_way(self) -> None:
        """Close the connection at once and free its place at the gate."""
        self._leave()
        self.transport.abort()

    def _leave(self) -> None:
        if not self._left and self._address is not None:
            self._left = True
            self.gate.note(self, self._address, waits=False)
            self.gate.leave(self._address)

    def _note(self) -> None:
        if not self._left and self._address is not None:
            self.gate.note(self, self._address, self._between() or not self._let_in)

    def _between(self) -> bool:
        """Tell whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _cut(self) -> None:
        self._head = None
        if self._between():
            self.transport.abort()

    def _watch(self, before: int | None = None) -> None:
        """Close the connection if the client reads nothing of the answer for `patience.stalled` seconds.

        before: bytes that waited to be sent at the previous look, None for a first one.
        """
        if self._taken and before is None:
            return
        self._taken = None
        waiting = self.transport.get_write_buffer_size()
        if waiting and waiting == before:
            self.transport.abort()
        elif waiting:
            self._taken = self.loop.call_later(self.patience.stalled, self._watch, waiting)
