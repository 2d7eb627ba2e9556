"""Linear layers whose weights are stored in fewer bytes than they compute with.

Of a vision transformer nearly all numbers are weights of linear layers. Only they are stored in bfloat16, or in int8
with one factor for each 32 neighbours in a row (symmetric: the largest of them is 127); all else stays in float32, and
so do the sums along the blocks. A layer is widened when it computes: to float32, or to what autocast computes with.

Not by torchao (0.18): it rounds otherwise, by which the outputs of one layer (384 to 1,536) were 0.2 % of their range
from ours, and 1.7 % with its default of one factor a row: no run would predict what it was measured with. It converts
a model that is in memory in float32 already, takes 26 MB on the disk and 4 s to import, and was no faster on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinounet.errors import ConfigError

StoragePrecision = Literal["fp32", "bf16", "int8"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}

GROUP = 32
"""Weights with a factor of their own in int8. Pretrained rows have outliers: with one factor a row, features of
`dinov2_vits14` were off by 1.3 to 2.2 %, with one for 32 by 0.6 to 1.1 %."""

NUMBERS_TOGETHER = 2**18
"""Rounded at a time: no second float32 copy of a weight is made, and what is made stays in the processor's cache."""


class QuantizedLinear(nn.Module):
    """A frozen linear layer: (..., in) -> (..., out).

    `weight` reads as float numbers, which some of timm's blocks ask for; the parameter of that name, which `state_dict`
    and `parameters` give, is as it is stored.

    Args:
        outline: the layer to replace, perhaps on PyTorch's device `meta`; its numbers are not taken over.
        precision: how the weight is stored.
        on_disk: leave the weight on `meta`; something brings it before each forward.
    """

    bias: Tensor | None
    scale: Tensor

    def __init__(self, outline: nn.Linear, precision: StoragePrecision, *, on_disk: bool) -> None:
        super().__init__()
        self.precision = precision
        self.in_features, self.out_features = outline.in_features, outline.out_features
        self.register_parameter("bias", outline.bias)
        self.empty("meta" if on_disk else None)

    def empty(self, device: str | None) -> None:
        """Forget the weight; on `meta`, it takes no memory; None is PyTorch's usual device."""
        shape = self.out_features, self.in_features
        weight = torch.full(shape, 0, dtype=DTYPES[self.precision], device=device)
        self.put(weight, self._factors() if device is None else torch.ones(1, 1, 1))

    def put(self, weight: Tensor, scale: Tensor) -> None:
        """Take over a weight that `convert` made."""
        self._parameters["weight"] = nn.Parameter(weight, requires_grad=False)  # the name itself is the property's
        self.register_buffer("scale", scale, persistent=False)

    def fill(self, weight: Tensor) -> None:
        """Round a weight, (out, in), to what is stored, in the memory that is taken already."""
        stored = self._parameters["weight"]
        assert stored is not None
        self._round(weight, stored.data, self.scale)

    def convert(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A new tensor as it is stored, (out, in), and what its groups are to be multiplied by, (out, groups, 1)."""
        stored, scale = torch.empty(weight.shape, dtype=DTYPES[self.precision]), self._factors()
        self._round(weight, stored, scale)
        return stored, scale

    def _factors(self) -> Tensor:
        """A one for each group of a weight, in bfloat16: times 8 bits that is rounded once when it is widened."""
        if self.precision != "int8":
            return torch.ones(1, 1, 1)
        groups = self.in_features // GROUP if self.in_features % GROUP == 0 else 1
        return torch.ones(self.out_features, groups, 1, dtype=torch.bfloat16)

    def _round(self, weight: Tensor, stored: Tensor, scale: Tensor) -> None:
        if self.precision != "int8":
            stored.copy_(weight)
            return
        together = max(NUMBERS_TOGETHER // self.in_features, 1)
        for rows, own, factor in zip(*(each.split(together) for each in (weight, stored, scale)), strict=True):
            grouped = rows.float().unflatten(1, (factor.shape[1], -1))
            factor.copy_(grouped.abs().amax(dim=2, keepdim=True) / 127)
            factor[factor == 0] = 1  # a group of zeros
            own.copy_((grouped / factor).round_().flatten(1))

    @property
    def is_here(self) -> bool:
        """Whether the weight is in memory."""
        stored = self._parameters["weight"]
        assert stored is not None
        return not stored.is_meta

    @property
    def weight(self) -> Tensor:
        """The weight as it is computed with, (out, in)."""
        stored = self._parameters["weight"]
        assert stored is not None
        kind = stored.device.type
        lowered = kind != "meta" and torch.is_autocast_enabled(kind)  # which knows no such device
        dtype = torch.get_autocast_dtype(kind) if lowered else torch.float32
        widened = stored.to(dtype)
        if self.precision == "int8":
            widened.unflatten(1, (self.scale.shape[1], -1)).mul_(self.scale)
        return widened

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight, self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """A move to another device leaves a weight on the disk where it is."""
        if self.is_here:
            return super()._apply(fn, recurse)
        away = self._parameters.pop("weight")
        super()._apply(fn, recurse)
        self._parameters["weight"] = away
        return self


def init_on_meta() -> Any:
    """While this context lasts, modules are built without memory for their parameters; buffers are as always."""

    def outline(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> Any:
        return None if parameter is None else nn.Parameter(parameter.to("meta"), requires_grad=False)

    return nn.modules.module.register_module_parameter_registration_hook(outline)


def quantize_linears(vit: nn.Module, name: str, precision: StoragePrecision, *, on_disk: bool) -> None:
    """Replace the linear layers of a model built within `init_on_meta`, and give memory, with zeros, to all else.

    Args:
        vit: the model.
        name: of the backbone, for the message.
        precision: how the layers' weights are stored.
        on_disk: whether those of the blocks are brought from the disk before each forward.

    Raises:
        ConfigError: nearly nothing would be stored so.
    """
    if on_disk and not isinstance(getattr(vit, "blocks", None), nn.ModuleList | nn.Sequential):
        raise ConfigError(f"{name} has no row of blocks to compute one by one from the disk; leave --offload out")
    layers = [(place, layer) for place, layer in vit.named_modules() if isinstance(layer, nn.Linear)]
    for place, layer in layers:
        parent, _, own_name = place.rpartition(".")
        stored = QuantizedLinear(layer, precision, on_disk=on_disk and place.startswith("blocks."))
        setattr(vit.get_submodule(parent), own_name, stored)
    total = sum(parameter.numel() for parameter in vit.parameters())
    linear = sum(layer.in_features * layer.out_features for _, layer in layers)
    if precision != "fp32" and linear < total / 2:
        raise ConfigError(
            f"--backbone-precision {precision} is for the weights of linear layers, which are {linear / total:.0%} of "
            f"{name}; choose fp32, or another backbone"
        )
    for module in vit.modules():
        for key, parameter in module.named_parameters(recurse=False):
            if not (isinstance(module, QuantizedLinear) and key == "weight"):
                module._parameters[key] = nn.Parameter(torch.full(parameter.shape, 0.0), requires_grad=False)


def quantized_linears(vit: nn.Module) -> dict[str, QuantizedLinear]:
    """The layers by the names of their weights."""
    return {f"{place}.weight": layer for place, layer in vit.named_modules() if isinstance(layer, QuantizedLinear)}
