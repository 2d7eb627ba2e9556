"""Batch norm over the patches of all processes, as if one had them all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""What batch norm keeps, which already a forward pass changes; how the names of its buffers end."""


class BatchNormOnCPU(nn.BatchNorm2d):
    """What `torch.nn.SyncBatchNorm` is for GPUs; that refuses tensors of the CPU.

    Shapes: (B, C, H, W) -> (B, C, H, W), B patches on each process.
    """

    def forward(self, map: Tensor) -> Tensor:
        if not self.training:
            return super().forward(map)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        values = map.float()
        axes = (0, 2, 3)
        count = values.numel() // values.shape[1] * torch.distributed.get_world_size()
        mean = _Sum.apply(values.sum(axes)) / count
        away = values - mean[:, None, None]
        variance = _Sum.apply((away * away).sum(axes)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        return (away * scale[:, None, None] + self.bias[:, None, None]).to(map.dtype)


class _Sum(torch.autograd.Function):
    """Sum over the processes; what flows back to each is the sum of what flows back to all."""

    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        return _add_up(tensor)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _add_up(gradient)


def _add_up(tensor: Tensor) -> Tensor:
    total = tensor.clone()
    torch.distributed.all_reduce(total)
    return total


def share_batch_norm(network: nn.Module, device: str) -> None:
    """Replace a network's batch norms by ones that see all processes' patches; their tensors stay the same."""
    for name, norm in [part for part in network.named_modules() if isinstance(part[1], nn.BatchNorm2d)]:
        if device == "cpu":
            shared: nn.Module = BatchNormOnCPU(norm.num_features, norm.eps, norm.momentum)
            shared._parameters, shared._buffers = norm._parameters, norm._buffers
        else:
            shared = nn.SyncBatchNorm.convert_sync_batchnorm(norm)
        network.set_submodule(name, shared)
