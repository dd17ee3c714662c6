"""Keep the encoders' results for prompts and pictures on disk, so that the same inputs need no encoder the next time.

A file holds an encoder's result bit for bit. Its key covers all that the result depends on: the encoder's files, its dtype,
device and libraries, and the text or the pixels that are encoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import diffusers
import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from diffusers_helper.checkpoints.files import folder_identity
from diffusers_helper.encoders.text import TextEmbedding
from diffusers_helper.memory.memory import device_name
from eichi_utils.files.disk_cache import DiskCache, key_of

if TYPE_CHECKING:
    from eichi_utils.models.pool import ModelPool

# To be raised whenever the same key would mean other content: a new prompt template, preprocessing, or name in a file.
FORMAT = 2
TEXT = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
VISION = ("image_encoder", "feature_extractor")
CHECKSUM = "sha256"


class ConditionCache:
    """Look up and keep encoded prompts and pictures for the model that the pool lends now.

    Look-ups return None for what an encoder still has to compute.
    """

    def __init__(self, pool: ModelPool):
        self._pool = pool
        self._dtype = pool.placement.encoder
        self._prompts, self._pictures = pool.caches.prompts, pool.caches.pictures

    def prompt(self, text: str) -> TextEmbedding | None:
        """Return the kept embedding of a prompt, or None."""
        found = self._read(self._prompts, self._prompt_key(text), ("tokens", "pooled", "counts"))
        if found is None:
            return None
        read, written = found["counts"].tolist()
        return TextEmbedding(found["tokens"].float(), found["pooled"].float(), read, written)

    def keep_prompt(self, text: str, made: TextEmbedding) -> TextEmbedding:
        """Keep the embedding of a prompt, and return it."""
        tensors = {"tokens": made.tokens, "pooled": made.pooled, "counts": torch.tensor([made.read, made.written])}
        self._write(self._prompts, self._prompt_key(text), tensors)
        return made

    def image(self, picture: Image.Image) -> Tensor | None:
        """Return the vision encoder's kept tokens of a picture, (1, n, width) float32, or None."""
        return self._picture("vision", picture)

    def keep_image(self, picture: Image.Image, made: Tensor) -> Tensor:
        """Keep the vision encoder's tokens of a picture, and return them."""
        return self._keep_picture("vision", picture, made)

    def latents(self, picture: Image.Image) -> Tensor | None:
        """Return the VAE's kept latents of a picture, (1, 16, 1, h, w) float32, or None."""
        return self._picture("vae", picture)

    def keep_latents(self, picture: Image.Image, made: Tensor) -> Tensor:
        """Keep the VAE's latents of a picture, and return them."""
        return self._keep_picture("vae", picture, made)

    def _picture(self, encoder: str, picture: Image.Image) -> Tensor | None:
        found = self._read(self._pictures, self._picture_key(encoder, picture), ("made",))
        return None if found is None else found["made"].float()

    def _keep_picture(self, encoder: str, picture: Image.Image, made: Tensor) -> Tensor:
        self._write(self._pictures, self._picture_key(encoder, picture), {"made": made})
        return made

    def _prompt_key(self, text: str) -> str:
        return key_of(*self._text, text) if self._prompts.limit else ""

    def _picture_key(self, encoder: str, picture: Image.Image) -> str:
        if not self._pictures.limit:
            return ""
        pixels = hashlib.sha256(picture.tobytes()).hexdigest()
        return key_of(*(self._vision if encoder == "vision" else self._vae), picture.mode, picture.size, pixels)

    @cached_property
    def _text(self) -> tuple[str, ...]:
        return self._made_by(*TEXT)

    @cached_property
    def _vision(self) -> tuple[str, ...]:
        return self._made_by(*VISION)

    @cached_property
    def _vae(self) -> tuple[str, ...]:
        return self._made_by("vae")

    def _made_by(self, *components: str) -> tuple[str, ...]:
        """Return all that a result depends on except the input: format, files of the components, dtype, device and libraries.

        Devices and libraries round differently, and a film must not depend on what was kept.
        """
        place = device_name(self._pool.placement.device)
        files = [folder_identity(self._pool.folder(name)) for name in components]
        libraries = (torch.__version__, transformers.__version__, diffusers.__version__)
        return (str(FORMAT), *components, *files, str(self._dtype), place, *map(str, libraries))

    def _read(self, cache: DiskCache, key: str, names: tuple[str, ...]) -> dict[str, Tensor] | None:
        """Return the tensors of these names from a key's file; None if there is none, or a damaged one, which is discarded."""
        path = cache.find(key)
        if path is None:
            return None
        try:
            tensors = load(path.read_bytes())
            if tensors.pop(CHECKSUM, torch.empty(0)).tolist() != list(_checksum(tensors, key)):
                raise ValueError("wrong checksum")
            return {name: tensors[name] for name in names}
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            cache.discard(key, error)
            return None

    def _write(self, cache: DiskCache, key: str, tensors: Mapping[str, Tensor]) -> None:
        if cache.limit:
            small = {name: self._narrowed(tensor).contiguous() for name, tensor in tensors.items()}
            data = save({**small, CHECKSUM: torch.tensor(list(_checksum(small, key)), dtype=torch.uint8)})
            cache.add(key, len(data), lambda path: path.write_bytes(data))

    def _narrowed(self, tensor: Tensor) -> Tensor:
        """Return a floating-point tensor in the encoder's dtype if no value changes by that, else as it is."""
        narrow = tensor.to(self._dtype) if tensor.is_floating_point() else tensor
        return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor


def _checksum(tensors: Mapping[str, Tensor], key: str) -> bytes:
    """Return the SHA-256 of the tensors and of their key, so that an intact file under another key's name is refused too."""
    total = hashlib.sha256(key.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.digest()
