"""Provide one studio for all tests of this folder, so that networks are loaded and films made only once."""

from __future__ import annotations

import pytest

from tests.meaning.studio import Studio
from tests.threads import one_thread

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def circle(studio: Studio) -> str:
    """Return a picture of a circle in the middle, with room on all sides."""
    return studio.circle(0.5, 0.5)


@pytest.fixture(scope="session")
def corner(studio: Studio) -> str:
    """Return a picture of a circle at the top right, with room to move left or down for two sections."""
    return studio.circle(0.8, 0.2)


@pytest.fixture(scope="session")
def landscape(studio: Studio) -> str:
    return studio.landscape()
