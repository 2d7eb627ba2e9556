"""Faster ways through PyTorch on a CPU: oneDNN's products, instance norm, recomputation instead of storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from dinounet.network.export_mode import is_exporting
from dinounet.system import processor_has

MOST_TOKENS = 4224
"""Attention whose table of scores is larger than this squared stays with PyTorch, which never holds the whole: an
image of 1024 x 1024 has 4096 tokens and a few more, its table 71 MB in float32."""


def products_by_onednn(device: torch.device) -> AbstractContextManager[Any]:
    """Within this context linear layers and attention on the CPU are computed by oneDNN.

    Results differ from PyTorch's own by rounding. Nothing changes on other devices, where PyTorch has no oneDNN, and
    in what is compiled, where PyTorch chooses for itself.
    """
    if torch.compiler.is_compiling() or device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return nullcontext()
    return _ByOneDNN()


class _ByOneDNN(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is F.linear:
            return _linear(*args, **named)
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **named)
        return func(*args, **named)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if torch.is_autocast_enabled("cpu") or input.dtype != torch.float32 or weight.dtype != torch.float32:
        return F.linear(input, weight, bias)  # by oneDNN already, or not for it
    result: Tensor = _Linear.apply(input, weight, bias)
    return result


class _Linear(torch.autograd.Function):
    """A linear layer and its gradients, (..., in) -> (..., out), as products by oneDNN."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _product(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        for_input, for_weight, for_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            _product(gradient, weight.t()) if for_input else None,
            _product(rows.t(), input.flatten(0, -2).t()) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )


def _attention(query: Tensor, key: Tensor, value: Tensor, *more: Any, **named: Any) -> Tensor:
    """Attention, (B, heads, N, d) each, head by head: a head's table of scores stays in the processor's cache."""
    if processor_has("amx_bf16"):
        return F.scaled_dot_product_attention(query, key, value, *more, **named)
    masked = named.get("attn_mask") is not None  # a tensor, which must not be compared with anything
    changed = named.get("scale") is not None or bool(named.get("dropout_p")) or bool(named.get("is_causal"))
    plain = not more and not masked and not changed
    trains = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    if not plain or trains or query.ndim != 4 or not query.shape == key.shape == value.shape:
        return F.scaled_dot_product_attention(query, key, value, *more, **named)
    if query.shape[-2] > MOST_TOKENS:
        return F.scaled_dot_product_attention(query, key, value, *more, **named)
    precision = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    result = torch.empty_like(value, dtype=precision, memory_format=torch.contiguous_format)
    with torch.autocast("cpu", enabled=False):
        # scores in float32, as PyTorch has them: of bfloat16 they'd double the error of the backbone's features
        query, key = query.float() * query.shape[-1] ** -0.5, key.float()
        across = value.to(precision, memory_format=torch.contiguous_format).transpose(-1, -2)
        for image in range(len(query)):
            for head in range(query.shape[1]):
                shares = _product(query[image, head], key[image, head]).softmax(-1)
                result[image, head] = _product(shares.to(precision), across[image, head])
    return result


def _product(rows: Tensor, columns: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., n), (m, n), (m) -> (..., m): each row with each of the others."""
    if not columns.t().is_contiguous():  # with gaps between them it would take a thousand times as long
        columns = columns.contiguous()
    result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, columns, bias, "none", [], "")
    return result


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
