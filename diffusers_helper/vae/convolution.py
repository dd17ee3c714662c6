"""Convolutions of a VAE on a processor."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OneDnnConv3d(nn.Conv3d):
    """The same through oneDNN whatever the size. PyTorch leaves small inputs (batch x channels x frames x rows up to 20480, see
    `use_mkldnn` in ATen's Convolution.cpp) to a kernel of its own, which takes five times as long."""

    def forward(self, x: Tensor) -> Tensor:
        plain = x.dim() == 5 and x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        usual = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        if not plain or not usual or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return torch.mkldnn_convolution(x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups)


def use_onednn(net: nn.Module) -> None:
    """Let its convolutions over time and space be quick ones, where PyTorch was built with oneDNN."""
    if torch.backends.mkldnn.is_available():
        for module in net.modules():
            if type(module) is nn.Conv3d:
                module.__class__ = OneDnnConv3d
