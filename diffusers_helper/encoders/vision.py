"""Encode the start picture by the vision encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor
from transformers import SiglipVisionModel

from diffusers_helper.buckets import resize


@dataclass(frozen=True)
class VisionPreprocessing:
    """Prepare a picture for the vision encoder, as preprocessor_config.json says; defaults are SigLIP's.

    height, width: in pixels. mean, std: of the colours, for each channel.
    """

    height: int = 384
    width: int = 384
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> VisionPreprocessing:
        """Return the preprocessing that preprocessor_config.json describes.

        Raises TypeError, ValueError or AttributeError for values that are no sizes or colours.
        """
        size = document.get("size", {})
        return cls(
            height=int(size.get("height", cls.height)),
            width=int(size.get("width", cls.width)),
            mean=tuple(float(value) for value in document.get("image_mean", cls.mean)),
            std=tuple(float(value) for value in document.get("image_std", cls.std)),
        )

    def __call__(self, picture: Image.Image) -> Tensor:
        """Convert an RGB picture to a tensor (1, 3, height, width).

        It is scaled by Pillow, bicubic, without keeping the aspect, whatever backend transformers would choose: they differ by
        a few levels.
        """
        resized = resize(picture, self.height, self.width, Image.Resampling.BICUBIC)
        values = torch.from_numpy(numpy.array(resized)).permute(2, 0, 1).float() / 255.0
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        return ((values - mean) / std).unsqueeze(0)


@dataclass(frozen=True)
class VisionEncoder:
    """Hold the vision model that reads the start picture, and what prepares the picture for it."""

    model: SiglipVisionModel
    preprocess: VisionPreprocessing


@torch.inference_mode()
def encode_image(encoder: VisionEncoder, picture: Image.Image) -> Tensor:
    """Encode an RGB picture, already fitted to the film's size: (1, tokens, width), float32 on the CPU."""
    pixels = encoder.preprocess(picture).to(encoder.model.device, encoder.model.dtype)
    return encoder.model(pixel_values=pixels).last_hidden_state.float().cpu()
