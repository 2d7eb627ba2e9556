"""Instance norm by the faster of PyTorch's two ways to it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dinounet.network.exporting import is_exporting


class InstanceNorm(nn.InstanceNorm2d):
    """Instance norm with a scale and a shift, (B, C, H, W) -> (B, C, H, W): the numbers of `nn.InstanceNorm2d`.

    On the CPU as a group norm of one channel a group: a third of the time, any memory format, and a result that an
    activation may change in place. What PyTorch calls instance norm returns a view, for which autograd then copies.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, affine=True)

    def forward(self, map: Tensor) -> Tensor:
        if map.device.type != "cpu" or is_exporting():
            return super().forward(map)
        return F.group_norm(map, self.num_features, self.weight, self.bias, self.eps)
