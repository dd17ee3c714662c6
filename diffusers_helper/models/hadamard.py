"""Define the side branch of a LoHa: two low-rank products, multiplied element by element.

https://arxiv.org/abs/2108.06098
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from diffusers_helper.models.linear import SideBranch


class HadamardBranch(SideBranch):
    """Add strength * scale * ((up_1 @ down_1) * (up_2 @ down_2)) @ x to a layer.

    up: (out, rank). down: (rank, in). The two ranks may differ. Only the four factors are kept. Their product is made for each
    pass and freed after it: as a product of rank rank_1 * rank_2, or for high ranks as the whole matrix (out, in), whichever is
    smaller.
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
        """Return y (..., out) plus the branch's part for x (..., in), as a new tensor."""
        up_1, down_1, up_2, down_2 = (factor.to(x.dtype) for factor in (self.up_1, self.down_1, self.up_2, self.down_2))
        rank, (rows, columns) = up_1.shape[1] * up_2.shape[1], (up_1.shape[0], down_1.shape[1])
        if rank * (rows + columns) < rows * columns:
            # Every column of up_1 times every column of up_2, and every row of down_1 times every row of down_2.
            up = (up_1[:, :, None] * up_2[:, None, :]).flatten(1)
            down = (down_1[:, None, :] * down_2[None, :, :]).flatten(0, 1)
            part = F.linear(F.linear(x, down), up)
        else:
            part = F.linear(x, self._whole(x))
        return y + part * self.factor

    def added_to(self, weight: Tensor) -> Tensor:
        """Return a weight (out, in) plus the branch's part."""
        return weight + self._whole(weight) * self.factor

    def add_to_conv(self, y: Tensor, x: Tensor, conv: nn.Conv3d) -> Tensor:
        """Add the branch's part for x (1, channels, ...) to a convolution's y (1, out, ...), and return y."""
        part = F.conv3d(x, self._whole(x).view_as(conv.weight), stride=conv.stride)
        return y.add_(part, alpha=self.strength * self.scale)

    def _whole(self, like: Tensor) -> Tensor:
        """Return the branch's matrix (out, in) without strength and scale, in the dtype of `like`."""
        up_1, down_1, up_2, down_2 = (factor.to(like.dtype) for factor in (self.up_1, self.down_1, self.up_2, self.down_2))
        return (up_1 @ down_1) * (up_2 @ down_2)
