"""What decoding a film in order remembers of the frames before, so that each latent is decoded once.

The VAE's decoder is causal in time but for group norm, whose statistics are then those of the stretch in hand: another picture
than that of time tiles.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffusers_helper.vae.vae_layers import Layer

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo

# Latent frames that attention looks back at: HunyuanVideo's own films have 33.
ATTENTION_LATENTS = 33
# Bytes of a card that sampling with streamed weights wants; what decoding remembers stays on the card only beside that.
SAMPLING_BYTES = 6 * 2**30


class CausalCache:
    """Tensors of a film by layer and tile. Those of a stretch count once `commit` says that it is decoded.

    home: where they lie between uses, None for where they are computed. side: as in `Decoder`, the same for the whole film.
    """

    def __init__(self) -> None:
        self.side: int | None = None
        self.home: torch.device | None = None
        self.place: Hashable = None
        self._known: dict[Hashable, Tensor] = {}
        self._new: dict[Hashable, Tensor] = {}

    @property
    def empty(self) -> bool:
        """Say whether nothing of the film is decoded yet."""
        return not self._known

    @property
    def bytes(self) -> int:
        """Return how many bytes the tensors take, those of an unfinished stretch included."""
        tensors = (*self._known.values(), *self._new.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def get(self, key: Hashable, device: torch.device) -> Tensor | None:
        """What the stretch before left here, or None at the film's beginning."""
        found = self._known.get((self.place, key))
        return None if found is None else found.to(device)

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Leave a copy of a tensor for the next stretch; it counts once `commit` was called."""
        # A copy: what was given is a window into something larger.
        self._new[self.place, key] = tensor.clone() if self.home is None else tensor.to(self.home, copy=True)

    def commit(self) -> None:
        """Let what a finished stretch has left take the place of what was there before."""
        self._known |= self._new
        self._new.clear()

    def revert(self) -> None:
        """Forget what a stretch left that was not finished."""
        self._new.clear()

    def move_to_host(self) -> bool:
        """Lie in the computer's memory from now on; False where that is so already."""
        if self.home is not None:
            return False
        self.home = torch.device("cpu")
        self._known = {key: tensor.to(self.home) for key, tensor in self._known.items()}
        return True


def causal_cache_bytes(vae: AutoencoderKLHunyuanVideo, height: int, width: int) -> int:
    """Of a film of so many latent cells, in one tile, when attention looks back as far as it does."""
    rows, columns = height, width
    net: Layer = vae.decoder

    def before(*convolutions: Layer) -> int:
        """Two frames with their borders."""
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
