"""Shared by all tests: one small random checkpoint in the hub's layout, and a photo."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ("pytester", "tests.fake_machine", "tests.kinds")


def pytest_configure() -> None:
    """Where several processes run tests, PyTorch takes one processor in each and in what they start, not all in each."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Importing makes a million objects that stay; looking through them for garbage again and again takes a tenth of all time.
    gc.disable()


def pytest_collection_finish() -> None:
    """What the modules are made of is no garbage; from now on only what the tests make is looked through."""
    gc.freeze()
    gc.enable()


# Dearest first. A process takes files as a whole, in this order: one of these as the last would be waited for by all others.
DEAR = (
    "webui/test_browser.py",
    "webui/test_browser_lora.py",
    "webui/test_browser_models.py",
    "webui/forms/test_boundary.py",
    "webui/live/test_timeline.py",
    "webui/http/test_server.py",
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
    """Dear files begin first."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(DEAR)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All components with random weights; tests that damage it work on a copy."""
    from miniature.random_checkpoint import build

    return build(tmp_path_factory.mktemp("models") / "checkpoint")


@pytest.fixture(scope="session")
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Paths below one folder, another with every `next`: pytest's own way looks through all that were made before."""
    folder = tmp_path_factory.mktemp("own")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def own_cache(own_folders: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A test neither reads nor fills the program's own caches and measured times, nor the user's own folder."""
    folder = next(own_folders)
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "home"))
    for place, name in (("eichi_utils.files.paths.CACHE", "cache"), ("eichi_utils.jobs.timings.SETTINGS", "settings")):
        (folder / name).mkdir(parents=True)
        monkeypatch.setattr(place, folder / name)


@pytest.fixture(scope="session")
def photo() -> Path:
    """A real photo, 377 x 600, that comes with gradio."""
    return Path(importlib.util.find_spec("gradio").origin).parent / "media_assets" / "images" / "tower.jpg"
