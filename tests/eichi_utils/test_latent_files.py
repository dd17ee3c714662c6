"""Latents as files: what the existing program finds in them, and the request that made them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open

from eichi_utils.latent_files import write_latents
from eichi_utils.request import to_json
from tests.eichi_utils.helpers import names_in, request


def test_a_file_of_latents(tmp_path: Path) -> None:
    """Keys, types and sizes of spec "Tensor files"; numbers to the last bit; the request beside them."""
    made, latents = request("reverse", "a.png", prompt="猫"), torch.randn(1, 16, 5, 14, 18)
    write_latents(tmp_path / "x.safetensors", latents, made)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("history_latents"), latents)
        assert torch.equal(file.get_tensor("metadata"), torch.tensor([112, 144, 5], dtype=torch.int32))
        assert json.loads(file.metadata()["eichi"]) == to_json(made)
    assert names_in(tmp_path) == {"x.safetensors"}
