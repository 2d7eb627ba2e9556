"""Memory for time: what backward needs is computed again instead of being kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dinounet.network.onednn import products_by_onednn


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """The function's result, of which autograd keeps nothing but the inputs.

    Not for what holds a batch norm: it would count every batch twice.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)

    def compute(*inputs: Tensor) -> Tensor:
        with products_by_onednn(inputs[0].device):  # backward runs outside of the network's own
            return function(*inputs)

    result: Tensor = checkpoint(compute, *inputs, use_reentrant=False)
    return result
