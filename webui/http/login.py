"""Check names and passwords, slow down guessing, and keep the sessions of those who logged in.

A password is kept only as a slow hash (scrypt). `python -m webui.http.login NAME` asks for one and prints the line for
`--auth-file`. Starlette's SessionMiddleware is not used: its sessions lie in the browser, so the server cannot end them.
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
# Passwords hashed at once: of unknown browsers, and of browsers that logged in before. The most tries of each kind that are
# hashed or wait for it.
AT_ONCE, KNOWN_AT_ONCE, WAITING = 2, 1, 16
# The most characters of a password; longer ones are refused without hashing, which takes time.
LONGEST = 1024
# The most bytes of a file of names and passwords.
LARGEST = 64 << 10
# From the FREE-th wrong password on, each next try is delayed by 1, 2, 4... seconds: at most ADDRESS_WAITS for an address or
# browser, and at most NAME_WAITS for a name, because somebody else may be guessing at it. Tries at a name wait in line, as long
# as the line takes at most LONGEST_LINE seconds.
FREE, ADDRESS_WAITS, NAME_WAITS, LONGEST_LINE = 5, 30.0, 3.0, 15.0
# Seconds after which a failure is forgotten; addresses and browsers that are remembered.
FORGOTTEN, REMEMBERED = 900.0, 4096
# Waiting lines that names are hashed to; at some twenty tries a second, nobody can slow all of them before the first recovers.
LINES = 4096
# Seconds that a session lasts without a request, and in all; the most sessions at once.
IDLE, LONGEST_SESSION, SESSIONS = 86_400.0, 30 * 86_400.0, 1000

logger = logging.getLogger(__name__)


class AuthError(ValueError):
    """Report names and passwords that cannot be read. key: of a sentence; line: number of the file's line, from 1."""

    def __init__(self, key: str, line: int = 0):
        super().__init__(key)
        self.key, self.line = key, line


def hashed(password: str, salt: bytes | None = None) -> str:
    """Return the hash that is kept of a password, as `scrypt:SALT:HASH` with both in Base64. salt: 16 bytes, random if None."""
    salt = salt or secrets.token_bytes(16)
    # "surrogateescape": a password from a command line that is not UTF-8 has lone surrogates, which stand for its bytes.
    digest = hashlib.scrypt(password.encode("utf-8", "surrogateescape"), salt=salt, maxmem=MEMORY, **COST)
    return HASHED + ":".join(base64.b64encode(part).decode() for part in (salt, digest))


def matches(password: str, kept: str) -> bool:
    """Tell whether a password is the one that `hashed` returned `kept` for."""
    salt = base64.b64decode(kept.removeprefix(HASHED).partition(":")[0])
    return secrets.compare_digest(hashed(password, salt), kept)


def account(text: str) -> tuple[str, str]:
    """Return (user, password or hash) of a text "user:password" or "user:scrypt:SALT:HASH". Raises AuthError."""
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
    """Read a file with one "user:password" per line; empty lines and those that begin with # are skipped.

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
    """Hold one guesser's recent wrong passwords: their count, the time of the last, and until when the next one must wait."""

    count: int = 0
    last: float = 0.0
    until: float = 0.0


class Throttle:
    """Delay tries after wrong passwords, by key: an address, a name's line or a known browser. Keeps the last `REMEMBERED`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._of: OrderedDict[str, Failures] = OrderedDict()

    def __len__(self) -> int:
        return len(self._of)

    def wait(self, key: str) -> float:
        """Return the seconds until a key's next password may be checked."""
        known = self._of.get(key)
        return max(0.0, known.until - self._clock()) if known else 0.0

    def count(self, key: str, longest: float) -> None:
        """Count a try as wrong before it is checked, so that many tries at once do not escape the delay.

        longest: the longest delay in seconds until the next try.
        """
        now, known = self._clock(), self._of.pop(key, Failures())
        if now - known.last > FORGOTTEN:
            known = Failures()
        count = known.count + 1
        # The exponent is bounded because a power beyond the range of a float raises OverflowError.
        delay = min(2.0 ** min(count - FREE, 16), longest) if count >= FREE else 0.0
        self._of[key] = Failures(count, now, max(now, known.until) + delay)
        while len(self._of) > REMEMBERED:
            self._of.popitem(last=False)

    def take_back(self, key: str) -> None:
        """Take back the last try, which was right. Earlier ones stay, since a user may also guess others' passwords."""
        known = self._of.pop(key, None)
        if known and known.count > 1:
            self._of[key] = Failures(known.count - 1, known.last)


