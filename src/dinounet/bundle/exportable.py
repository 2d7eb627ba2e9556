"""The network as a graph in which no size is baked: what `torch.export` is given, and ONNX made of.

The sides of its image are multiples of a number, so that the sizes of all maps follow from one another without
rounding. What would fix a size, or is no plain operator of ONNX, is computed in another way here, with the same numbers
up to rounding: rotary positions come from counted cells, and shrinking is a product with a matrix of shares. What
follows from sizes is counted in whole numbers (`dinounet.network.ratios` says why).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dinounet.backbones.frozen import Network
from dinounet.backbones.low_precision import held_linears
from dinounet.errors import ConfigError
from dinounet.network.dinounet import DinoUNet
from dinounet.network.export_mode import Ratios, Table, exporting, look_up, tabulate, whole

LARGEST_LOGIT = 1e30
"""A limit that no logit reaches: OpenVINO leaves its output in float32 where an operation as simple as this comes last,
and rounds it to bfloat16 where a convolution does."""

ROPE = "RotaryEmbeddingDinoV3"
"""The class of timm's whose grid counts in floats, by which `torch.export` fixes the size."""


def _cubic(away: Tensor) -> Tensor:
    """PyTorch's cubic filter where it may shrink (Keys, 1981, with a = -0.5), of distances in pixels up to 2."""
    near = (1.5 * away - 2.5) * away**2 + 1
    far = ((-0.5 * away + 2.5) * away - 4) * away + 2
    return torch.where(away < 1, near, far)


FILTERS = {"bilinear": tabulate(lambda away: (1 - away).clamp(min=0)), "bicubic": tabulate(_cubic, largest=2)}
"""Weight of a pixel by its distance, in pixels of the coarser of both grids."""


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
            self._rope = getattr(network.backbone.vit, "rope", None)
            self._rotations = _tabulate_rotations(self._rope) if type(self._rope).__name__ == ROPE else None
        self.network = network.eval()

    def forward(self, image: Tensor) -> Tensor:
        if not isinstance(self.network, DinoUNet):
            (logits,) = self.network.scales(image)
            return logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
        with plain_operators(), _counted_positions(self._rope, self._rotations):
            (logits,) = self.network.decoder(self.network.encode(image))
        return logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)


def _widen(vit: nn.Module) -> None:
    """Give linear layers that are held in fewer bytes the float32 numbers that they compute with."""
    for name, held in held_linears(vit).items():
        place, _, _ = name.rpartition(".")
        parent, _, own_name = place.rpartition(".")
        layer = nn.Linear(held.in_features, held.out_features, held.bias is not None, device="meta")
        layer.weight = nn.Parameter(held.weight, requires_grad=False)
        layer.register_parameter("bias", held.get_parameter("bias") if held.bias is not None else None)
        setattr(vit.get_submodule(parent), own_name, layer)


class _Rotations(NamedTuple):
    """DINOv3's rotary positions, for grids of any size."""

    table: Table
    """Sines and cosines of places along the grid, from 0 to 1, of rows and columns alike: (2 * D,) each."""

    of_rows: Tensor
    """Which of these numbers depend on the row, (2 * D,); the others depend on the column."""

    def at(self, grid: tuple[int, int]) -> Tensor:
        """What timm's `get_embed` gives, (h * w, 2 * D)."""
        rows, columns = (look_up(self.table, Ratios(2 * torch.arange(side) + 1, 2 * whole(side))) for side in grid)
        return torch.where(self.of_rows, rows[:, None], columns[None]).flatten(0, 1)


def _tabulate_rotations(rope: Any) -> _Rotations:
    def turned(places: Tensor) -> Tensor:  # in float32: who made the features that were learned from has no more
        return torch.cat(rope._get_pos_embed_from_coords((2 * places - 1).float()), dim=-1)

    a_row = turned(torch.tensor([[0.6, 0.5]]))[0]  # of which no sine is 0, and in the middle all are
    sines, _ = (a_row != 0).chunk(2)
    table = tabulate(lambda ratio: turned(torch.stack([ratio, ratio], dim=-1)).double())
    return _Rotations(table, torch.cat([sines, sines]))


@contextmanager
def _counted_positions(rope: Any, rotations: _Rotations | None) -> Iterator[None]:
    """While this lasts, DINOv3's rotary positions are made without its sizes as floats."""
    if rotations is None:
        yield
        return
    rope.get_embed = lambda shape, *_: rotations.at(shape)
    try:
        yield
    finally:
        del rope.get_embed


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
    of_old, of_new = whole(old), whole(new)
    # between middles, in units of which an old pixel has 2 * new and a new one 2 * old
    away = ((2 * torch.arange(old) + 1) * of_new - (2 * torch.arange(new)[:, None] + 1) * of_old).abs()
    weight = look_up(FILTERS[mode], Ratios(away, 2 * torch.maximum(of_old, of_new)))
    return weight / weight.sum(1, keepdim=True)
