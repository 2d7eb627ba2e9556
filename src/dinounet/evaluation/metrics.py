"""Dice and HD95 of one class in one case.

Dice (doi:10.2307/1932409) is the share of voxels in common; HD95 is the 95th percentile of the distances between the
two surfaces, the larger of both directions, as MONAI computes it. Axes of length 1 are dropped, since a flat image is
two-dimensional: in three dimensions all its pixels would lie on the surface.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np

POLICY = (
    "A class that is empty in both truth and prediction scores Dice 1 and HD95 0; a class that is empty in only one of "
    "them scores Dice 0 and as HD95 the diagonal of the whole image. No case is left out of a mean."
)
"""What an empty mask counts, in a sentence for readers of the numbers."""


def dice(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Twice the overlap of two boolean masks over the sum of both; 1 where both are empty."""
    total = np.count_nonzero(truth) + np.count_nonzero(prediction)
    return 2 * np.count_nonzero(truth & prediction) / total if total else 1.0


def hd95(truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> float:
    """95th percentile of the Hausdorff distance of two boolean masks, in the unit of `spacing`.

    A mask's surface are its voxels with a face neighbour outside of it; beyond the image is outside. Both empty are 0
    apart, one empty is the image's diagonal away.

    Args:
        truth: of any number of dimensions.
        prediction: of the same shape.
        spacing: distance of neighbours along each axis.
    """
    axes = [axis for axis, length in enumerate(truth.shape) if length > 1] or [0]
    spacing = [float(spacing[axis]) for axis in axes]
    shape = [truth.shape[axis] for axis in axes]
    truth, prediction = truth.reshape(shape), prediction.reshape(shape)
    if not truth.any() and not prediction.any():
        return 0.0
    if not truth.any() or not prediction.any():
        return math.hypot(*(length * step for length, step in zip(shape, spacing, strict=True)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.metrics import compute_hausdorff_distance

        # the distances depend on nothing beyond the masks but that it is background
        box = _bounding_box(truth | prediction)
        pair = [np.pad(mask[box], 1)[None, None] for mask in (prediction, truth)]
        return float(compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=spacing))


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)