@dataclass
class Session:
    """Hold whose session it is, and when it began and was last used, in seconds of a monotonic clock."""

    user: str
    began: float
    seen: float


@dataclass(frozen=True)
class Answer:
    """Hold the outcome of a login.

    token: of the new session, "" if the login failed. known: a token by which the browser is recognised later, "" likewise.
    wait: seconds until the next try, if this one was refused without checking the password; else 0.
    """

    token: str = ""
    known: str = ""
    wait: float = 0.0


@dataclass
class Login:
    """Check logins and keep their sessions. accounts: user -> password, or what `hashed` returned for it.

    Not thread-safe: only the event loop's thread uses it; passwords are hashed in other threads.
    """

    accounts: Mapping[str, str]
    clock: Callable[[], float] = time.monotonic
    _sessions: OrderedDict[str, Session] = field(default_factory=OrderedDict)
    _known: OrderedDict[str, str] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self.accounts = {user: kept if kept.startswith(HASHED) else hashed(kept) for user, kept in self.accounts.items()}
        # The hash that an unknown name's password is compared with, so that the answer takes as long as for a known name.
        self._nobody = hashed(secrets.token_urlsafe())
        self._throttle = Throttle(self.clock)
        self._lines, self._key = Throttle(self.clock), secrets.token_bytes(32)
        # Keys: whether the browser is recognised.
        self._busy = {False: 0, True: 0}
        self._places = {False: asyncio.Semaphore(AT_ONCE), True: asyncio.Semaphore(KNOWN_AT_ONCE)}

    async def enter(self, user: str, password: str, address: str, known: str = "") -> Answer:
        """Check a name and a password, and begin a session if they are right.

        known: the token that the browser was given with an earlier session. A recognised browser is delayed only by its own
        mistakes and waits in a line of recognised ones, so that nobody else can lock its owner out.
        """
        recognised = user in self.accounts and self._known.get(_digest(known)) == user
        who = f"browser {_digest(known)}" if recognised else f"address {network(address)}"
        name = "" if recognised else self._line(user)
        wait = self._throttle.wait(who)
        # Others may be guessing at the same name, so this try waits its turn here as long as the line is short.
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
        """Return the user of a session's token and renew the session; None if it has ended or is unknown."""
        key, now = _digest(token), self.clock()
        session = self._sessions.get(key)
        if session and (now - session.seen > IDLE or now - session.began > LONGEST_SESSION):
            del self._sessions[key]
            return None
        if session:
            session.seen = now
        return session.user if session else None

    def leave(self, token: str) -> None:
        """End the session of a token."""
        self._sessions.pop(_digest(token), None)

    def _line(self, user: str) -> str:
        """Return the waiting line of a name, as a number below LINES in text. Unknown names have one too.

        Otherwise the delay would reveal which names exist. The key of the hash is random for each run of the server, so that
        nobody can find out which names share a line.
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
    """Return what counts as one client address: an IPv4 address, or a whole /64 network of IPv6, which one subscriber has."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if ip.version == 6 and ip.ipv4_mapped is None:
        return str(ipaddress.ip_network(f"{ip}/64", strict=False))
    return str(getattr(ip, "ipv4_mapped", None) or ip)


def _digest(token: str) -> str:
    """Return the key under which a token is kept: a hash, so that the time of a look-up reveals nothing of the tokens."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _shown(text: str) -> str:
    """Return a client's text shortened and quoted for the log."""
    return repr(text[:64])


def main(arguments: list[str]) -> int:
    """Ask for a password and print the line for a file of names and passwords. Returns the exit code."""
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
