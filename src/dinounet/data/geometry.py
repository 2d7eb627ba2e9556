"""Place of a volume in space, and the one notion of two volumes that lie on the same grid.

Two volumes lie on one grid if they have the same shape, the same spacing, relative to itself, and if the centres of
their eight corner voxels are less than a tenth of a voxel apart. Centres, and not the voxels' outer corners, since
values stand for centres, and so the thickness of a single slice, which a flat image doesn't have, decides nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from dinounet.errors import DataError
from dinounet.schema.plan import BodyAxis, LengthUnit

if TYPE_CHECKING:
    from dinounet.data.formats.itk import Segment


SAME_PLACE = 0.1
"""Voxels by which corners of one grid may be apart, which is more than what headers in single precision round."""

SAME_SPACING = 1e-3
"""Share of a spacing by which it may be another, which is more than what headers round in text."""

SHEAR = 1e-3
"""Cosine of the angle between two axes from which on they are not at right angles: a twentieth of a degree."""


@dataclass(frozen=True)
class NiftiForms:
    """What a mask takes of the header of its image, a NIfTI file: where it lies, twice, and nothing about the patient.

    The fields are the format's own, in its own units.
    """

    version: Literal[1, 2]
    dims: int
    """Dimensions of the array; those after the third have length 1."""

    pixdim: tuple[float, ...]
    xyzt_units: int
    qform_code: int
    quatern: tuple[float, ...]
    """b, c, d."""

    qoffset: tuple[float, ...]
    sform_code: int
    srow: tuple[tuple[float, ...], ...]
    """x, y, z."""


@dataclass(frozen=True)
class Geometry:
    """Place of a volume in space: x, y, z in mm, to the left, back and head of a patient, as SimpleITK has it.

    A flat image has two spacings, and two numbers of origin and four of direction; three and nine where it tells how it
    lies in 3D space.
    """

    spacing: tuple[float, ...]
    """Lengths of the steps from a voxel to its neighbours along its axes."""

    origin: tuple[float, ...]
    """Centre of the first voxel."""

    direction: tuple[float, ...]
    """Unit vectors along the axes, as columns of a matrix, row by row."""

    unit: LengthUnit = "mm"
    """What the spacing is in: mm at the detector are larger than those of what was imaged, by an unknown factor."""

    is_placed: bool = True
    """Whether the file tells more than a spacing; else it lies anywhere."""

    also: tuple[Geometry, ...] = ()
    """Further places that its file names, as the two forms of NIfTI may."""

    nifti: NiftiForms | None = None
    """Header of a NIfTI file, for its mask."""

    file_units: tuple[str, ...] = ()
    """Units of an NRRD or MHA file's own numbers along x, y, z, for its mask; none: mm."""

    @property
    def affine(self) -> np.ndarray:
        """(4, 4), from indices x, y, z to mm; of a flat image the third axis is its normal, a pixel long."""
        dims = len(self.origin)
        axes, affine = np.eye(3), np.eye(4)
        axes[:dims, :dims] = np.reshape(self.direction, (dims, dims))
        affine[:3, :3] = axes * [*self.spacing, float(np.mean(self.spacing))][:3]
        affine[:dims, 3] = self.origin
        return affine

    @property
    def is_sheared(self) -> bool:
        """Whether its axes aren't at right angles, so that voxels can't be told by lengths alone."""
        axes = np.reshape(self.direction, (len(self.origin), -1))
        return bool(np.abs(axes.T @ axes - np.eye(len(axes))).max() > SHEAR)


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
    """Modality, such as CT or MR; None where the format doesn't tell."""

    segments: tuple[Segment, ...] = ()
    """What a mask's file says that its numbers stand for, as they are stored, a channel a layer."""

    palette: Mapping[int, str] | None = None
    """Colour that each number is shown in, as "#ff0000", of a mask whose file has a palette."""

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

    @property
    def box(self) -> tuple[float, float, float] | None:
        """Sides along z, y and x of a box as large as a voxel: the spacing, unless it is sheared and flatter."""
        if self.spacing is None or self.geometry is None or not self.geometry.is_sheared:
            return self.spacing
        z, y, x = self.spacing
        return z * abs(float(np.linalg.det(np.reshape(self.geometry.direction, (3, 3))))), y, x


