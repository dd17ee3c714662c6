"""One connection: how long it may keep silent, and what it has a claim to.

A connection that has a request of the server's is never cut: a film's stream or a download may take as long as it takes. What
is cut is one that sends no request, or only parts of one, and one whose answer nobody takes; and where room is wanted, one of
who was not let in.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from webui.http.gate import Claim, Gate

# Where a request's scope has the function by which the doors let it in: `Connection.let_in`.
LET_IN = "eichi.let_in"


@dataclass(frozen=True)
class Patience:
    """Seconds. head: for a request's first lines, from their first byte or the connection's beginning. idle: between requests.

    stalled: without a byte of an answer taken; long, for a browser takes nothing of a film that is paused.
    """

    head: float = 15.0
    idle: float = 10.0
    stalled: float = 600.0


class Connection(H11Protocol):
    """A connection that does not wait for ever.

    Of uvicorn 0.54's class it uses `app`, `cycle`, `transport` and `_unset_keepalive_if_required` (`test_gradio_names.py`).
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
        """Come in, if the gate lets one more from that address; else say so and close."""
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
        """Give the place back, and stop the clocks."""
        if self._address is None:
            return
        self._leave()
        for timer in (self._head, self._taken):
            if timer:
                timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what comes, within the time that a request's head may take."""
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
        """Wait for the next request, and for the answer to be taken."""
        super().on_response_complete()
        self._note()
        self._watch()

    def pause_writing(self) -> None:
        """Watch whether what waits to be sent is taken."""
        super().pause_writing()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Answer to what is no HTTP, or end the connection where an answer is being sent."""
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
        if not self._left and self._address is not None:
            self._left = True
            self.gate.note(self, self._address, waits=False)
            self.gate.leave(self._address)

    def _note(self) -> None:
        if not self._left and self._address is not None:
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
