"""Test LoRA that are streamed with their blocks to a card that has no room for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffusers_helper.memory.budget import Budget
from eichi_utils.models.hub import ModelFiles
from eichi_utils.models.lora_fit import shapes_in
from eichi_utils.models.pool import ModelPool
from eichi_utils.requests.loras import Lora
from tests.eichi_utils.helpers import request
from tests.eichi_utils.render.test_effects import latents_of
from tests.fake_device import FakeDevice
from tests.lora_files import write_lora

pytestmark = pytest.mark.model


@pytest.mark.parametrize(("family", "precision"), [("peft", "auto"), ("loha", "auto"), ("loha", "int8"), ("lokr", "int8")])
def test_a_film_is_the_same_with_its_lora_on_the_way(
    family: str, precision: str, checkpoint: Path, tmp_path: Path, pictures: list, cheap_decode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A film whose LoRA is streamed with the blocks is the same to the bit, whatever factors the file has."""
    monkeypatch.setattr(Budget, "for_weights", lambda *given: 0)
    path = tmp_path / "a.safetensors"
    write_lora(path, family, shapes_in(ModelFiles(checkpoint), "framepack"), rank=6, size=0.05)
    it = request("single", pictures[0], loras=(Lora(str(path), 0.7),), precision=precision)
    whole = latents_of(it, ModelPool(checkpoint, device="cpu"))
    pool = ModelPool(checkpoint, device="cpu", card=FakeDevice(), reserve_gb=0)
    streamed = latents_of(it, pool)
    assert pool.networks.loaded["transformer"].streamer.resident == ()
    assert torch.equal(whole, streamed)
