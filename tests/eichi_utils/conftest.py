"""The tiny networks in one pool, and pictures that differ."""

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
    """One pool for all runs: loading again would cost more than a run.

    It lets go of the text encoders after every prompt, as anywhere, but their loading, half of a small run, is done once.
    """
    pool = ModelPool(checkpoint, device="cpu")
    pool._load_text = functools.cache(pool._load_text)
    return pool


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Four pictures that differ, 48 x 32."""
    folder = tmp_path_factory.mktemp("pictures")
    return [picture(folder / f"{number}.png", seed=number) for number in range(4)]


@pytest.fixture
def cheap_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flat grey instead of decoding, which is most of a tiny run's time. The frames are as many."""

    def decode_frames(vae, latents, kept, room, side):
        yield torch.zeros(1, 3, 4 * latents.shape[2] - 3, 16, 16)

    monkeypatch.setattr(section_loop, "decode_frames", decode_frames)
