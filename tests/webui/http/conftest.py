"""Passwords cost nothing here."""

from __future__ import annotations

import pytest

from webui.http import login


@pytest.fixture(autouse=True)
def cheap_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the hash's slowness is tested, but that of guessing."""
    monkeypatch.setattr(login, "COST", {"n": 2, "r": 8, "p": 1})
