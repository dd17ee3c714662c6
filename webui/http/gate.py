"""Limit how many connections are open at once, and choose which one is closed to make room for a new one."""

from __future__ import annotations

import ipaddress
import logging
import time
from enum import IntEnum
from typing import Protocol

from webui.http.login import network

# Connections at once: the most, also where descriptors are not counted (Windows), and the least, where they are few.
MOST, LEAST = 400, 8
# Seconds between two lines about connections that were refused.
QUIET = 60.0

logger = logging.getLogger(__name__)


class Claim(IntEnum):
    """Rank what would be lost if a connection were closed, the least first.

    NONE: nothing. KNOWN: a logged-in browser's connection between two requests. LOGIN: a login that is being checked.
    REQUEST: a request that was let in; such a connection is never closed to make room.
    """

    NONE = 0
    KNOWN = 1
    LOGIN = 2
    REQUEST = 3


class Claimant(Protocol):
    """Describe what the gate needs of a connection."""

    def claim(self) -> Claim:
        """Return what would be lost if the connection were closed."""
        ...

    def give_way(self) -> None:
        """Close the connection at once and free its place at the gate."""
        ...


class Gate:
    """Admit at most `most` connections, and at most half of them from one address, except loopback addresses and proxies.

    If there is no room, a connection with a lesser claim than `Claim.REQUEST` is closed for the new one: among those with the
    least claim, the longest waiting one of the address with most connections. So clients without a login cannot block others,
    however many connections they hold. Not thread-safe: only the event loop's thread uses it.
    """

    def __init__(self, most: int, proxies: tuple[str, ...] = ()):
        self.most = most
        self.proxies = tuple(ipaddress.ip_network(proxy, strict=False) for proxy in proxies)
        self._of: dict[str, int] = {}
        # Connection -> its network, in the order in which they began to wait.
        self._waiting: dict[Claimant, str] = {}
        self._refused, self._told = 0, -QUIET

    def enter(self, address: str) -> bool:
        """Take a place for a connection from an address; return False if there is none."""
        of = network(address)
        crowded = self._of.get(of, 0) >= max(LEAST, self.most // 2) and not self._many(address)
        if (crowded or sum(self._of.values()) >= self.most) and not self._make_room(of if crowded else None):
            self._tell()
            return False
        self._of[of] = self._of.get(of, 0) + 1
        return True

    def leave(self, address: str) -> None:
        """Give back the place that `enter` has taken for a connection from that address."""
        of = network(address)
        self._of[of] -= 1
        if not self._of[of]:
            del self._of[of]

    def note(self, connection: Claimant, address: str, waits: bool) -> None:
        """Note whether a connection waits (has no request, or one that was not let in) and so may be closed for another."""
        if not waits:
            self._waiting.pop(connection, None)
        else:
            self._waiting.setdefault(connection, network(address))

    def _make_room(self, of: str | None) -> bool:
        """Close the waiting connection with the least claim; return False if there is none that may be closed.

        of: only connections from this network; None for all.
        """
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
        """Tell whether several users may share an address: loopback, a proxy, or one that is no IP address."""
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
