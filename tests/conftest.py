"""Provide what all tests share: a small random checkpoint, a photo, caches of their own, and the order of the files."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ("pytester", "tests.fake_machine", "tests.kinds")


def pytest_configure() -> None:
    """Let PyTorch use one processor in each process where several run tests, and turn garbage collection off meanwhile."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Imports make a million lasting objects; looking through them for garbage again and again takes a tenth of all time.
    gc.disable()
    # A suite that is started in the background has these ignored, and every program that it starts would have them ignored too.
    for number in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """Turn garbage collection on again, for the objects of the tests only: those of the modules are never garbage."""
    gc.freeze()
    gc.enable()


# Slow test files, the slowest first. A process takes whole files in this order: a slow one at the end would keep all waiting.
DEAR = (
    "webui/test_browser.py",
    "webui/test_browser_lora.py",
    "webui/test_browser_models.py",
    "webui/forms/test_boundary.py",
    "webui/live/test_timeline.py",
    "webui/http/test_server.py",
    "webui/http/test_connection.py",
    "webui/test_browser_doors.py",
    "webui/test_browser_tabs.py",
    "meaning/test_pictures.py",
    "golden/test_golden.py",
    "webui/test_browser_ends.py",
    "webui/test_tabs.py",
    "webui/test_output.py",
    "eichi_utils/render/test_driver.py",
    "diffusers_helper/vae/test_vae_decode.py",
    "diffusers_helper/memory/test_streaming.py",
    "diffusers_helper/checkpoints/test_loading.py",
    "diffusers_helper/models/test_compiled.py",
    "eichi_utils/render/test_effects.py",
    "meaning/test_faults.py",
    "webui/http/test_path_check.py",
    "eichi_utils/models/test_weight_cache.py",
    "benchmarks/test_speed.py",
    "miniature/test_sampled.py",
    "meaning/test_directions.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the slow files begin first."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(DEAR)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint with all components and random weights; tests that damage it work on a copy."""
    from miniature.random_checkpoint import build

    return build(tmp_path_factory.mktemp("models") / "checkpoint")


@pytest.fixture(scope="session")
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return an iterator over new paths below one folder. It is faster than `tmp_path`, which lists all earlier folders."""
    folder = tmp_path_factory.mktemp("own")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def own_cache(own_folders: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test caches, measured times and a user's folder of its own, so that it does not touch the real ones."""
    folder = next(own_folders)
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "home"))
    for place, name in (("eichi_utils.files.paths.CACHE", "cache"), ("eichi_utils.jobs.timings.SETTINGS", "settings")):
        (folder / name).mkdir(parents=True)
        monkeypatch.setattr(place, folder / name)


@pytest.fixture(scope="session")
def photo() -> Path:
    """Return a real photo, 377 x 600, that is part of the gradio package."""
    return Path(importlib.util.find_spec("gradio").origin).parent / "media_assets" / "images" / "tower.jpg"
