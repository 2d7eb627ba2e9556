"""Multi-scale deformable attention in plain PyTorch: forward and backward on any device, no extension to compile.

Deformable DETR (arXiv 2010.04159), section 4.1: every query looks at a few points around its own place instead of at
the whole map, and learns where.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dinounet.network.export_mode import Ratios, whole

Sizes = Sequence[tuple[int, int]]
"""Height and width of each level's map, in cells."""


def sample_and_weigh(value: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
    """Sample every level's map at the given places and add the samples up by their weights.

    Bilinear, zero outside, pixel centres (`align_corners=False`).

    Args:
        value: (B, S, heads, d), the levels' cells one after the other, S in all.
        sizes: the levels' heights and widths.
        locations: (B, Q, heads, levels, points, 2), x then y on the unit square.
        weights: (B, Q, heads, levels, points).

    Returns:
        (B, Q, heads * d).
    """
    if value.device.type == "cpu":
        result: Tensor = _OnCPU.apply(value, locations, weights, sizes)
        return result
    batch, queries, heads, levels, points, _ = locations.shape
    sample = sample_by_gather if value.is_cuda and torch.are_deterministic_algorithms_enabled() else _sample
    samples = [sample(map, grid) for map, grid in zip(_maps(value, sizes), _grids(locations), strict=True)]
    weights = weights.permute(0, 2, 1, 3, 4).reshape(batch * heads, 1, queries, levels * points)
    total = (torch.cat(samples, dim=-1) * weights).sum(-1)  # B*heads, d, Q
    return total.view(batch, -1, queries).transpose(1, 2)


class _OnCPU(torch.autograd.Function):
    """The same, for a CPU: a bag of weighted rows a query and head, and no sample is kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, sizes: Sizes) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        ctx.sizes = sizes
        batch, queries, heads = locations.shape[:3]
        rows, indices, shares, first = [], [], [], 0
        for level, ((height, width), map) in enumerate(zip(sizes, _maps(value, sizes), strict=True)):
            # with a border of zeros no place needs to be told from one inside: what is far away moves onto it
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
        for level, (map, grid) in enumerate(zip(_maps(value, ctx.sizes), _grids(locations), strict=True)):
            weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]  # B*heads, 1, Q, points
            for_map, for_grid = torch.ops.aten.grid_sampler_2d_backward(
                gradient * weight, map, grid, 0, 0, False, [True, True]
            )
            for_value.append(for_map.flatten(2).unflatten(0, (batch, heads)).permute(0, 3, 1, 2))
            for_locations.append(2 * for_grid.unflatten(0, (batch, heads)).transpose(1, 2))
            for_weights.append((_sample(map, grid) * gradient).sum(1).unflatten(0, (batch, heads)).transpose(1, 2))
        return torch.cat(for_value, dim=1), torch.stack(for_locations, dim=3), torch.stack(for_weights, dim=3), None


def sample_near(value: Tensor, sizes: Sizes, reference: Ratios, offsets: Tensor, weights: Tensor) -> Tensor:
    """`sample_and_weigh` in a form in which nothing that depends on a map's size is a float, for exported graphs.

    Who computes it in bfloat16 rounds an offset of some cells, and not a place among hundreds.

    Args:
        value: (B, S, heads, d).
        sizes: the levels' heights and widths.
        reference: (Q, 2), x then y on the unit square.
        offsets: from there in cells of each level, (B, Q, heads, levels, points, 2).
        weights: (B, Q, heads, levels, points).

    Returns:
        (B, Q, heads * d).
    """
    batch, _, heads = offsets.shape[:3]
    total = value.new_zeros(())
    for level, ((height, width), map) in enumerate(zip(sizes, _maps(value, sizes), strict=True)):
        bordered = F.pad(map, (2, 2, 2, 2)).flatten(2).transpose(1, 2)  # B*heads, cells, d
        rows, row = bordered.flatten(0, 1), width + 4
        sides = torch.stack([whole(width), whole(height)])
        before, beyond = reference.cells(sides)
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


def _maps(value: Tensor, sizes: Sizes) -> list[Tensor]:
    """(B, S, heads, d) -> one (B*heads, d, height, width) a level."""
    cells = value.split([height * width for height, width in sizes], dim=1)
    return [
        cell.permute(0, 2, 3, 1).unflatten(3, size).flatten(0, 1).contiguous()
        for cell, size in zip(cells, sizes, strict=True)
    ]


def _grids(locations: Tensor) -> Tensor:
    """(B, Q, heads, levels, points, 2) on the unit square -> (levels, B*heads, Q, points, 2) from -1 to 1."""
    return (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)


def _sample(map: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(map, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def sample_by_gather(map: Tensor, grid: Tensor) -> Tensor:
    """The same in elementary operations: slower, but with a gradient that CUDA can compute deterministically.

    Shapes: map (N, d, H, W), grid (N, Q, points, 2), x then y from -1 to 1, -> (N, d, Q, points).
    """
    height, width = map.shape[-2:]
    x, y = ((grid[..., axis] + 1) * side / 2 - 0.5 for axis, side in enumerate((width, height)))
    left, top = x.floor(), y.floor()
    total = map.new_zeros(())
    for row, row_weight in ((top, top + 1 - y), (top + 1, y - top)):
        for column, column_weight in ((left, left + 1 - x), (left + 1, x - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            cell = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            index = cell.long().flatten(1)[:, None].expand(-1, map.shape[1], -1)
            values = map.flatten(2).gather(2, index).unflatten(2, x.shape[1:])
            total = total + values * (row_weight * column_weight * inside)[:, None]
    return total


class DeformableAttention(nn.Module):
    """Attention of query tokens to a few points of one or more maps.

    Shapes: query (B, Q, D), reference (B or 1, Q, levels, 2), source (B, S, D) -> (B, Q, D).

    Computed in float32 also under autocast: a place on a large map needs more digits than bfloat16 has.
    """

    def __init__(self, width: int, heads: int = 16, points: int = 4, levels: int = 1, value_ratio: float = 0.5) -> None:
        super().__init__()
        self.heads, self.points, self.levels = heads, points, levels
        value_width = int(width * value_ratio)
        self.offsets = nn.Linear(width, heads * levels * points * 2)
        self.weights = nn.Linear(width, heads * levels * points)
        self.value = nn.Linear(width, value_width)
        self.output = nn.Linear(value_width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start from equal weights and a fan: head k looks in direction 2 pi k / heads, point i at distance i + 1."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)  # onto the unit square's edge
        distances = torch.arange(1.0, self.points + 1)[:, None]
        fan = (directions[:, None, None] * distances).expand(-1, self.levels, -1, -1)
        nn.init.zeros_(self.offsets.weight)
        with torch.no_grad():
            self.offsets.bias.copy_(fan.flatten())
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        for layer in (self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, reference: Tensor | Ratios, source: Tensor, sizes: Sizes) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            query, source = query.float(), source.float()
            batch, queries, _ = query.shape
            value = self.value(source).unflatten(-1, (self.heads, -1))
            offsets = self.offsets(query).view(batch, queries, self.heads, self.levels, self.points, 2)
            weights = self.weights(query).view(batch, queries, self.heads, -1).softmax(-1)
            weights = weights.unflatten(-1, (self.levels, self.points))
            # an offset is in cells of the map that it samples
            if isinstance(reference, Ratios):
                return self.output(sample_near(value, sizes, reference, offsets, weights))
            extent = torch.tensor([[width, height] for height, width in sizes], device=query.device, dtype=query.dtype)
            locations = reference[:, :, None, :, None] + offsets / extent[:, None]
            return self.output(sample_and_weigh(value, sizes, locations, weights))
