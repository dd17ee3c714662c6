"""Provide LoRA files for the small checkpoint, and a record of what was loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from eichi_utils.models import pool as models
from eichi_utils.models.hub import ModelFiles
from eichi_utils.models.lora_fit import shapes_in
from tests.lora_files import FAMILIES, write_lora


@pytest.fixture(scope="session")
def files(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Write a LoRA file of every family for the small checkpoint, each with other numbers."""
    folder = tmp_path_factory.mktemp("lora")
    shapes = shapes_in(ModelFiles(checkpoint), "framepack")
    made = {}
    for seed, family in enumerate(FAMILIES):
        write_lora(folder / f"{family}.safetensors", family, shapes, alpha=2.0, size=0.05, seed=seed)
        made[family] = str(folder / f"{family}.safetensors")
    return made


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list:
    """Return a list that collects the arguments of each loading of a transformer."""
    asked: list = []
    load = models.load_transformer
    monkeypatch.setattr(models, "load_transformer", lambda *given: asked.append(given) or load(*given))
    return asked
