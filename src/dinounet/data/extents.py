"""Masks whose file holds a part of their image's grid: DICOM leaves out empty slices, Slicer saves what was painted.

They are placed by their own origin, on whole voxels alone; what isn't in the file is background.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from dinounet.data.formats.slicer import is_segmentation
from dinounet.data.geometry import SAME_PLACE, Geometry, Volume
from dinounet.data.images import SEGMENTATION_ENDING, ending_of

MOST_EMPTY = 4096
"""Slices that a segmentation may have left out; what lies farther away is of another series."""


def on_one_grid(mask: Volume, other: Volume) -> tuple[Volume, Volume]:
    """A mask and its image, or another mask, where a file holds only a part of the grid, on all of it.

    DICOM segmentations leave out empty slices, and Slicer saves the extent that is painted; other volumes come as they
    are, and these too where they don't fit, so that whoever compares the grids tells that.
    """
    if mask.shape == other.shape and not (may_be_a_part(mask) and may_be_a_part(other)):
        return mask, other
    if not may_be_a_part(other):
        return _spread(mask, other.shape, other), other
    is_slice = other.shape[0] == 1 < mask.shape[0]  # which doesn't tell how far the next one would be
    if not may_be_a_part(mask) or is_slice:
        return on_one_grid(other, mask)[::-1]
    box = _box_of(mask, other)
    if box is None:
        return mask, other
    first = np.minimum(box, 0)
    last = np.maximum(box + mask.shape, other.shape)
    if (last - first - mask.shape).max() > MOST_EMPTY:
        return mask, other
    whole = replace(other, geometry=_shifted(other.geometry, first))
    shape = tuple((last - first).tolist())
    return _spread(mask, shape, whole), _spread(other, shape, whole)


def may_be_a_part(volume: Volume) -> bool:
    """Whether a file's format, or that it names segments, says that what isn't in it is background."""
    named = ending_of(volume.source) == SEGMENTATION_ENDING or is_segmentation(volume.source)
    return named or bool(volume.segments)


def _spread(mask: Volume, shape: tuple[int, ...], grid: Volume) -> Volume:
    """A mask on all of a grid of this shape that holds all of it, 0 where it has nothing; else as it is."""
    first = _box_of(mask, grid) if may_be_a_part(mask) else None
    if first is None or (first < 0).any() or (first + mask.shape > shape).any():
        return mask
    array = np.zeros(shape, mask.array.dtype)
    array[tuple(slice(a, a + length) for a, length in zip(first.tolist(), mask.shape, strict=True))] = mask.array
    return replace(mask, array=array, geometry=grid.geometry)


def _box_of(mask: Volume, grid: Volume) -> np.ndarray | None:
    """The index, z, y, x, of a mask's first voxel on a grid, which may lie outside; None if it isn't on that grid."""
    a, b = mask.geometry, grid.geometry
    if a is None or b is None:
        return None
    to_grid = np.linalg.solve(b.affine, a.affine)
    first = np.rint(to_grid[:3, 3])
    corners = np.array([*itertools.product(*((0, length - 1) for length in mask.shape[::-1]))])
    apart = corners @ (to_grid[:3, :3] - np.eye(3)).T + to_grid[:3, 3] - first
    if min(len(a.origin), len(b.origin)) == 2:
        apart[:, 2] = first[2] = 0
    return None if np.abs(apart).max() > SAME_PLACE else first[::-1].astype(int)


def _shifted(geometry: Geometry | None, first: np.ndarray) -> Geometry | None:
    """A grid that begins at another of its voxels, z, y, x."""
    if geometry is None:
        return None
    origin = (geometry.affine @ [*first[::-1], 1])[: len(geometry.origin)]
    return replace(geometry, origin=tuple(origin.tolist()), also=(), nifti=None)
