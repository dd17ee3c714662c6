"""Test the vision encoder's preprocessing against that of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import SiglipVisionModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from diffusers_helper.buckets import cover_crop, resize
from diffusers_helper.encoders.vision import VisionEncoder, VisionPreprocessing, encode_image

# One of 255 levels, in numbers from -1 to 1.
LEVEL = 2 / 255


@pytest.fixture
def document(checkpoint: Path) -> dict:
    return json.loads((checkpoint / "feature_extractor" / "preprocessor_config.json").read_text())


@pytest.mark.parametrize("size", [(416, 960), (640, 608), (640, 640)], ids=str)
def test_preprocessing_equals_transformers(photo, size):
    """384 x 384 without keeping the shape, bicubic, -1 to 1: what the published encoder saw in training.

    Exactly so after scaling; and scaling is Pillow's but for the order of the axes, which costs single pixels a few levels.
    """
    with Image.open(photo) as opened:
        picture = cover_crop(opened.convert("RGB"), *size)
    expected = SiglipImageProcessorPil(size={"height": 384, "width": 384})(picture, return_tensors="pt")["pixel_values"]
    ours = VisionPreprocessing()(picture)
    assert ours.shape == expected.shape == (1, 3, 384, 384) and ours.dtype == torch.float32
    errors = (ours - expected).abs()
    assert errors.max() <= 4.01 * LEVEL and errors.mean() <= 0.2 * LEVEL and (errors > 1.01 * LEVEL).float().mean() <= 2e-3
    scaled = resize(picture, 384, 384, Image.Resampling.BICUBIC)
    unscaled = SiglipImageProcessorPil(do_resize=False)(scaled, return_tensors="pt")["pixel_values"]
    assert (ours - unscaled).abs().max() <= 1e-6


def test_the_files_numbers_are_used(photo, document):
    """Size, mean and deviation of pictures come from preprocessor_config.json."""
    document |= {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "size": {"height": 42, "width": 56}}
    with Image.open(photo) as opened:
        picture = opened.convert("RGB")
    settings = {key: document[key] for key in ("image_mean", "image_std", "size")}
    expected = SiglipImageProcessorPil(**settings)(picture, return_tensors="pt")["pixel_values"]
    ours = VisionPreprocessing.from_json(document)(picture)
    assert ours.shape == expected.shape == (1, 3, 42, 56)
    assert (ours - expected).abs().max() <= 2 / 255 / 0.2 + 1e-6


def test_defaults_are_those_of_the_published_encoder():
    assert VisionPreprocessing.from_json({}) == VisionPreprocessing(384, 384, (0.5,) * 3, (0.5,) * 3)


@torch.inference_mode()
def test_tokens_are_the_last_hidden_state(checkpoint, photo, document):
    """Image tokens are the last hidden state after the last norm, without the pooling head: one for each 14 x 14 patch."""
    model = SiglipVisionModel.from_pretrained(checkpoint / "image_encoder", dtype=torch.float32).eval()
    encoder = VisionEncoder(model, VisionPreprocessing.from_json(document))
    with Image.open(photo) as opened:
        picture = cover_crop(opened.convert("RGB"), 96, 176)
    tokens = encode_image(encoder, picture)
    assert tokens.shape == (1, (56 // 14) ** 2, model.config.hidden_size)
    assert tokens.dtype == torch.float32 and tokens.device.type == "cpu"
    assert torch.equal(tokens, model(pixel_values=encoder.preprocess(picture)).last_hidden_state)
    assert not torch.equal(tokens, encode_image(encoder, picture.rotate(180)))
