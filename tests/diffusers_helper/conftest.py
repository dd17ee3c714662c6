"""Provide the reference's tiny transformer in the program's code and in diffusers' class, with the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import HunyuanVideoFramepackTransformer3DModel

from diffusers_helper.models.transformer import PackedTransformer, TransformerConfig
from tests.diffusers_helper.inputs import GOLDEN
from tests.golden.replay import load


@pytest.fixture(scope="session")
def tiny() -> tuple[dict[str, torch.Tensor], dict]:
    """Return weights and config of the tiny transformer below tests/golden."""
    tensors, config = load(GOLDEN / "tiny_transformer.safetensors", "config")
    return {name.removeprefix("weights."): tensor for name, tensor in tensors.items()}, config


@pytest.fixture
def net(tiny) -> PackedTransformer:
    """Return the program's network in float32, a new one for every test, which may change it."""
    weights, config = tiny
    network = PackedTransformer(TransformerConfig.from_json(config))
    network.load_state_dict(weights, strict=True)
    return network.eval()


@pytest.fixture
def oracle(tiny) -> HunyuanVideoFramepackTransformer3DModel:
    """Return diffusers' network with the same weights."""
    weights, config = tiny
    network = HunyuanVideoFramepackTransformer3DModel(**config)
    network.load_state_dict(weights, strict=True)
    return network.eval()


@pytest.fixture
def models(checkpoint: Path, tmp_path: Path) -> Path:
    """Return a copy of the transformer's folder to damage."""
    folder = tmp_path / "transformer"
    folder.mkdir()
    for file in (checkpoint / "transformer").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder
