"""Keep what decoding a film in order needs of the frames before, so that each latent is decoded once.

The VAE's decoder is causal in time except for group norm, whose statistics then come from the stretch (the latents of one call)
alone: the picture differs from that of time tiles.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffusers_helper.vae.vae_layers import Layer

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo

# Latent frames that attention may look back at: HunyuanVideo's own films have 33.
ATTENTION_LATENTS = 33
# Bytes of a card that sampling with streamed weights needs; the cache stays on the card only where these are left.
SAMPLING_BYTES = 6 * 2**30


class CausalCache:
    """Keep tensors of a film by layer and tile, for decoding its next latents.

    What a stretch puts counts once `commit` says that the stretch is decoded. home: the device where tensors lie between uses,
    or None for the one they are computed on. side: of the tiles in space, as in `Decoder`, the same for the whole film. place:
    the tile that is being decoded.
    """

    def __init__(self) -> None:
        self.side: int | None = None
        self.home: torch.device | None = None
        self.place: Hashable = None
        self._known: dict[Hashable, Tensor] = {}
        self._new: dict[Hashable, Tensor] = {}

    @property
    def empty(self) -> bool:
        """Return whether nothing of the film is decoded yet."""
        return not self._known

    @property
    def bytes(self) -> int:
        """Return how many bytes the tensors take, those of an unfinished stretch included."""
        tensors = (*self._known.values(), *self._new.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def get(self, key: Hashable, device: torch.device) -> Tensor | None:
        """Return what the stretch before left for this key and tile, on `device`; None at the film's beginning."""
        found = self._known.get((self.place, key))
        return None if found is None else found.to(device)

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Store a copy of a tensor for the next stretch; it counts once `commit` is called."""
        # A copy, because the tensor may be a view of a much larger one.
        self._new[self.place, key] = tensor.clone() if self.home is None else tensor.to(self.home, copy=True)

    def commit(self) -> None:
        """Replace what earlier stretches left by what the finished stretch has put."""
        self._known |= self._new
        self._new.clear()

    def revert(self) -> None:
        """Forget what an unfinished stretch has put."""
        self._new.clear()

    def move_to_host(self) -> bool:
        """Keep tensors in the computer's memory from now on; return False if they are there already."""
        if self.home is not None:
            return False
        self.home = torch.device("cpu")
        self._known = {key: tensor.to(self.home) for key, tensor in self._known.items()}
        return True


def causal_cache_bytes(vae: AutoencoderKLHunyuanVideo, height: int, width: int) -> int:
    """Return how many bytes a `CausalCache` takes for a film of height x width latent cells in one tile.

    It is the most it can be: attention looks back as far as it may.
    """
    rows, columns = height, width
    net: Layer = vae.decoder

    def before(*convolutions: Layer) -> int:
        """Count the numbers in the two frames that each convolution keeps, borders included."""
        return sum(2 * module.conv.in_channels for module in convolutions) * (rows + 2) * (columns + 2)

    total = before(net.conv_in, *(conv for resnet in net.mid_block.resnets for conv in (resnet.conv1, resnet.conv2)))
    for attention in net.mid_block.attentions:
        if attention is not None:
            total += (attention.to_k.out_features + attention.to_v.out_features) * ATTENTION_LATENTS * rows * columns
    for block in net.up_blocks:
        total += before(*(conv for resnet in block.resnets for conv in (resnet.conv1, resnet.conv2)))
        for upsampler in block.upsamplers or ():
            times, up, across = (int(factor) for factor in upsampler.upsample_factor)
            total += upsampler.conv.conv.in_channels * (1 if times == 2 else 2) * rows * columns
            rows, columns = rows * up, columns * across
    return (total + before(net.conv_out)) * vae.post_quant_conv.weight.element_size()
