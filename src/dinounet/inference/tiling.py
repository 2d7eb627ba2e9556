"""Gaussian sliding window: images larger than a patch are predicted in overlapping tiles.

nnU-Net's (arXiv 1809.10486, "inference"): tiles evenly spaced at no more than half a tile, weighed by a Gaussian whose
deviation is an eighth of the tile. MONAI's window lays the last tile against the border instead: its spacing is uneven.
Unlike nnU-Net's, the Gaussian's middle is the tile's, also if its side is even, and a slice smaller than a patch isn't
filled up with zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

STEP = 0.5
"""Distance of neighbouring tiles at the most, as a share of a tile."""


def predict_tiled(slices: Tensor, patch: tuple[int, int], batch: int, network: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits of slices of any size.

    Args:
        slices: (S, C, H, W).
        patch: rows and columns of a tile; a smaller slice is predicted whole.
        batch: tiles at a time.
        network: (B, C, h, w) -> (B, K, h, w).

    Returns:
        (S, K, H, W) float32 on the slices' device.
    """
    height, width = slices.shape[-2:]
    tile = (min(patch[0], height), min(patch[1], width))
    corners = [(y, x) for y in tile_starts(height, tile[0]) for x in tile_starts(width, tile[1])]
    weight = gaussian(tile, slices.device)
    total: Tensor | None = None
    weights = torch.zeros(height, width, device=slices.device)
    for y, x in corners:
        rows, columns = slice(y, y + tile[0]), slice(x, x + tile[1])
        weights[rows, columns] += weight
        for first in range(0, len(slices), batch):
            some = slice(first, first + batch)
            logits = network(slices[some, :, rows, columns]).float()
            if total is None:
                total = logits.new_zeros(len(slices), logits.shape[1], height, width)
            total[some, :, rows, columns] += logits * weight
    assert total is not None
    return total / weights


def tile_starts(length: int, tile: int) -> list[int]:
    """Where tiles start along one axis: from the first pixel to the last, evenly, at most half a tile apart."""
    count = math.ceil((length - tile) / (tile * STEP)) + 1
    return [round((length - tile) * index / max(count - 1, 1)) for index in range(count)]


def gaussian(tile: tuple[int, int], device: torch.device) -> Tensor:
    """Weight of each pixel of a tile, 1 in the middle and never 0."""
    rows, columns = (
        torch.exp(-0.5 * ((torch.arange(side, device=device) - (side - 1) / 2) / (side / 8)) ** 2) for side in tile
    )
    weight = torch.outer(rows, columns)
    return weight / weight.max()
