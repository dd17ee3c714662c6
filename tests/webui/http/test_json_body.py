"""Test counting the values that a JSON body would become, without parsing it."""

from __future__ import annotations

import json
import random

import pytest

from webui.http import json_body as module
from webui.http.json_body import LEVELS, SIGNS, Values


def are_too_many(body: bytes, size: int = 1 << 18) -> bool:
    counted = Values()
    return any(counted.are_too_many(body[at : at + size]) for at in range(0, len(body), size))


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"[]," * SIGNS + b"[]]",
        b"[" + b"{}," * SIGNS + b"1]",
        b'""' * (SIGNS + 1),
        b"]" * (SIGNS + 1),
        b"[" * (LEVELS + 1),
        b'{"a":' * (LEVELS + 1),
        b'["\\\\",' + b"[" * (LEVELS + 1),
        "[[]]".encode("utf-16"),
        "[[]]".encode("utf-32-le"),
    ],
)
@pytest.mark.parametrize("size", [1, 1 << 18])
def test_what_takes_long_to_read_is_not_read(body: bytes, size: int) -> None:
    """8 MB of empty lists stopped the server for 16 s, and took 400 MB, for each request."""
    assert are_too_many(body, size)


def test_the_largest_form_is_read() -> None:
    """The largest possible form is read: a hundred sections with the longest prompts, in any letters."""
    prompts = ['[{,"\\' * 1000, "夕" * 5000, "\N{FIREWORKS}" * 2500]
    form = {"data": [prompts[number % 3] for number in range(100)] + [None] * 1000, "fn_index": 7, "session_hash": "x"}
    assert not are_too_many(json.dumps(form, ensure_ascii=False).encode())


def test_pieces_are_counted_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON that arrives in pieces is counted like the whole, wherever a piece ends: in a string, after a backslash, between
    signs."""
    monkeypatch.setattr(module, "SIGNS", 10**6)
    chance = random.Random(5)
    for _ in range(50):
        text = json.dumps([{chance.choice('a["\\,'): "".join(chance.choices('"\\[]{},ab', k=9))} for _ in range(9)]).encode()
        whole, pieces = Values(), Values()
        assert not whole.are_too_many(text)
        while text:
            size = chance.randint(1, 5)
            assert not pieces.are_too_many(text[:size])
            text = text[size:]
        # Two brackets and eight commas; of each item two brackets and two strings.
        assert (whole.signs, whole.level) == (pieces.signs, pieces.level) == (10 + 9 * 4, 0)
