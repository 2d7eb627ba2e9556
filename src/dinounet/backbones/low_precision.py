"""Linear layers stored in bf16 or int8, and backbones streamed from disk block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinounet.errors import ConfigError

Held = Literal["fp32", "bf16", "int8"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}

GROUP = 32
"""Numbers with a factor of their own in int8. Pretrained rows have outliers: with one factor a row, features of
`dinov2_vits14` were off by 1.3 to 2.2 %, with one for 32 by 0.6 to 1.1 %."""

NUMBERS_TOGETHER = 2**18
"""Rounded at a time: no second float32 copy of a weight is made, and what is made stays in the processor's cache."""


class HeldLinear(nn.Module):
    """A frozen linear layer: (..., in) -> (..., out).

    `weight` reads as float numbers, which some of timm's blocks ask for; the parameter of that name, which `state_dict`
    and `parameters` give, is as it is held.

    Args:
        outline: the layer to replace, perhaps on PyTorch's device `meta`; its numbers are not taken over.
        precision: how the weight is held.
        on_disk: leave the weight on `meta`; something brings it before each forward.
    """

    bias: Tensor | None
    scale: Tensor

    def __init__(self, outline: nn.Linear, precision: Held, *, on_disk: bool) -> None:
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
        """Round a weight, (out, in), to what is held, in the memory that is taken already."""
        held = self._parameters["weight"]
        assert held is not None
        self._round(weight, held.data, self.scale)

    def convert(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A new tensor as it is held, (out, in), and what its groups are to be multiplied by, (out, groups, 1)."""
        held, scale = torch.empty(weight.shape, dtype=DTYPES[self.precision]), self._factors()
        self._round(weight, held, scale)
        return held, scale

    def _factors(self) -> Tensor:
        """A one for each group of a weight, in bfloat16: times 8 bits that is rounded once when it is widened."""
        if self.precision != "int8":
            return torch.ones(1, 1, 1)
        groups = self.in_features // GROUP if self.in_features % GROUP == 0 else 1
        return torch.ones(self.out_features, groups, 1, dtype=torch.bfloat16)

    def _round(self, weight: Tensor, held: Tensor, scale: Tensor) -> None:
        if self.precision != "int8":
            held.copy_(weight)
            return
        together = max(NUMBERS_TOGETHER // self.in_features, 1)
        for rows, own, factor in zip(*(each.split(together) for each in (weight, held, scale)), strict=True):
            grouped = rows.float().unflatten(1, (factor.shape[1], -1))
            factor.copy_(grouped.abs().amax(dim=2, keepdim=True) / 127)
            factor[factor == 0] = 1  # a group of zeros
            own.copy_((grouped / factor).round_().flatten(1))

    @property
    def is_here(self) -> bool:
        """Whether the weight is in memory."""
        held = self._parameters["weight"]
        assert held is not None
        return not held.is_meta

    @property
    def weight(self) -> Tensor:
        """The weight as it is computed with, (out, in)."""
        held = self._parameters["weight"]
        assert held is not None
        kind = held.device.type
        lowered = kind != "meta" and torch.is_autocast_enabled(kind)  # which knows no such device
        dtype = torch.get_autocast_dtype(kind) if lowered else torch.float32
        widened = held.to(dtype)
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


def outlined() -> Any:
    """While this context lasts, modules are built without memory for their parameters; buffers are as always."""

    def outline(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> Any:
        return None if parameter is None else nn.Parameter(parameter.to("meta"), requires_grad=False)

    return nn.modules.module.register_module_parameter_registration_hook(outline)


def hold_linears(vit: nn.Module, name: str, precision: Held, *, on_disk: bool) -> None:
    """Replace the linear layers of an `outlined` model of timm's, and give memory, with zeros, to all else.

    Args:
        vit: the model.
        name: of the backbone, for the message.
        precision: how the layers' weights are held.
        on_disk: whether those of the blocks are brought from the disk before each forward.

    Raises:
        ConfigError: nearly nothing would be held so.
    """
    if on_disk and not isinstance(getattr(vit, "blocks", None), nn.ModuleList | nn.Sequential):
        raise ConfigError(f"{name} has no row of blocks to compute one by one from the disk; leave --offload out")
    layers = [(place, layer) for place, layer in vit.named_modules() if isinstance(layer, nn.Linear)]
    for place, layer in layers:
        parent, _, own_name = place.rpartition(".")
        held = HeldLinear(layer, precision, on_disk=on_disk and place.startswith("blocks."))
        setattr(vit.get_submodule(parent), own_name, held)
    total = sum(parameter.numel() for parameter in vit.parameters())
    linear = sum(layer.in_features * layer.out_features for _, layer in layers)
    if precision != "fp32" and linear < total / 2:
        raise ConfigError(
            f"--backbone-precision {precision} is for the weights of linear layers, which are {linear / total:.0%} of "
            f"{name}; choose fp32, or another backbone"
        )
    for module in vit.modules():
        for key, parameter in module.named_parameters(recurse=False):
            if not (isinstance(module, HeldLinear) and key == "weight"):
                module._parameters[key] = nn.Parameter(torch.full(parameter.shape, 0.0), requires_grad=False)


def held_linears(vit: nn.Module) -> dict[str, HeldLinear]:
    """The layers by the names of their weights."""
    return {f"{place}.weight": layer for place, layer in vit.named_modules() if isinstance(layer, HeldLinear)}
