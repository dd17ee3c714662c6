"""Shared by all tests: one small random checkpoint in the hub's layout, and a photo."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

pytest_plugins = ("tests.fake_machine",)


def pytest_configure() -> None:
    """Where several processes run tests, PyTorch takes one processor in each and in what they start, not all in each."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All components with random weights; tests that damage it work on a copy."""
    from miniature.random_checkpoint import build

    return build(tmp_path_factory.mktemp("models") / "checkpoint")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test neither reads nor fills the program's own caches and measured times."""
    monkeypatch.setattr("eichi_utils.paths.CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr("eichi_utils.timings.SETTINGS", tmp_path_factory.mktemp("settings"))


@pytest.fixture(scope="session")
def photo() -> Path:
    """A real photo, 377 x 600, that comes with gradio."""
    return Path(importlib.util.find_spec("gradio").origin).parent / "media_assets" / "images" / "tower.jpg"
