"""Gaussian sliding window: images larger than a patch are predicted in overlapping tiles.

nnU-Net's (arXiv 1809.10486, "inference"): tiles evenly spaced at no more than half a tile, weighed by a Gaussian whose
deviation is an eighth of the tile. MONAI's window lays the last tile against the border instead: its spacing is uneven.
Unlike nnU-Net's, the Gaussian's middle is the tile's, also if its side is even, and a slice smaller than a patch isn't
filled up with zeros.

Tiles go from left to right and from the top down, so that rows which no further tile reaches are final: of a slice's
logits no more is held at a time than a tile's height.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np

from dinounet.data.arrays import STEP, Array, beside, concatenate, tile_starts, zeros

T = TypeVar("T")

SECONDS_BETWEEN_LOOKS = 0.2
"""Whether anybody still wants what was made."""


def prefetch(items: Iterable[T], most: int) -> Iterator[T]:
    """The same items, of which up to `most` are made before they are asked for.

    An error in making them is raised where it would have been; a user that stops early ends the thread.
    """
    made: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(most)
    unwanted = threading.Event()

    def put(item: tuple[T] | BaseException | None) -> None:
        while not unwanted.is_set():
            try:
                return made.put(item, timeout=SECONDS_BETWEEN_LOOKS)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put((item,))
                if unwanted.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        unwanted.set()
        thread.join()


class Grid(NamedTuple):
    """Where the tiles of a slice lie."""

    size: tuple[int, int]
    """Rows and columns of the slice."""

    tile: tuple[int, int]
    """Size of each tile: the patch, or the slice where that is smaller."""

    rows: list[int]
    """Where tiles begin."""

    columns: list[int]


def make_grid(size: tuple[int, int], patch: tuple[int, int], step: float = STEP) -> Grid:
    """Tiles that cover a slice."""
    tile = min(patch[0], size[0]), min(patch[1], size[1])
    return Grid(size, tile, tile_starts(size[0], tile[0], step), tile_starts(size[1], tile[1], step))


def gaussian(length: int) -> np.ndarray:
    """Weight of each pixel along one side of a tile, largest in its middle and never 0; a tile's are the products."""
    weight = np.exp(-0.5 * ((np.arange(length) - (length - 1) / 2) / (length / 8)) ** 2)
    return (weight / weight.max()).astype(np.float32)


class GaussianTileMerger:
    """Joins the tiles of one slice, which must come from left to right and from the top down.

    Args:
        grid: where they lie.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._top = 0
        """The first row that isn't final."""
        self._sum: Array | None = None
        """(..., h, W), the weighed logits from there on, a tile's height of them."""

    def add(self, row: int, column: int, logits: Array) -> Iterator[tuple[int, Array]]:
        """Add a tile's logits (..., h, w); gives what becomes final by that: rows, (..., rows, W), and the first."""
        grid, (height, width) = self.grid, self.grid.tile
        if len(grid.rows) == len(grid.columns) == 1:  # nothing to join
            yield 0, logits
            return
        if self._sum is None:
            self._sum = zeros((*logits.shape[:-1], grid.size[1]), like=logits)
            weights = [gaussian(side) for side in grid.tile]
            totals = map(_add_up, (grid.rows, grid.columns), weights, grid.size)
            self._row_weight, self._column_weight = (beside(weight, logits) for weight in weights)
            self._row_total, self._column_total = (beside(total, logits) for total in totals)
        if row > self._top:
            final = row - self._top
            yield self._top, self._finish(final)
            self._sum[..., : height - final, :] = self._sum[..., final:, :] + 0  # a copy, since they overlap
            self._sum[..., height - final :, :] = 0
            self._top = row
        weighed = logits * self._row_weight[:, None] * self._column_weight
        self._sum[..., column : column + width] += weighed
        if (row, column) == (grid.rows[-1], grid.columns[-1]):
            yield self._top, self._finish(height)
            self._sum = None

    def _finish(self, rows: int) -> Array:
        """The first rows, divided by their weights."""
        assert self._sum is not None
        total = self._row_total[self._top : self._top + rows, None] * self._column_total
        return self._sum[..., :rows, :] / total


def _add_up(starts: list[int], weight: np.ndarray, length: int) -> np.ndarray:
    """Weight of all tiles together along one axis."""
    total = np.zeros(length, weight.dtype)
    for start in starts:
        total[start : start + len(weight)] += weight
    return total


class StreamingResizer:
    """Resizes rows of a slice, as they become final, from the network's size to the image's own: bilinear.

    The same as `F.interpolate(mode="bilinear", align_corners=False)` of the whole.

    Args:
        size: rows and columns that come.
        wanted: rows and columns that go.
    """

    ROWS = 256
    """Maximum number of rows computed at a time, to save memory."""

    def __init__(self, size: tuple[int, int], wanted: tuple[int, int]) -> None:
        self.size, self.wanted = size, wanted
        self._held: Array | None = None
        self._top = 0
        """The first row held."""
        self._made = 0
        """Rows that are done."""

    def add(self, first: int, rows: Array) -> Iterator[tuple[int, Array]]:
        """Take (V, K, rows, W) and give what can be made of them, (V, K, rows', W'), and its first row."""
        if self.size == self.wanted:
            yield first, rows
            return
        held = rows if self._held is None else concatenate([self._held, rows], axis=-2)
        complete = first + rows.shape[-2] == self.size[0]
        above, below, part = _between(self.size[0], self.wanted[0])
        ready = self.wanted[0] if complete else int((below < first + rows.shape[-2]).sum())
        for start in range(self._made, ready, self.ROWS):
            some = slice(start, min(start + self.ROWS, ready))
            share = beside(part[some, None], held)
            upper, lower = held[..., above[some] - self._top, :], held[..., below[some] - self._top, :]
            yield start, self._widen(upper + (lower - upper) * share)
        self._made = ready
        end = first + rows.shape[-2]
        keep = min(int(above[ready]), end) if ready < self.wanted[0] else end
        self._held, self._top = held[..., keep - self._top :, :] + 0, keep  # a copy, so that the rest can go

    def _widen(self, rows: Array) -> Array:
        """Rows whose number is right, with as many columns as are wanted."""
        left, right, part = _between(self.size[1], self.wanted[1])
        before, behind = rows[..., left], rows[..., right]
        return before + (behind - before) * beside(part, rows)


def _between(length: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each place that is wanted along an axis: the cells before and behind it, and how far it is from the first."""
    places = np.clip((np.arange(wanted) + 0.5) * (length / wanted) - 0.5, 0, length - 1)
    before = np.floor(places).astype(np.int64)
    return before, np.minimum(before + 1, length - 1), (places - before).astype(np.float32)
