"""Limit training runs by steps instead of time, so that they are the same on every machine."""

from __future__ import annotations

import pytest

from miniature.training import Session


def run_steps(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let every training session from now on end after `count` steps."""

    def running(session: Session) -> bool:
        session.progress = session.steps / max(count, 1)
        session.steps += 1
        return session.steps <= count

    monkeypatch.setattr(Session, "running", running)
