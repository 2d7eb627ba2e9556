"""The symmetries of a square: an image as seen in mirrors, and turned."""

from __future__ import annotations

from typing import NamedTuple

from dinounet.arrays import Array, flip


class View(NamedTuple):
    """One symmetry of the square."""

    transposed: bool
    """Rows and columns are swapped first."""

    mirrored: tuple[int, ...]
    """Axes that are mirrored then: -2, -1."""

    def see(self, tile: Array) -> Array:
        """The tile, (..., h, w), in this view."""
        turned = tile.swapaxes(-1, -2) if self.transposed else tile
        return flip(turned, self.mirrored) if self.mirrored else turned

    def put_back(self, seen: Array) -> Array:
        """What was found in this view, (..., h, w), as the tile lies."""
        turned = flip(seen, self.mirrored) if self.mirrored else seen
        return turned.swapaxes(-1, -2) if self.transposed else turned


_MIRRORED: tuple[tuple[int, ...], ...] = ((), (-2,), (-1,), (-2, -1))

IDENTITY = View(False, ())
FLIPS = tuple(View(False, axes) for axes in _MIRRORED)
"""What leaves rows as long as they are; the identity is the first."""
SYMMETRIES = tuple(View(transposed, axes) for transposed in (False, True) for axes in _MIRRORED)
"""All eight: mirrors and quarter turns; the identity is the first."""
