"""Make hashes of passwords cheap for these tests."""

from __future__ import annotations

import pytest

from webui.http import login


@pytest.fixture(autouse=True)
def cheap_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the password hash cheap: its cost is not tested here, only the slowness of guessing."""
    monkeypatch.setattr(login, "COST", {"n": 2, "r": 8, "p": 1})
