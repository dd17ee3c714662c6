"""Test that activations in the decoder stay within what 16 bits hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo

from miniature import vae as passes
from miniature.evaluate import photo
from miniature.export import CHECKPOINT
from miniature.train_vae import LEVELS
from miniature.training import metadata_of


@pytest.fixture
def vae() -> AutoencoderKLHunyuanVideo:
    return AutoencoderKLHunyuanVideo.from_pretrained(CHECKPOINT / "vae", torch_dtype=torch.float32).eval()


@pytest.mark.slow
@torch.no_grad()
def test_the_shipped_decoder_works_in_16_bits(vae):
    """A card computes it in float16. Training had let values of 3e6 grow behind the decoder's norms: on every card the
    miniature's films were black, which no test on a CPU, in float32, could see."""
    from PIL import Image

    from eichi_utils.render.conditions import pixels_of

    picture = pixels_of(Image.open(photo("lion")).convert("RGB").resize((64, 64)))
    z = passes.encode(vae, picture[:, :, 0])
    exact = passes.decode(vae, z)
    made = passes.decode(vae.half(), z.half()).float()
    assert (made - exact).abs().max() < 0.05


@torch.no_grad()
def test_scaling_changes_no_picture_and_can_be_undone(vae):
    """Loud as it was trained, and scaled again: the same pictures, and the file tells by how much."""
    known = json.loads(metadata_of(Path(CHECKPOINT / "vae" / "diffusion_pytorch_model.safetensors"))[LEVELS])
    z = torch.randn(2, 16, 6, 6, generator=torch.Generator().manual_seed(0)) / passes.SCALING
    wanted = passes.decode(vae, z)
    passes.level(vae, [-exponent for exponent in known])
    assert max(passes.exponents_for(vae, z)) >= 8
    assert torch.allclose(passes.decode(vae, z), wanted, atol=1e-4)
    passes.level(vae, passes.exponents_for(vae, z))
    assert max(passes.exponents_for(vae, z)) == 0
    assert torch.allclose(passes.decode(vae, z), wanted, atol=1e-4)
