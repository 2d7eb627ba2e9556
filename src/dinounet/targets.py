"""Between classes in masks and outputs of the network: one output a class, or one a region, which may overlap.

Regions are written into a mask one after another, so that later ones lie over earlier ones, as in nnU-Net
("region-based training"); a pixel belongs to a region if its class is one of the region's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dinounet.arrays import Array, beside, sigmoid, softmax
from dinounet.data.labels import IGNORED
from dinounet.data.plan import DataPlan

if TYPE_CHECKING:
    from torch import Tensor


def to_targets(mask: Tensor, plan: DataPlan) -> tuple[Tensor, Tensor]:
    """What the network should answer, and where that is known.

    Args:
        mask: (B, H, W) of classes in the plan's order, or IGNORED.
        plan: of the data.

    Returns:
        (B, K, H, W) float, 1 where an output is true, and (B, 1, H, W) float, 0 at ignored pixels, where no output is.
    """
    import torch  # which who predicts by ONNX does without

    covers = [[label in numbers for numbers in plan.meaning.outputs.values()] for label in plan.labels.values()]
    ignored = mask == IGNORED if plan.ignore is not None else torch.zeros_like(mask, dtype=torch.bool)
    target = torch.tensor(covers, dtype=torch.float32, device=mask.device)[mask.masked_fill(ignored, 0).long()]
    known = (~ignored)[:, None].float()
    return target.movedim(-1, 1) * known, known


def to_classes(scores: Array, plan: DataPlan, threshold: float = 0.0) -> Array:
    """Classes in the plan's order, (B, H, W) int64, of logits (B, K, H, W); of probabilities with the threshold 0.5."""
    if plan.regions is None:
        return scores.argmax(1)
    numbers = list(plan.labels.values())
    classes = beside(np.zeros(scores[:, 0].shape, np.int64), scores)
    for place, region in enumerate(plan.regions):
        classes[scores[:, place] > threshold] = numbers.index(region.written_as)
    return classes


def to_probabilities(logits: Array, plan: DataPlan) -> Array:
    """Of the classes, or of each region by itself: (B, K, H, W) of logits of the same shape."""
    return softmax(logits, 1) if plan.regions is None else sigmoid(logits)
