"""Instance norm by the fastest of PyTorch's ways to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dinounet.network.exporting import is_exporting


class InstanceNorm(nn.InstanceNorm2d):
    """Instance norm with a scale and a shift, (B, C, H, W) -> (B, C, H, W): the numbers of `nn.InstanceNorm2d`.

    On the CPU as the batch norm of each image by itself: the one norm whose backward is as fast with channels last as
    in PyTorch's own order (a group norm's takes ten times as long). An activation may change its result in place.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, affine=True)

    def forward(self, map: Tensor) -> Tensor:
        if map.device.type != "cpu" or is_exporting() or torch.compiler.is_compiling():
            return super().forward(map)
        map = map.as_subclass(Tensor)  # MONAI's would make a view of the result, which nothing may change in place
        result: Tensor = _ImageByImage.apply(map, self.weight, self.bias, self.eps)
        return result


class _ImageByImage(torch.autograd.Function):
    """Batch norms of single images, written into one batch."""

    @staticmethod
    def forward(ctx: Any, map: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        result = torch.empty_like(map)
        mean, scale = (torch.empty(map.shape[:2], dtype=torch.float32) for _ in range(2))
        for image, *out in zip(map.split(1), result.split(1), mean, scale, strict=True):
            torch.native_batch_norm(image, weight, bias, None, None, True, 0.0, eps, out=out)
        ctx.save_for_backward(map, weight, mean, scale)
        ctx.eps = eps
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        map, weight, *moments = ctx.saved_tensors
        for_map, for_weight, for_bias = torch.empty_like(map), torch.zeros_like(weight), torch.zeros_like(weight)
        for result, one, image, mean, scale in zip(for_map, gradient.split(1), map.split(1), *moments, strict=True):
            own, scaled, shifted = torch.ops.aten.native_batch_norm_backward(
                one, image, weight, None, None, mean, scale, True, ctx.eps, [True, True, True]
            )
            result.copy_(own[0])
            for_weight += scaled
            for_bias += shifted
        return for_map, for_weight, for_bias, None
