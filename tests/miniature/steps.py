"""Training runs of so many steps, whatever the machine; their own limit is a time."""

from __future__ import annotations

import pytest

from miniature.training import Session


def run_steps(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """From now on."""

    def running(session: Session) -> bool:
        session.progress = session.steps / max(count, 1)
        session.steps += 1
        return session.steps <= count

    monkeypatch.setattr(Session, "running", running)
