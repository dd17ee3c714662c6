"""One studio for the whole folder: its networks are loaded, and its films made, once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.meaning.studio import Studio


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of networks this small wait for each other, for many times the work where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def circle(studio: Studio) -> str:
    """In the middle, with room on all sides."""
    return studio.circle(0.5, 0.5)


@pytest.fixture(scope="session")
def corner(studio: Studio) -> str:
    """At the top right, with room for two sections to the left and down."""
    return studio.circle(0.8, 0.2)


@pytest.fixture(scope="session")
def landscape(studio: Studio) -> str:
    return studio.landscape()
