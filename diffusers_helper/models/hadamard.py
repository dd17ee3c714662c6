"""The side branch of a LoHa: two low-rank products, multiplied element by element (https://arxiv.org/abs/2108.06098)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from diffusers_helper.models.linear import SideBranch


class HadamardBranch(SideBranch):
    """Adds strength * scale * ((up_1 @ down_1) * (up_2 @ down_2)) @ x. up (out, rank), down (rank, in); of two ranks.

    Only the four factors are kept. What they make is made for each pass and gone after it: a product of rank rank_1 * rank_2,
    or of high ranks the whole matrix (out, in), whichever is smaller.
    """

    up_1: Tensor
    down_1: Tensor
    up_2: Tensor
    down_2: Tensor

    def __init__(self, slot: int, up_1: Tensor, down_1: Tensor, up_2: Tensor, down_2: Tensor, scale: float):
        super().__init__(slot, scale)
        for name, factor in (("up_1", up_1), ("down_1", down_1), ("up_2", up_2), ("down_2", down_2)):
            self.register_buffer(name, factor.contiguous(), persistent=False)

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """y (..., out) and the branch's part for x (..., in), as a new tensor."""
        up_1, down_1, up_2, down_2 = (factor.to(x.dtype) for factor in (self.up_1, self.down_1, self.up_2, self.down_2))
        rank, (rows, columns) = up_1.shape[1] * up_2.shape[1], (up_1.shape[0], down_1.shape[1])
        if rank * (rows + columns) < rows * columns:
            # Each column with each, and each row with each.
            up = (up_1[:, :, None] * up_2[:, None, :]).flatten(1)
            down = (down_1[:, None, :] * down_2[None, :, :]).flatten(0, 1)
            part = F.linear(F.linear(x, down), up)
        else:
            part = F.linear(x, self._whole(x))
        return y + part * self.factor

    def added_to(self, weight: Tensor) -> Tensor:
        """A weight (out, in) with the branch's part."""
        return weight + self._whole(weight) * self.factor

    def add_to_conv(self, y: Tensor, x: Tensor, conv: nn.Conv3d) -> Tensor:
        """The same for a convolution's y (1, out, ...) and x (1, channels, ...)."""
        part = F.conv3d(x, self._whole(x).view_as(conv.weight), stride=conv.stride)
        return y.add_(part, alpha=self.strength * self.scale)

    def _whole(self, like: Tensor) -> Tensor:
        """(out, in) without strength and scale, in the dtype of `like`."""
        up_1, down_1, up_2, down_2 = (factor.to(like.dtype) for factor in (self.up_1, self.down_1, self.up_2, self.down_2))
        return (up_1 @ down_1) * (up_2 @ down_2)