def body_axes(volume: Volume) -> tuple[BodyAxis, BodyAxis, BodyAxis] | None:
    """What z, y and x run along in the patient, as nibabel's `aff2axcodes` has it; None where the file doesn't tell."""
    import nibabel

    if volume.is_flat or volume.geometry is None or not volume.geometry.is_placed:
        return None
    names: dict[str | None, BodyAxis] = {
        **dict.fromkeys("LR", "left-right"),
        **dict.fromkeys("AP", "anterior-posterior"),
        **dict.fromkeys("IS", "inferior-superior"),
    }
    codes = nibabel.aff2axcodes(np.diag([-1, -1, 1, 1]) @ volume.geometry.affine)  # its x and y run the other way
    x, y, z = (names.get(code) for code in codes)
    return None if x is None or y is None or z is None else (z, y, x)


def coarsest_axis(shape: Sequence[int], spacing: Sequence[float] | None) -> int:
    """The axis (of z, y, x) along which to cut slices: one of length 1, else the coarsest, else the first."""
    steps = [math.inf if length == 1 else step for length, step in zip(shape, spacing or (1.0, 1.0, 1.0), strict=True)]
    return next(axis for axis in range(3) if steps[axis] >= max(steps) * (1 - SAME_SPACING))  # a header's last digits


def require_same_grid(volume: Volume, like: Volume) -> None:
    """Raise a DataError unless both lie on one grid; what knows of no space does if the shapes are the same.

    Of a file that tells in several ways where it lies, one way that fits is enough.
    """
    if volume.shape != like.shape:
        turned = sorted(volume.shape) == sorted(like.shape)
        raise DataError(
            f"{volume.source} is {_times(volume.shape)} but {like.source} is {_times(like.shape)}; "
            + ("store the axes of both in one order, " if turned else "give both the same size, ")
            + "or pair others"
        )
    a, b = volume.geometry, like.geometry
    if a is None or b is None:
        return
    pairs = [_difference(one, other, volume.shape) for one in (a, *a.also) for other in (b, *b.also)]
    if all(pairs):
        raise DataError(f"{volume.source} and {like.source} differ in {pairs[0]}; resample one onto the other's grid")


def require_straight(volume: Volume) -> None:
    """Raise a DataError if a volume is sheared, so that lengths can't be measured along its axes."""
    if volume.geometry is not None and volume.geometry.is_sheared:
        raise DataError(
            f"{volume.source} is sheared: its axes are not at right angles, so that lengths can't be measured; "
            "resample it, and what lies on its grid, onto a straight one"
        )


def _difference(a: Geometry, b: Geometry, shape: tuple[int, int, int]) -> str:
    """Difference of two grids of one shape, in words; "" if they are one."""
    along = [axis for axis in range(min(len(a.spacing), len(b.spacing))) if shape[2 - axis] > 1]
    if any(abs(a.spacing[axis] / b.spacing[axis] - 1) > SAME_SPACING for axis in along):
        return f"spacing: {rounded(a.spacing)} and {rounded(b.spacing)} mm"
    if not (a.is_placed and b.is_placed):
        return ""
    first, apart = (np.abs(shift).max() for shift in _shifts(a, b, shape))
    if apart <= SAME_PLACE:
        return ""
    parallel = len(a.direction) == len(b.direction) and np.allclose(a.direction, b.direction, atol=1e-5)
    name = "origin" if first > SAME_PLACE else "spacing" if parallel else "direction"
    return f"{name}: {rounded(getattr(a, name))} and {rounded(getattr(b, name))}, by up to {apart:.3g} voxels"


def _shifts(a: Geometry, b: Geometry, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Distances of the first voxels, and of all corner voxels, of two grids, in voxels along the axes of each."""
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, length - 1) for length in shape[::-1]))])
    mm = (corners @ (a.affine - b.affine).T)[:, :3]
    voxels = np.stack([np.linalg.solve(one.affine[:3, :3], mm.T).T for one in (a, b)])
    if min(len(a.origin), len(b.origin)) == 2:  # a plane that doesn't tell where it lies in space
        voxels[..., 2] = 0
    return voxels[:, 0], voxels


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def rounded(numbers: Sequence[float]) -> list[float]:
    """Numbers with as many digits as single precision has."""
    return [float(f"{number:.7g}") for number in numbers]
