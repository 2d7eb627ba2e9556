"""The network as a graph in which no size is baked: what `torch.export` is given, and ONNX made of.

The sides of its image are multiples of a number, so that the sizes of all maps follow from one another without
rounding. What would fix a size, or is no plain operator of ONNX, is computed in another way here, with the same numbers
up to rounding: rotary positions come from counted cells, and shrinking is a product with a matrix of shares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dinounet.errors import ConfigError
from dinounet.network.adapter import cell_centres
from dinounet.network.build import Network
from dinounet.network.dinounet import DinoUNet
from dinounet.network.exporting import exporting
from dinounet.network.held import held_linears

CUBIC = -0.5
"""The parameter of PyTorch's cubic filter where it may shrink (Keys, 1981)."""

ROPE = "RotaryEmbeddingDinoV3"
"""The class of timm's whose grid counts in floats, by which `torch.export` fixes the size."""


class Exportable(nn.Module):
    """(B, C, H, W) -> logits (B, K, H, W), H and W multiples of what the network's configuration says, at least two.

    Args:
        network: trained, on the CPU; it is changed, such that its linear layers hold float32.

    Raises:
        ConfigError: the backbone sees the image at a scale by which its grid is rounded.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        if isinstance(network, DinoUNet):
            if not network.backbone.cells.is_integer():
                raise ConfigError(
                    f"the backbone sees the image at a scale of {network.backbone.scale:g}, by which the sides of its "
                    "grid are rounded; networks of a whole scale, such as 1 or 2, can be exported to ONNX"
                )
            _widen(network.backbone.vit)
        self.network = network.eval()

    def forward(self, image: Tensor) -> Tensor:
        if not isinstance(self.network, DinoUNet):
            return self.network.core.output_block(self.network.core.skip_layers(image))
        with plain_operators(), _counted_positions(getattr(self.network.backbone.vit, "rope", None)):
            (logits,) = self.network.decoder(self.network.encode(image))
        return logits


def _widen(vit: nn.Module) -> None:
    """Give linear layers that are held in fewer bytes the float32 numbers that they compute with."""
    for name, held in held_linears(vit).items():
        place, _, _ = name.rpartition(".")
        parent, _, own_name = place.rpartition(".")
        layer = nn.Linear(held.in_features, held.out_features, held.bias is not None, device="meta")
        layer.weight = nn.Parameter(held.weight, requires_grad=False)
        layer.register_parameter("bias", held.get_parameter("bias") if held.bias is not None else None)
        setattr(vit.get_submodule(parent), own_name, layer)


@contextmanager
def _counted_positions(rope: Any) -> Iterator[None]:
    """While this lasts, DINOv3's rotary positions are made without its sizes as floats."""
    if type(rope).__name__ != ROPE:
        yield
        return
    rope.get_embed = lambda shape, *_: _rotations(rope, shape)
    try:
        yield
    finally:
        del rope.get_embed


def _rotations(rope: Any, shape: tuple[int, int]) -> Tensor:
    """What timm's `get_embed` gives: (h * w, 2 * D)."""
    x, y = cell_centres([shape], rope.periods.device)[0, :, 0].unbind(-1)
    return torch.cat(rope._get_pos_embed_from_coords(2 * torch.stack([y, x], dim=-1) - 1), dim=-1)


@contextmanager
def plain_operators() -> Iterator[None]:
    """While this lasts, networks compute with what ONNX has operators for, and bake no size."""
    with exporting(), _ResizingByProducts():
        yield


class _ResizingByProducts(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is F.interpolate and named.get("antialias"):
            return resize(args[0], named["size"], named["mode"])
        return func(*args, **named)


def resize(map: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """`F.interpolate(antialias=True)`, bilinear or bicubic, as two products: (B, C, h, w) -> (B, C, H, W)."""
    rows, columns = (_shares(old, new, mode) for old, new in zip(map.shape[-2:], size, strict=True))
    return rows @ map @ columns.T


def _shares(old: int, new: int, mode: str) -> Tensor:
    """How much each new pixel along an axis takes of each old one, (new, old)."""
    step = torch.ones(()) * old / new
    centres = (torch.arange(new, dtype=torch.float32) + 0.5) * step
    away = ((torch.arange(old, dtype=torch.float32) + 0.5 - centres[:, None]) / step.clamp(min=1)).abs()
    if mode == "bilinear":
        weight = (1 - away).clamp(min=0)
    else:
        near = ((CUBIC + 2) * away - (CUBIC + 3)) * away * away + 1
        far = CUBIC * (((away - 5) * away + 8) * away - 4)
        weight = torch.where(away < 1, near, torch.where(away < 2, far, 0.0))
    return weight / weight.sum(1, keepdim=True)
