"""Cache a transformer's 8-bit weights on disk, because quantising 18 GB takes longer than reading 9 GB."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffusers_helper.checkpoints.checkpoint import STEM
from diffusers_helper.checkpoints.files import identity, weight_files
from diffusers_helper.memory import slab_file
from diffusers_helper.memory.memory import device_name
from diffusers_helper.memory.slabs import Arena, Place
from eichi_utils.files.disk_cache import DiskCache, key_of
from eichi_utils.requests.loras import Lora
from lora_utils.peft import config_beside

logger = logging.getLogger(__name__)

# To be raised whenever the same key would mean other weights.
FORMAT = 2


class CachedWeights:
    """Load and save the weights of one key, as a `checkpoint.SlabStore`.

    beside_card: whether weights are copied to a card, so that they are read into memory and locked there, instead of mapped.
    """

    def __init__(self, cache: DiskCache, key: str, beside_card: bool):
        self._cache, self._key, self._beside_card = cache, key, beside_card

    def load(self, places: Mapping[str, Place], size: int) -> Tensor | None:
        """Return the saved buffer of `size` bytes with these places, or None; a file that cannot be used is deleted."""
        path = self._cache.find(self._key)
        if path is None:
            return None
        try:
            return (slab_file.read if self._beside_card else slab_file.mapped)(path, places, size, self._key)
        except (OSError, slab_file.SlabFileError) as error:
            self._cache.discard(self._key, error)
            return None

    def save(self, arena: Arena) -> None:
        """Save a filled buffer if cache and disk have room for it."""
        if self._cache.add(self._key, arena.bytes, lambda path: slab_file.write(path, arena, self._key)):
            logger.info("%.2f GiB of 8-bit weights are kept for the next start in %s", arena.bytes / 2**30, self._cache.folder)


def cached_weights(
    cache: DiskCache,
    folder: Path,
    dtype: torch.dtype,
    storage: str | None,
    merged: Sequence[Lora],
    device: torch.device,
    beside_card: bool,
) -> CachedWeights | None:
    """Return the cache entry for the weights that a checkpoint and LoRA give in a format; None if they are not to be cached.

    storage: the 8-bit format, or None for wider weights: those are read as fast from the checkpoint's own files. merged: LoRA
    that are merged into the weights. device: where the weights are quantised.
    """
    if storage is None or not cache.limit:
        return None
    files = [identity(file) for file in weight_files(folder, STEM)]
    loras = [[identity(lora.path), _beside(lora.path), lora.strength] for lora in merged]
    made = [str(dtype), storage, device_name(device), str(torch.__version__)]
    return CachedWeights(cache, key_of("weights", FORMAT, files, loras, made, beside_card), beside_card)


def _beside(path: Path) -> str:
    config = config_beside(path)
    return identity(config) if config else ""
