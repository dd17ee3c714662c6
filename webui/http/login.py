"""Names, passwords, sessions: who may come in, and how slowly one may guess.

A password is kept as a slow hash only. `python -m webui.http.login NAME` asks for one and prints the line for `--auth-file`.
Not by starlette's SessionMiddleware: its sessions lie in the browser, where nobody can end them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import getpass
import hashlib
import ipaddress
import logging
import secrets
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from eichi_utils.files.safe_reading import UnsafeError, read_text

# scrypt's costs: 32 MiB and about a tenth of a second.
COST = MappingProxyType({"n": 2**15, "r": 8, "p": 1})
MEMORY = 64 << 20
HASHED = "scrypt:"
# Passwords that are tried at once, and that wait for it. Browsers that were let in before have as many of their own to wait,
# and are tried one at a time.
AT_ONCE, KNOWN_AT_ONCE, WAITING = 2, 1, 16
# Longer ones are wrong; nobody types them, and hashing them takes time.
LONGEST = 1024
# Of a file of names and passwords.
LARGEST = 64 << 10
# Wrong passwords without a delay; then 1, 2, 4... seconds from one address until the next is looked at, at most so many.
# A name has to wait less, and in line: somebody else may be guessing at it.
FREE, ADDRESS_WAITS, NAME_WAITS, LONGEST_LINE = 5, 30.0, 3.0, 15.0
# Seconds after which a failure is forgotten; addresses and browsers that are remembered.
FORGOTTEN, REMEMBERED = 900.0, 4096
# Lines that names stand in; with some twenty tries a second, nobody makes all of them slow before the first is forgotten.
LINES = 4096
# Seconds that a session lasts without a visit, and at all; sessions at once.
IDLE, LONGEST_SESSION, SESSIONS = 86_400.0, 30 * 86_400.0, 1000

logger = logging.getLogger(__name__)


class AuthError(ValueError):
    """Names and passwords that cannot be read. key: of a sentence; line: of the file, from 1."""

    def __init__(self, key: str, line: int = 0):
        super().__init__(key)
        self.key, self.line = key, line


def hashed(password: str, salt: bytes | None = None) -> str:
    """Return what is kept of a password: `scrypt:SALT:HASH`, both in Base64."""
    salt = salt or secrets.token_bytes(16)
    # Half a surrogate pair, as of a command line that is no UTF-8, has bytes as well.
    digest = hashlib.scrypt(password.encode("utf-8", "surrogateescape"), salt=salt, maxmem=MEMORY, **COST)
    return HASHED + ":".join(base64.b64encode(part).decode() for part in (salt, digest))


def matches(password: str, kept: str) -> bool:
    """Whether it is the password of which `hashed` has kept this."""
    salt = base64.b64decode(kept.removeprefix(HASHED).partition(":")[0])
    return secrets.compare_digest(hashed(password, salt), kept)


def account(text: str) -> tuple[str, str]:
    """Read "user:password" or "user:scrypt:...". Raises AuthError."""
    user, _, password = text.partition(":")
    if not user or not password:
        raise AuthError("page.flag.auth_form")
    if password.startswith(HASHED):
        try:
            sizes = [len(base64.b64decode(part, validate=True)) for part in password.removeprefix(HASHED).split(":")]
        except (binascii.Error, ValueError):
            sizes = []
        if sizes != [16, 64]:
            raise AuthError("page.flag.auth_hash")
    return user, password


def accounts_of(path: Path) -> dict[str, str]:
    """Read a file with a "user:password" in each line; empty ones and those that begin with # are left out.

    Raises AuthError, OSError.
    """
    try:
        lines = read_text(path, LARGEST).splitlines()
    except UnsafeError as error:
        raise AuthError("page.flag.auth_file_text") from error
    found = {}
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            try:
                user, password = account(line.strip())
            except AuthError as error:
                raise AuthError("page.flag.auth_file_line", number) from error
            found[user] = password
    if not found:
        raise AuthError("page.flag.auth_file_empty")
    return found


@dataclass
class Failures:
    """Wrong passwords of late. until: when the next may come."""

    count: int = 0
    last: float = 0.0
    until: float = 0.0


class Throttle:
    """Who has guessed wrong how often: an address, a name, a browser that was let in before. Knows the last `REMEMBERED`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._of: OrderedDict[str, Failures] = OrderedDict()

    def __len__(self) -> int:
        return len(self._of)

    def wait(self, key: str) -> float:
        """Return the seconds until a password of this one is looked at."""
        known = self._of.get(key)
        return max(0.0, known.until - self._clock()) if known else 0.0

    def count(self, key: str, longest: float) -> None:
        """Note a wrong password. It is noted before it is looked at, so that many at once are no way around."""
        now, known = self._clock(), self._of.pop(key, Failures())
        if now - known.last > FORGOTTEN:
            known = Failures()
        count = known.count + 1
        # The exponent is bounded, for a number of seconds past all bounds is no float.
        delay = min(2.0 ** min(count - FREE, 16), longest) if count >= FREE else 0.0
        self._of[key] = Failures(count, now, max(now, known.until) + delay)
        while len(self._of) > REMEMBERED:
            self._of.popitem(last=False)

    def take_back(self, key: str) -> None:
        """Note that the last one was right after all. Earlier ones stay: who has a password of his own may guess at others'."""
        known = self._of.pop(key, None)
        if known and known.count > 1:
            self._of[key] = Failures(known.count - 1, known.last)


