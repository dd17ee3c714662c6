"""How many connections there may be, and who makes room for whom."""

from __future__ import annotations

import ipaddress
import logging
import time
from enum import IntEnum
from typing import Protocol

from webui.http.login import network

# Connections at once: where descriptors are plenty or are not counted (Windows), and where they are few.
MOST, LEAST = 400, 8
# Seconds between two lines about connections that were refused.
QUIET = 60.0

logger = logging.getLogger(__name__)


class Claim(IntEnum):
    """What is lost with a connection, the least first: nothing, a logged-in browser's next request's way, a login that is being
    looked at; and a request of who was let in, which no other takes the place of."""

    NONE = 0
    KNOWN = 1
    LOGIN = 2
    REQUEST = 3


class Claimant(Protocol):
    """A connection, as the gate sees it."""

    def claim(self) -> Claim:
        """Return what would be lost with it."""
        ...

    def give_way(self) -> None:
        """End, and be counted no more."""
        ...


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
        self._waiting: dict[Claimant, str] = {}
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
        """Give back the room that `enter` has taken for a connection from that address."""
        of = network(address)
        self._of[of] -= 1
        if not self._of[of]:
            del self._of[of]

    def note(self, connection: Claimant, address: str, waits: bool) -> None:
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
        if connection is None or claim == Claim.REQUEST:
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
