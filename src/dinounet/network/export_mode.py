"""The network's computations as exported graphs need them: plain operators, exact ratios of whole numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

STEPS = 1024
"""Steps of a table from one whole number to the next. A line between two entries of a sine is off by 5e-6."""


class Ratios(NamedTuple):
    """Fractions, as whole numerators and denominators."""

    numerator: Tensor
    """Whole numbers from 0 up."""

    denominator: Tensor
    """Whole numbers from 1 up, of the same shape or of one that broadcasts to it."""

    def cells(self, side: Tensor) -> tuple[Tensor, Tensor]:
        """Of places along a line of so many cells: the middle of a cell before each, and how far it is from there.

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


_exporting = False


@contextmanager
def exporting() -> Iterator[None]:
    """While this lasts, the network computes with operators that other programs have too."""
    global _exporting
    _exporting = True
    try:
        yield
    finally:
        _exporting = False


def is_exporting() -> bool:
    """Whether it does."""
    return _exporting