@dataclass
class Session:
    """Holds who was let in, and when: `began`, and `seen` last, both of a clock that nobody sets."""

    user: str
    began: float
    seen: float


@dataclass(frozen=True)
class Answer:
    """What became of a login. token: of the session, known: by which the browser is recognised; "" where it failed.

    wait: seconds until the next try, where this one was not even looked at.
    """

    token: str = ""
    known: str = ""
    wait: float = 0.0


@dataclass
class Login:
    """Lets in who knows a name and its password. accounts: user -> password, or what `hashed` returned of it.

    Used by the event loop's thread alone; passwords are hashed in others.
    """

    accounts: Mapping[str, str]
    clock: Callable[[], float] = time.monotonic
    _sessions: OrderedDict[str, Session] = field(default_factory=OrderedDict)
    _known: OrderedDict[str, str] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self.accounts = {user: kept if kept.startswith(HASHED) else hashed(kept) for user, kept in self.accounts.items()}
        # What an unknown name's password is compared with, so that it takes as long.
        self._nobody = hashed(secrets.token_urlsafe())
        self._throttle = Throttle(self.clock)
        self._lines, self._key = Throttle(self.clock), secrets.token_bytes(32)
        # By whether the browser is recognised.
        self._busy = {False: 0, True: 0}
        self._places = {False: asyncio.Semaphore(AT_ONCE), True: asyncio.Semaphore(KNOWN_AT_ONCE)}

    async def enter(self, user: str, password: str, address: str, known: str = "") -> Answer:
        """Look at a name and a password. known: what the browser was given with an earlier session.

        A browser that was let in before is slowed by its own mistakes only, and waits in a line of such: nobody else can
        lock its owner out.
        """
        recognised = user in self.accounts and self._known.get(_digest(known)) == user
        who = f"browser {_digest(known)}" if recognised else f"address {network(address)}"
        name = "" if recognised else self._line(user)
        wait = self._throttle.wait(who)
        # At a name others may be guessing: its turn is waited for here, as long as the line is short.
        pause = self._lines.wait(name)
        if self._busy[recognised] >= WAITING or pause > LONGEST_LINE:
            wait = max(wait, pause - LONGEST_LINE, 1.0)
        if wait:
            logger.warning("login refused for a while: name %s from %s", _shown(user), _shown(address))
            return Answer(wait=wait)
        self._throttle.count(who, ADDRESS_WAITS)
        if name:
            self._lines.count(name, NAME_WAITS)
        self._busy[recognised] += 1
        try:
            await asyncio.sleep(pause)
            async with self._places[recognised]:
                right = await asyncio.to_thread(self._right, user, password)
        finally:
            self._busy[recognised] -= 1
        if not right:
            logger.warning("login failed: name %s from %s", _shown(user), _shown(address))
            return Answer()
        self._throttle.take_back(who)
        self._lines.take_back(name)
        return self._begin(user)

    def user(self, token: str) -> str | None:
        """Whose session it is, if it has not ended; this visit makes it last."""
        key, now = _digest(token), self.clock()
        session = self._sessions.get(key)
        if session and (now - session.seen > IDLE or now - session.began > LONGEST_SESSION):
            del self._sessions[key]
            return None
        if session:
            session.seen = now
        return session.user if session else None

    def leave(self, token: str) -> None:
        """End a session."""
        self._sessions.pop(_digest(token), None)

    def _line(self, user: str) -> str:
        """The line of a name, whether somebody has it or not: one that was slow from the first try would be told by that.

        There are so many and no more, and which names share one nobody can find out: the key is of this run.
        """
        digest = hashlib.blake2b(user.encode("utf-8", "surrogatepass"), key=self._key, digest_size=8).digest()
        return str(int.from_bytes(digest, "big") % LINES)

    def _right(self, user: str, password: str) -> bool:
        right = len(password) <= LONGEST and matches(password, self.accounts.get(user, self._nobody))
        return right and user in self.accounts

    def _begin(self, user: str) -> Answer:
        now = self.clock()
        answer = Answer(secrets.token_urlsafe(32), secrets.token_urlsafe(32))
        self._sessions[_digest(answer.token)] = Session(user, now, now)
        self._known[_digest(answer.known)] = user
        for kept in (self._sessions, self._known):
            while len(kept) > SESSIONS:
                kept.popitem(last=False)
        return answer


def network(address: str) -> str:
    """What counts as one address: all that one subscriber has, which of IPv6 is a /64."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if ip.version == 6 and ip.ipv4_mapped is None:
        return str(ipaddress.ip_network(f"{ip}/64", strict=False))
    return str(getattr(ip, "ipv4_mapped", None) or ip)


def _digest(token: str) -> str:
    """A token's key: looking it up in a table tells by its time nothing of the tokens."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _shown(text: str) -> str:
    """Somebody's text as one short word of a log."""
    return repr(text[:64])


def main(arguments: list[str]) -> int:
    """Ask for a password and write the line for a file of names and passwords."""
    if len(arguments) != 1 or ":" in arguments[0]:
        sys.stderr.write("usage: python -m webui.http.login NAME\n")
        return 2
    password = getpass.getpass()
    if not password or password != getpass.getpass("Again: "):
        sys.stderr.write("The two are not the same.\n")
        return 1
    sys.stdout.write(f"{arguments[0]}:{hashed(password)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
