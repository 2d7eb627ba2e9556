"""How the published code plans its data: a fixed size for the median image instead of a spacing for all.

Dino U-Net (arXiv 2508.20909), by what its planner does: the in-plane spacing is chosen so that the median image becomes
512 x 512, other images follow by that spacing, and aspect ratios are distorted where the median image is no square.
"""

from __future__ import annotations

import math
from dataclasses import replace

from dinounet.data.plan import DataPlan

PATCH = (512, 512)
SLICE_AXIS = 0
LARGEST_SHARE = 0.05
"""Of all the dataset's pixels in one batch."""
LEAST_BATCH = 2
IN_MEMORY = 13
"""What the published code's planner finds for 512 x 512 and 2 to 14 classes (nnunetv2 2.8's: 12, to 19); we keep it for
more, where it finds less."""


def plan_as_published(data: DataPlan) -> DataPlan:
    """Slices along the first axis, and a spacing at which the median slice has 512 x 512 pixels.

    Images that don't know their spacing count as 1 apart, as in nnU-Net's reader of flat images, if none knows it.
    """
    seen = data.fingerprint
    spacing = seen.median_spacing or (1.0, 1.0, 1.0)
    rows, columns = (
        distance * length / side
        for distance, length, side in zip(spacing[1:], seen.median_shape[1:], PATCH, strict=True)
    )
    unknown = None if seen.median_spacing and not seen.cases_without_spacing else 1.0
    return replace(data, slice_axis=SLICE_AXIS, spacing=(rows, columns), unknown_spacing=unknown)


def largest_batch(data: DataPlan) -> int:
    """nnU-Net's rule for 2D: as many patches as a plain U-Net takes in 8 GB, 5 % of the dataset's pixels at most.

    The dataset counts with every case as large as the median one, whose slices have 512 x 512 pixels.
    """
    seen = data.fingerprint
    pixels = seen.cases * seen.median_shape[SLICE_AXIS] * math.prod(PATCH)
    return max(LEAST_BATCH, min(IN_MEMORY, round(pixels * LARGEST_SHARE / math.prod(data.patch))))
