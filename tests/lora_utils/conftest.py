"""Provide the shapes of the reference's tiny transformer."""

from __future__ import annotations

import pytest
from safetensors import safe_open

from tests.diffusers_helper.inputs import GOLDEN
from tests.lora_files import Shapes


@pytest.fixture(scope="session")
def shapes() -> Shapes:
    """Return the shapes of all weights that a LoRA may change, by layer."""
    with safe_open(GOLDEN / "tiny_transformer.safetensors", framework="pt") as opened:
        found = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 (it is no dict)
    return {
        name.removeprefix("weights.").removesuffix(".weight"): shape
        for name, shape in found.items()
        if name.endswith(".weight") and len(shape) > 1
    }
