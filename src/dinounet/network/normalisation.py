"""Instance norm by the fastest of PyTorch's ways to it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinounet.network.exporting import is_exporting


class InstanceNorm(nn.InstanceNorm2d):
    """Instance norm with a scale and a shift, (B, C, H, W) -> (B, C, H, W): the numbers of `nn.InstanceNorm2d`.

    On the CPU as the batch norm of each image by itself: the one norm whose backward is as fast with channels last as
    in PyTorch's own order (a group norm's takes ten times as long). An activation may change its result in place.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, affine=True)

    def forward(self, map: Tensor) -> Tensor:
        if map.device.type != "cpu" or is_exporting():
            return super().forward(map)
        images = [
            F.batch_norm(image, None, None, self.weight, self.bias, training=True, eps=self.eps)
            for image in map.split(1)
        ]
        return images[0] if len(images) == 1 else torch.cat(images)
