"""Faster ways through PyTorch on a CPU, behind one switch: `cpu_kernels` replaces them in layers as they are.

Results differ from PyTorch's own by rounding. Five things are computed otherwise: linear layers and attention by
oneDNN, instance norm as batch norms, deformable sampling as bags of rows, and images lie in memory with their channels
last. The private parts of PyTorch that this takes are used here alone. Beside the switch, for all devices:
`recomputed`, by which a layer takes less memory in training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode, wrap_torch_function
from torch.utils.checkpoint import checkpoint

from dinounet.network.deformable_attention import (
    Sizes,
    deformable_sampling,
    grid_sample,
    sampling_locations,
    to_grids,
    to_maps,
)
from dinounet.system import processor_has

MOST_TOKENS = 4224
"""Attention whose table of scores is larger than this squared stays with PyTorch, which never holds the whole: an
image of 1024 x 1024 has 4096 tokens and a few more, its table 71 MB in float32."""


def cpu_kernels(device: torch.device) -> AbstractContextManager[Any]:
    """The switch: within this context the network's layers are computed by what is below.

    Nothing changes on other devices, and in what is compiled, where PyTorch chooses for itself.
    """
    return nullcontext() if torch.compiler.is_compiling() or device.type != "cpu" else _CPUKernels()


class _CPUKernels(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return KERNELS.get(func, func)(*args, **(kwargs or {}))


@wrap_torch_function(lambda image: (image,))
def in_fastest_order(image: Tensor) -> Tensor:
    """The image, on a CPU with its channels last in memory, where convolutions are fastest."""
    return image


def _channels_last(image: Tensor) -> Tensor:
    return image.contiguous(memory_format=torch.channels_last)


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


def _instance_norm(map: Tensor, *, weight: Tensor | None, running_mean: Tensor | None, **named: Any) -> Tensor:
    if weight is None or running_mean is not None:  # not as the network has it
        return F.instance_norm(map, weight=weight, running_mean=running_mean, **named)
    map = map.as_subclass(Tensor)  # MONAI's would make a view of the result, which nothing may change in place
    result: Tensor = InstanceNormByBatchNorm.apply(map, weight, named["bias"], named["eps"])
    return result


class InstanceNormByBatchNorm(torch.autograd.Function):
    """Instance norm, (B, C, H, W) -> (B, C, H, W), as the batch norm of each image by itself.

    The one norm whose backward is as fast with channels last as in PyTorch's own order (a group norm's takes ten times
    as long). An activation may change its result in place.
    """

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


def _deformable_sampling(value: Tensor, sizes: Sizes, reference: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    result: Tensor = SampleByBags.apply(value, sampling_locations(sizes, reference, offsets), weights, sizes)
    return result


class SampleByBags(torch.autograd.Function):
    """`sample_and_weigh` as a bag of weighted rows for each query and head; no sample is kept for the gradient.

    Called as `SampleByBags.apply(value, locations, weights, sizes)`.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, sizes: Sizes) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        ctx.sizes = sizes
        batch, queries, heads = locations.shape[:3]
        rows, indices, shares, first = [], [], [], 0
        for level, ((height, width), map) in enumerate(zip(sizes, to_maps(value, sizes), strict=True)):
            # a border of zeros makes places outside like those inside: what is far away moves onto it
            bordered = F.pad(map, (1, 2, 1, 2)).flatten(2).transpose(1, 2)  # B*heads, cells, d
            row = width + 3
            x, y = locations[:, :, :, level].unbind(-1)
            x, y = (x * width - 0.5).clamp(-1, width), (y * height - 0.5).clamp(-1, height)
            left, top = x.floor().nan_to_num(), y.floor().nan_to_num()  # NaN stays in the shares, and is no row
            right_share, lower_share = x - left, y - top
            begins = first + bordered.shape[1] * torch.arange(batch * heads, dtype=torch.int32, device=value.device)
            upper_left = ((top + 1) * row + left + 1).int() + begins.view(batch, 1, heads, 1)
            indices += [upper_left, upper_left + 1, upper_left + row, upper_left + row + 1]
            upper, lower = (weights[:, :, :, level] * share for share in (1 - lower_share, lower_share))
            shares += [upper * (1 - right_share), upper * right_share, lower * (1 - right_share), lower * right_share]
            rows.append(bordered.flatten(0, 1))
            first += len(rows[-1])
        bags = batch * queries * heads
        return F.embedding_bag(
            torch.cat(indices, dim=-1).view(bags, -1),
            torch.cat(rows),
            per_sample_weights=torch.cat(shares, dim=-1).view(bags, -1),
            mode="sum",
        ).view(batch, queries, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """By grid_sample's own gradient, which adds up faster than PyTorch's of such bags."""
        value, locations, weights = ctx.saved_tensors
        batch, queries, heads = locations.shape[:3]
        gradient = gradient.view(batch, queries, heads, -1).permute(0, 2, 3, 1).flatten(0, 1)[..., None]
        for_value, for_locations, for_weights = [], [], []
        for level, (map, grid) in enumerate(zip(to_maps(value, ctx.sizes), to_grids(locations), strict=True)):
            weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]  # B*heads, 1, Q, points
            for_map, for_grid = torch.ops.aten.grid_sampler_2d_backward(
                gradient * weight, map, grid, 0, 0, False, [True, True]
            )
            for_value.append(for_map.flatten(2).unflatten(0, (batch, heads)).permute(0, 3, 1, 2))
            for_locations.append(2 * for_grid.unflatten(0, (batch, heads)).transpose(1, 2))
            for_weights.append((grid_sample(map, grid) * gradient).sum(1).unflatten(0, (batch, heads)).transpose(1, 2))
        return torch.cat(for_value, dim=1), torch.stack(for_locations, dim=3), torch.stack(for_weights, dim=3), None


KERNELS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.instance_norm: _instance_norm,
    deformable_sampling: _deformable_sampling,
    in_fastest_order: _channels_last,
}
"""By the function that the network calls: what computes it within `cpu_kernels`."""
if torch.backends.mkldnn.is_available():
    KERNELS |= {F.linear: _linear, F.scaled_dot_product_attention: _attention}


def recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorates a forward of which autograd keeps nothing but the inputs: it is computed again in the backward.

    Not for what holds a batch norm: it would count every batch twice.
    """

    @functools.wraps(forward)
    def call(*inputs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(*inputs)
        device = next(part.device for part in inputs if isinstance(part, Tensor))

        def compute(*inputs: Any) -> Tensor:
            with cpu_kernels(device):  # backward runs outside of the network's own
                return forward(*inputs)

        result: Tensor = checkpoint(compute, *inputs, use_reentrant=False)
        return result

    return call
