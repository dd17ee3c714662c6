"""Provide one pool with the tiny networks, and pictures that differ."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from eichi_utils.models.pool import ModelPool
from eichi_utils.render import section_loop
from tests.eichi_utils.helpers import picture
from tests.threads import one_thread

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def pool(checkpoint: Path) -> ModelPool:
    """Return one pool for all runs, because loading the networks again would take longer than a run.

    It releases the text encoders after every prompt, as any pool, but loads them only once: that is half of a small run.
    """
    pool = ModelPool(checkpoint, device="cpu")
    pool._load_text = functools.cache(pool._load_text)
    return pool


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the paths of four different pictures of 48 x 32 pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    return [picture(folder / f"{number}.png", seed=number) for number in range(4)]


@pytest.fixture
def cheap_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace decoding, which is most of a tiny run's time, by as many grey frames."""

    def decode_frames(vae, latents, kept, room, side):
        yield torch.zeros(1, 3, 4 * latents.shape[2] - 3, 16, 16)

    monkeypatch.setattr(section_loop, "decode_frames", decode_frames)
