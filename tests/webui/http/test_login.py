"""Test names and passwords: how they are stored, how slowly they can be guessed, and how sessions begin and end."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from types import SimpleNamespace

import pytest

from tests.threads import in_a_loop
from tests.waiting import LONG
from webui.http import login as module
from webui.http.login import ADDRESS_WAITS, FREE, Answer, Login, Throttle, hashed, matches, network


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> list[float]:
    """Advance the clock instead of sleeping; return a list that collects the seconds."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.now += seconds

    monkeypatch.setattr(module, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    return slept


def enter(login: Login, password: str, address: str = "10.0.0.1", user: str = "me", known: str = "") -> Answer:
    return in_a_loop(login.enter(user, password, address, known))


def test_a_password_is_kept_as_a_slow_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stood in memory as it was typed, and was compared by its characters."""
    login = Login({"me": "secret", "you": hashed("pässword")})
    assert all(kept.startswith("scrypt:") for kept in login.accounts.values()) and "secret" not in repr(login)
    assert matches("secret", login.accounts["me"]) and not matches("Secret", login.accounts["me"])
    assert enter(login, "pässword", user="you").token and not enter(login, "password", user="you").token
    assert hashed("secret") != hashed("secret")
    monkeypatch.undo()
    began = time.perf_counter()
    hashed("secret")
    assert time.perf_counter() - began > 0.02


@pytest.mark.slow
def test_guessing_is_slow(clock: Clock, sleeps: list[float]) -> None:
    """500 wrong passwords were answered in 1.9 s. Now one address has five, and then one in half a minute."""
    login = Login({"me": "secret"}, clock)
    looked_at, began = 0, clock.now
    while clock.now < began + 300:
        looked_at += not enter(login, "wrong").wait
        clock.now += 0.5
    assert FREE <= looked_at <= FREE + 5 + 300 / ADDRESS_WAITS
    assert 0 < enter(login, "wrong").wait <= ADDRESS_WAITS


def test_many_at_once_are_no_way_around(clock: Clock) -> None:
    """A failure that is noted when it is known comes too late for those that were sent at the same time."""
    login = Login({"me": "secret"}, clock)

    async def flood() -> list[Answer]:
        return await asyncio.gather(*(login.enter("me", "wrong", "10.0.0.1") for _ in range(500)))

    assert sum(not answer.wait for answer in in_a_loop(flood())) == FREE


def test_an_attacker_does_not_lock_the_owner_out(clock: Clock, sleeps: list[float]) -> None:
    """Not from another address, where the owner waits a moment at most; and not from the same, for the browser is known."""
    login = Login({"me": "secret"}, clock)
    known = enter(login, "secret", "10.0.0.9").known
    for _ in range(200):
        enter(login, "wrong", "10.0.0.66")
        clock.now += 1
    sleeps.clear()
    assert enter(login, "secret", "10.0.0.7").token and sum(sleeps) <= 3
    assert enter(login, "secret", "10.0.0.66").wait > 0
    assert enter(login, "secret", "10.0.0.66", known=known).token
    # A browser that is known has no more guesses than an address.
    assert sum(not enter(login, "wrong", "10.0.0.9", known=known).wait for _ in range(50)) == FREE
    assert enter(login, "secret", "10.0.0.9", user="you", known=known).token == ""


def test_a_full_line_does_not_lock_the_owner_out(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen strangers who waited for a look at their passwords were all that could wait, and known browsers with them."""
    monkeypatch.setattr(module, "FREE", 100)
    login = Login({"me": "secret"}, clock)
    known = enter(login, "secret", "10.0.0.9").known
    login = Login({"me": "secret"}, clock, _known=login._known)

    async def crowded() -> None:
        release, real = threading.Event(), login._right
        # What strangers try takes until the owner is in.
        monkeypatch.setattr(
            login, "_right", lambda user, password: (password != "wrong" or release.wait(LONG)) and real(user, password)
        )
        strangers = [asyncio.create_task(login.enter(f"n{n}", "wrong", f"10.1.0.{n}")) for n in range(module.WAITING + 4)]
        while login._busy[False] < module.WAITING:
            await asyncio.sleep(0)
        assert (await login.enter("me", "secret", "10.1.0.1")).wait
        assert (await login.enter("me", "secret", "10.1.0.1", known)).token
        release.set()
        await asyncio.gather(*strangers)

    in_a_loop(crowded())


@pytest.mark.slow
def test_many_addresses_share_a_name(clock: Clock, sleeps: list[float]) -> None:
    """A thousand addresses with five guesses each stand in one line, and the line has an end."""
    login = Login({"me": "secret"}, clock)
    looked_at, began = 0, clock.now
    for number in range(1000):
        looked_at += not enter(login, "wrong", f"10.1.{number // 250}.{number % 250}").wait
    assert looked_at <= FREE + 2 + (clock.now - began) / 1.5
    assert max(sleeps) <= 15


def test_a_right_password_wipes_no_wrong_ones_away(clock: Clock, sleeps: list[float]) -> None:
    """Who has a name of his own could log in between any four guesses at another's."""
    login = Login({"me": "secret", "you": "own"}, clock)
    tries = 0
    for _ in range(50):
        tries += sum(not enter(login, "wrong").wait for _ in range(4))
        enter(login, "own", user="you")
    assert tries <= FREE


def test_what_is_remembered_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers of remembered addresses, unknown names and sessions are limited, so that new ones cannot fill the memory."""
    throttle = Throttle(clock)
    for number in range(10_000):
        throttle.count(f"address {number}", 30)
    assert len(throttle) == module.REMEMBERED
    monkeypatch.setattr(module, "SESSIONS", 3)
    login = Login({"me": "secret"}, clock)
    tokens = [enter(login, "secret").token for _ in range(5)]
    assert [login.user(token) for token in tokens] == [None, None, "me", "me", "me"]
    monkeypatch.setattr(module, "LINES", 3)
    for number in range(30):
        clock.now += 1000
        enter(login, "wrong", f"10.2.0.{number}", user=f"nobody{number}")
    assert len(login._lines) <= 3


def test_failures_are_forgotten(clock: Clock, sleeps: list[float]) -> None:
    login = Login({"me": "secret"}, clock)
    for _ in range(FREE):
        enter(login, "wrong")
    assert enter(login, "secret").wait
    clock.now += module.FORGOTTEN + 1
    assert [bool(enter(login, "wrong").wait) for _ in range(FREE)] == [False] * FREE


def test_each_failure_is_logged_without_the_password(caplog: pytest.LogCaptureFixture) -> None:
    """None was; and a name comes from anybody, who would write lines of his own into the log."""
    login = Login({"me": "secret"})
    enter(login, "pa55word", "10.0.0.1", "me\n[2026-01-01] all is well")
    enter(login, "pa55word", "10.0.0.1", "x" * 5000)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "10.0.0.1" in caplog.text and "me\\n[2026" in caplog.text and "pa55word" not in caplog.text
    assert all(len(record.getMessage()) < 150 for record in caplog.records)


def test_names_that_nobody_has_take_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else their answer's time tells which names there are; and a password of a megabyte is hashed for nobody."""
    seen: list[str] = []
    monkeypatch.setattr(module, "matches", lambda password, kept: seen.append(kept) or False)
    login = Login({"me": "secret"})
    enter(login, "wrong", user="nobody")
    enter(login, "wrong", user="me")
    enter(login, "x" * 2000)
    assert len(seen) == 2 and seen[0].startswith("scrypt:")


def test_names_are_not_told_by_their_lines(clock: Clock, sleeps: list[float]) -> None:
    """All names that nobody has stood in one line: after nine wrong tries at such, they took three seconds, and "me" none."""
    login = Login({"me": "secret", "you": "other"}, clock)
    # One with which none of these names share a line.
    login._key = bytes(32)
    for number in range(9):
        enter(login, "wrong", f"10.3.{number}.1", user=f"nobody{number}")

    def tries(user: str, network: int) -> list[tuple[bool, float]]:
        """Try a name ten times, each from another address; return for each whether it was refused and how long it waited."""
        seen = []
        for number in range(10):
            began = clock.now
            refused = bool(enter(login, "wrong", f"10.{network}.{number}.1", user=user).wait)
            seen.append((refused, clock.now - began))
        return seen

    known, *others = (tries(user, 4 + number) for number, user in enumerate(("me", "you", "root", "", "\ud800")))
    assert others == [known] * 4 and known[0] == (False, 0.0) and known[-1][1] > 0


def test_passwords_do_not_hold_up_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are hashed in threads, two at once, while everything else goes on."""
    running, go = [], threading.Event()

    def slow(password: str, kept: str) -> bool:
        running.append(password)
        return not go.wait(LONG)

    monkeypatch.setattr(module, "matches", slow)
    login = Login({"me": "secret"})

    async def both() -> None:
        tries = [asyncio.create_task(login.enter("me", "wrong", f"10.0.0.{number}")) for number in range(4)]
        while len(running) < 2 or login._busy[False] < 4:
            await asyncio.sleep(0.005)
        # The loop goes on meanwhile, and a third, which would be one too many, has time to start.
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert len(running) == 2
        go.set()
        await asyncio.gather(*tries)

    in_a_loop(asyncio.wait_for(both(), LONG))
    assert len(running) == 4


def test_sessions_end(clock: Clock) -> None:
    """Tokens of gradio's were valid for as long as the program ran."""
    login = Login({"me": "secret"}, clock)
    used, unused = enter(login, "secret").token, enter(login, "secret").token
    for _ in range(29):
        clock.now += module.IDLE - 1
        assert login.user(used) == "me"
    assert login.user(unused) is None and login.user("") is None
    clock.now += 2 * module.IDLE - 1
    assert login.user(used) is None
    third = enter(login, "secret").token
    login.leave(third)
    assert login.user(third) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::1", True),
        ("nonsense", "nonsense", True),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, same: bool) -> None:
    assert (network(one) == network(other)) is same
