"""Where a volume lies in space, and the one notion of two volumes that lie on the same grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dinounet.errors import DataError

LengthUnit = Literal["mm", "mm at the detector"]


@dataclass(frozen=True)
class Geometry:
    """Where a volume lies in space, as SimpleITK tells it: x, y, z, in mm."""

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    unit: LengthUnit = "mm"
    """What the spacing is in: mm at the detector are larger than those of what was imaged, by an unknown factor."""


@dataclass(frozen=True)
class Volume:
    """An image (C, Z, Y, X) or a mask (Z, Y, X) with its geometry."""

    array: np.ndarray
    """Intensities as stored, or labels as integers."""

    geometry: Geometry | None
    """None for formats that know of no space (PNG and its like)."""

    source: Path
    """The file, or the first of its channels' files."""

    modality: str | None = None
    """How it was taken, such as CT or MR; None where the format doesn't tell."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows and columns."""
        z, y, x = self.array.shape[-3:]
        return z, y, x

    @property
    def is_flat(self) -> bool:
        """Whether it is a two-dimensional image, rather than a volume that happens to have one slice."""
        return self.shape[0] == 1 and (self.geometry is None or len(self.geometry.spacing) == 2)

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """Distance of neighbours along z, y and x in mm; None where it isn't known."""
        if self.geometry is None:
            return None
        x, y, *z = self.geometry.spacing
        return (z[0] if z else 1.0), y, x


def coarsest_axis(shape: Sequence[int], spacing: Sequence[float] | None) -> int:
    """The axis (of z, y, x) along which to cut slices: one of length 1, else the coarsest, else the first."""
    steps = [
        math.inf if length == 1 else round(step, 3)  # a header's last digits must not decide
        for length, step in zip(shape, spacing or (1.0, 1.0, 1.0), strict=True)
    ]
    return steps.index(max(steps))


def require_same_grid(volume: Volume, like: Volume) -> None:
    """Raise a DataError unless both have the same shape and geometry, up to rounding in the files' headers."""
    if volume.shape != like.shape:
        raise DataError(
            f"{volume.source} is {_times(volume.shape)} but {like.source} is {_times(like.shape)}; give both the same "
            "size, or pair others"
        )
    a, b = volume.geometry, like.geometry
    if a is None or b is None:
        return
    for name in ("spacing", "origin", "direction"):
        if not np.allclose(getattr(a, name), getattr(b, name), rtol=1e-3, atol=1e-3):
            raise DataError(
                f"{volume.source} and {like.source} differ in {name}: {rounded(getattr(a, name))} and "
                f"{rounded(getattr(b, name))}; resample one onto the other's grid"
            )


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def rounded(numbers: Sequence[float]) -> list[float]:
    return [round(number, 4) for number in numbers]
