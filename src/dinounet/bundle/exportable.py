"""The network as a graph of plain operators that other programs have, with exact ratios of whole numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dinounet.backbones.frozen import Network
from dinounet.backbones.low_precision import quantized_linears
from dinounet.errors import ConfigError
from dinounet.network.adapter import cell_centres
from dinounet.network.deformable_attention import Sizes, deformable_sampling, to_maps
from dinounet.network.dinounet import DinoUNet

LARGEST_LOGIT = 1e30
"""A limit that no logit reaches: OpenVINO leaves its output in float32 where an operation as simple as this comes last,
and rounds it to bfloat16 where a convolution does."""

ROPE = "RotaryEmbeddingDinoV3"
"""The class of timm's whose grid counts in floats, by which `torch.export` fixes the size."""


STEPS = 1024
"""Steps of a table from one whole number to the next. A line between two entries of a sine is off by 5e-6."""


class Ratios(NamedTuple):
    """Fractions, as whole numerators and denominators."""

    numerator: Tensor
    """Whole numbers from 0 up."""

    denominator: Tensor
    """Whole numbers from 1 up, of the same shape or of one that broadcasts to it."""

    def split_at_centres(self, side: Tensor) -> tuple[Tensor, Tensor]:
        """Places on a line of `side` cells: the last cell whose centre is before each, and the distance from there.

        The first is a whole number from -1, the second a float from 0 to 1.
        """
        ahead = 2 * side * self.numerator + self.denominator  # by one cell, so that it isn't negative
        unit = 2 * self.denominator
        behind = torch.floor_divide(ahead, unit)
        return behind - 1, (ahead - behind * unit).float() / unit.float()


class Table(NamedTuple):
    """A function's values at equal steps of ratios, from 0 to a whole number."""

    values: Tensor
    """The function at each step, (steps, ...)."""

    rises: Tensor
    """Its difference from each step to the next, (steps, ...)."""


def tabulate(function: Callable[[Tensor], Tensor], largest: int = 1) -> Table:
    """Make a table, before a graph is traced, so that there it is a constant and no arithmetic.

    Args:
        function: of ratios (n,) in float64, to (n, ...).
        largest: ratio.
    """
    values = function(torch.arange(largest * STEPS + 1, dtype=torch.float64) / STEPS)
    return Table(values[:-1].float(), values.diff(dim=0).float())


def look_up(table: Table, ratios: Ratios) -> Tensor:
    """The function of ratios (...), (..., *values.shape[1:]); of larger ones than the table has, of its largest."""
    numerator, denominator = ratios
    last = len(table.values)
    scaled = torch.minimum(numerator, denominator * (last // STEPS)) * STEPS
    step = torch.floor_divide(scaled, denominator).clamp(max=last - 1)
    beyond = (scaled - step * denominator).float() / denominator.float()
    value, rise = (part.index_select(0, step.flatten()).unflatten(0, step.shape) for part in table)
    return value + beyond[(..., *[None] * (value.ndim - step.ndim))] * rise


def whole(number: int) -> Tensor:
    """A size as a tensor (), also one that is a symbol while a graph is traced."""
    return torch.ones((), dtype=torch.int64) * number


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
            if not network.backbone.grid_scale.is_integer():
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
        with PlainOperators(), _counted_positions(self._rope, self._rotations):
            (logits,) = self.network.decoder(self.network.encode(image))
        return logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)


def _widen(vit: nn.Module) -> None:
    """Give linear layers that are held in fewer bytes the float32 numbers that they compute with."""
    for name, held in quantized_linears(vit).items():
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
        """Rotary embedding as timm's `get_embed` returns it, (h * w, 2 * D)."""
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


class PlainOperators(TorchFunctionMode):
    """While this mode is on, networks compute with what ONNX has operators for, and bake no size."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is F.interpolate and named.get("antialias"):
            return resize(args[0], named["size"], named["mode"])
        if func is cell_centres:
            return counted_centres(*args, **named)
        if func is deformable_sampling:
            return sample_near(*args, **named)
        return func(*args, **named)


def counted_centres(levels: Sizes, _device: torch.device) -> Ratios:
    """`cell_centres` in whole numbers: numerators and denominators, (N, 2) each."""
    centres, sides = [], []
    for height, width in levels:
        grid_y, grid_x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        cells = torch.stack([grid_x, grid_y], dim=-1).flatten(0, 1)
        centres.append(2 * cells + 1)
        sides.append((2 * torch.stack([whole(width), whole(height)])).expand_as(cells))
    return Ratios(torch.cat(centres), torch.cat(sides))


def sample_near(value: Tensor, sizes: Sizes, reference: Ratios, offsets: Tensor, weights: Tensor) -> Tensor:
    """`deformable_sampling` in a form in which nothing that depends on a map's size is a float.

    Who computes it in bfloat16 rounds an offset of some cells, and not a place among hundreds.

    Args:
        value: (B, S, heads, d).
        sizes: the levels' heights and widths.
        reference: Q ratios, x then y on the unit square.
        offsets: from there in cells of each level, (B, Q, heads, levels, points, 2).
        weights: (B, Q, heads, levels, points).

    Returns:
        (B, Q, heads * d).
    """
    batch, _, heads = offsets.shape[:3]
    total = value.new_zeros(())
    for level, ((height, width), map) in enumerate(zip(sizes, to_maps(value, sizes), strict=True)):
        bordered = F.pad(map, (2, 2, 2, 2)).flatten(2).transpose(1, 2)  # B*heads, cells, d
        rows, row = bordered.flatten(0, 1), width + 4
        sides = torch.stack([whole(width), whole(height)])
        before, beyond = reference.split_at_centres(sides)
        away = offsets[:, :, :, level] + beyond[:, None, None]
        floor = away.floor()
        right_share, lower_share = (away - floor).unbind(-1)
        # what is far away moves onto the border of zeros, two cells wide
        cells = torch.minimum((before[:, None, None] + floor.long()).clamp(min=-2), sides) + 2
        left, top = cells.unbind(-1)
        begins = bordered.shape[1] * torch.arange(batch * heads, device=value.device)
        upper_left = top * row + left + begins.view(batch, 1, heads, 1)
        weight = weights[:, :, :, level]
        for step, share in (
            (0, (1 - lower_share) * (1 - right_share)),
            (1, (1 - lower_share) * right_share),
            (row, lower_share * (1 - right_share)),
            (row + 1, lower_share * right_share),
        ):
            samples = rows.index_select(0, (upper_left + step).flatten()).view(*weight.shape, -1)
            total = total + samples * (weight * share)[..., None]
    return total.sum(3).flatten(2)


def resize(map: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """`F.interpolate(antialias=True)`, bilinear or bicubic, as two products: (B, C, h, w) -> (B, C, H, W)."""
    rows, columns = (_shares(old, new, mode) for old, new in zip(map.shape[-2:], size, strict=True))
    return rows @ map @ columns.T


def _shares(old: int, new: int, mode: str) -> Tensor:
    """Weights of the old pixels in each new pixel along an axis, (new, old)."""
    of_old, of_new = whole(old), whole(new)
    # between middles, in units of which an old pixel has 2 * new and a new one 2 * old
    away = ((2 * torch.arange(old) + 1) * of_new - (2 * torch.arange(new)[:, None] + 1) * of_old).abs()
    weight = look_up(FILTERS[mode], Ratios(away, 2 * torch.maximum(of_old, of_new)))
    return weight / weight.sum(1, keepdim=True)
