"""Test-time augmentation: a tile as seen in mirrors, and turned.

nnU-Net mirrors along both axes ("inference", arXiv 1809.10486) and so does `flip`; `full` adds the transposed ones,
which makes all eight symmetries of a square.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

TestTimeAugmentation = Literal["none", "flip", "full"]


class View(NamedTuple):
    """One symmetry of the square."""

    transposed: bool
    """Rows and columns are swapped first."""

    mirrored: tuple[int, ...]
    """Axes that are mirrored then: -2, -1."""

    def see(self, tile: Tensor) -> Tensor:
        """The tile, (..., h, w), in this view."""
        turned = tile.transpose(-1, -2) if self.transposed else tile
        return turned.flip(self.mirrored) if self.mirrored else turned

    def put_back(self, seen: Tensor) -> Tensor:
        """What was found in this view, (..., h, w), as the tile lies."""
        turned = seen.flip(self.mirrored) if self.mirrored else seen
        return turned.transpose(-1, -2) if self.transposed else turned


_MIRRORED: tuple[tuple[int, ...], ...] = ((), (-2,), (-1,), (-2, -1))

VIEWS: dict[TestTimeAugmentation, tuple[View, ...]] = {
    "none": (View(False, ()),),
    "flip": tuple(View(False, axes) for axes in _MIRRORED),
    "full": tuple(View(transposed, axes) for transposed in (False, True) for axes in _MIRRORED),
}
