"""Gaussian sliding window: images larger than a patch are predicted in overlapping tiles.

nnU-Net's (arXiv 1809.10486, "inference"): tiles evenly spaced at no more than half a tile, weighed by a Gaussian whose
deviation is an eighth of the tile. MONAI's window lays the last tile against the border instead: its spacing is uneven.
Unlike nnU-Net's, the Gaussian's middle is the tile's, also if its side is even, and a slice smaller than a patch isn't
filled up with zeros.

Tiles go from left to right and from the top down, so that rows which no further tile reaches are final: of a slice's
logits no more is held at a time than a tile's height.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dinounet.data.tiles import STEP, tile_starts


class Grid(NamedTuple):
    """Where the tiles of a slice lie."""

    size: tuple[int, int]
    """Rows and columns of the slice."""

    tile: tuple[int, int]
    """Of each tile: the patch, or the slice where that is smaller."""

    rows: list[int]
    """Where tiles begin."""

    columns: list[int]


def make_grid(size: tuple[int, int], patch: tuple[int, int], step: float = STEP) -> Grid:
    """Tiles that cover a slice."""
    tile = min(patch[0], size[0]), min(patch[1], size[1])
    return Grid(size, tile, tile_starts(size[0], tile[0], step), tile_starts(size[1], tile[1], step))


def gaussian(length: int, device: torch.device | str = "cpu") -> Tensor:
    """Weight of each pixel along one side of a tile, largest in its middle and never 0; a tile's are the products."""
    weight = torch.exp(-0.5 * ((torch.arange(length, device=device) - (length - 1) / 2) / (length / 8)) ** 2)
    return weight / weight.max()


class Canvas:
    """Joins the tiles of one slice, which must come from left to right and from the top down.

    Args:
        grid: where they lie.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._top = 0
        """The first row that isn't final."""
        self._sum: Tensor | None = None
        """(..., h, W), the weighed logits from there on, a tile's height of them."""

    def add(self, row: int, column: int, logits: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Add a tile's logits (..., h, w); gives what becomes final by that: rows, (..., rows, W), and the first."""
        grid, (height, width) = self.grid, self.grid.tile
        if len(grid.rows) == len(grid.columns) == 1:  # nothing to join
            yield 0, logits
            return
        if self._sum is None:
            self._sum = logits.new_zeros(*logits.shape[:-1], grid.size[1], dtype=torch.float32)
            self._row_weight, self._column_weight = (gaussian(side, logits.device) for side in grid.tile)
            self._row_total, self._column_total = (
                _add_up(starts, weight, length)
                for starts, weight, length in zip(
                    (grid.rows, grid.columns), (self._row_weight, self._column_weight), grid.size, strict=True
                )
            )
        if row > self._top:
            final = row - self._top
            yield self._top, self._finish(final)
            self._sum[..., : height - final, :] = self._sum[..., final:, :].clone()
            self._sum[..., height - final :, :] = 0
            self._top = row
        weighed = logits.float() * self._row_weight[:, None] * self._column_weight
        self._sum[..., column : column + width] += weighed
        if (row, column) == (grid.rows[-1], grid.columns[-1]):
            yield self._top, self._finish(height)
            self._sum = None

    def _finish(self, rows: int) -> Tensor:
        """The first rows, divided by their weights."""
        assert self._sum is not None
        total = self._row_total[self._top : self._top + rows, None] * self._column_total
        return self._sum[..., :rows, :] / total


def _add_up(starts: list[int], weight: Tensor, length: int) -> Tensor:
    """Weight of all tiles together along one axis."""
    total = weight.new_zeros(length)
    for start in starts:
        total[start : start + len(weight)] += weight
    return total


class Enlarger:
    """Resizes rows of a slice, as they become final, from the network's size to the image's own: bilinear.

    The same as `F.interpolate(mode="bilinear", align_corners=False)` of the whole.

    Args:
        size: rows and columns that come.
        wanted: rows and columns that go.
    """

    ROWS = 256
    """That are made at a time at most, so that little is held."""

    def __init__(self, size: tuple[int, int], wanted: tuple[int, int]) -> None:
        self.size, self.wanted = size, wanted
        self._held: Tensor | None = None
        self._top = 0
        """The first row held."""
        self._made = 0
        """Rows that are done."""

    def add(self, first: int, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Take (V, K, rows, W) and give what can be made of them, (V, K, rows', W'), and its first row."""
        if self.size == self.wanted:
            yield first, rows
            return
        held = rows if self._held is None else torch.cat([self._held, rows], dim=-2)
        complete = first + rows.shape[-2] == self.size[0]
        places = (torch.arange(self.wanted[0], device=rows.device) + 0.5) * (self.size[0] / self.wanted[0]) - 0.5
        places = places.clamp(0, self.size[0] - 1)
        above = places.floor().long()
        below = (above + 1).clamp(max=self.size[0] - 1)
        ready = self.wanted[0] if complete else int((below < first + rows.shape[-2]).sum())
        for start in range(self._made, ready, self.ROWS):
            some = slice(start, min(start + self.ROWS, ready))
            part = (places[some] - above[some])[:, None]
            mixed = torch.lerp(held[..., above[some] - self._top, :], held[..., below[some] - self._top, :], part)
            size = mixed.shape[-2], self.wanted[1]
            yield start, torch.nn.functional.interpolate(mixed, size=size, mode="bilinear", align_corners=False)
        self._made = ready
        end = first + rows.shape[-2]
        keep = min(int(above[ready]), end) if ready < self.wanted[0] else end
        self._held, self._top = held[..., keep - self._top :, :].clone(), keep
