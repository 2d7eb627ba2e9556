"""Multi-scale deformable attention in plain PyTorch: forward and backward on any device, no extension to compile.

Deformable DETR (arXiv 2010.04159), section 4.1: every query attends to a few points around its own place instead of to
the whole map, and learns where they are. Shapes: query (B, Q, D), source (B, S, D) -> (B, Q, D).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import wrap_torch_function

Sizes = Sequence[tuple[int, int]]
"""Height and width of each level's map, in cells."""


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

    def forward(self, query: Tensor, reference: Tensor, source: Tensor, sizes: Sizes) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            query, source = query.float(), source.float()
            batch, queries, _ = query.shape
            value = self.value(source).unflatten(-1, (self.heads, -1))
            offsets = self.offsets(query).view(batch, queries, self.heads, self.levels, self.points, 2)
            weights = self.weights(query).view(batch, queries, self.heads, -1).softmax(-1)
            weights = weights.unflatten(-1, (self.levels, self.points))
            return self.output(deformable_sampling(value, sizes, reference, offsets, weights))


@wrap_torch_function(lambda *inputs: inputs)  # so that a mode can replace it: on CPUs, and in exported graphs
def deformable_sampling(value: Tensor, sizes: Sizes, reference: Any, offsets: Tensor, weights: Tensor) -> Tensor:
    """Sample each level's map around reference points and sum the samples by their weights.

    Args:
        value: (B, S, heads, d), the levels' cells one after the other, S in all.
        sizes: the levels' heights and widths.
        reference: points (B or 1, Q, levels, 2), x then y on the unit square, as `adapter.cell_centres` makes them.
        offsets: from there in cells of each level, (B, Q, heads, levels, points, 2).
        weights: (B, Q, heads, levels, points).

    Returns:
        (B, Q, heads * d).
    """
    return sample_and_weigh(value, sizes, sampling_locations(sizes, reference, offsets), weights)


def sampling_locations(sizes: Sizes, reference: Tensor, offsets: Tensor) -> Tensor:
    """Points on the unit square, (B, Q, heads, levels, points, 2), from reference points and offsets in cells."""
    extent = torch.tensor([[width, height] for height, width in sizes], device=offsets.device, dtype=offsets.dtype)
    return reference[:, :, None, :, None] + offsets / extent[:, None]


def sample_and_weigh(value: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
    """`deformable_sampling` at locations (B, Q, heads, levels, points, 2), x then y on the unit square.

    Bilinear, zero outside, pixel centres (`align_corners=False`).
    """
    batch, queries, heads, levels, points, _ = locations.shape
    sample = sample_by_gather if value.is_cuda and torch.are_deterministic_algorithms_enabled() else grid_sample
    samples = [sample(map, grid) for map, grid in zip(to_maps(value, sizes), to_grids(locations), strict=True)]
    weights = weights.permute(0, 2, 1, 3, 4).reshape(batch * heads, 1, queries, levels * points)
    total = (torch.cat(samples, dim=-1) * weights).sum(-1)  # B*heads, d, Q
    return total.view(batch, -1, queries).transpose(1, 2)


def to_maps(value: Tensor, sizes: Sizes) -> list[Tensor]:
    """(B, S, heads, d) -> one (B*heads, d, height, width) a level."""
    cells = value.split([height * width for height, width in sizes], dim=1)
    return [
        cell.permute(0, 2, 3, 1).unflatten(3, size).flatten(0, 1).contiguous()
        for cell, size in zip(cells, sizes, strict=True)
    ]


def to_grids(locations: Tensor) -> Tensor:
    """(B, Q, heads, levels, points, 2) on the unit square -> (levels, B*heads, Q, points, 2) from -1 to 1."""
    return (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)


def grid_sample(map: Tensor, grid: Tensor) -> Tensor:
    """Bilinear samples: map (N, d, H, W), grid (N, Q, points, 2), x then y from -1 to 1, -> (N, d, Q, points)."""
    return F.grid_sample(map, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def sample_by_gather(map: Tensor, grid: Tensor) -> Tensor:
    """`grid_sample` in elementary operations: slower, but with a gradient that CUDA can compute deterministically."""
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
