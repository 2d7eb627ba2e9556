"""Dice plus cross-entropy, one to one, as nnU-Net's: Dice over the batch, without background, smoothed by 1e-5.

With regions each output has a binary cross-entropy of its own and Dice counts all of them. Ignored pixels are left out
of every sum and of every mean; so the mean over no pixel is 0, and a batch without a known pixel teaches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, are_deterministic_algorithms_enabled

from dinounet.data.arrays import to_targets
from dinounet.schema.plan import DataPlan

Loss = Callable[[Tensor | Sequence[Tensor], Tensor], Tensor]

SMOOTH = 1e-5
"""Added to both sides of Dice's fraction, so that an output without a pixel has a Dice of 1."""


def make_loss(plan: DataPlan | None = None) -> Loss:
    """A function of logits (B, K, H, W), or a list of them at 1, 1/2, 1/4 ..., and a mask (B, H, W), to a scalar.

    Scales are weighed 1, 1/2, 1/4 ..., and the weights add up to 1, as in nnU-Net's deep supervision.

    Args:
        plan: of the data, whose regions and ignore label count; None for neither.
    """
    # on CUDA PyTorch's cross-entropy of class numbers has no deterministic form, that of shares has
    if plan is None or (plan.regions is None and plan.ignore is None and not are_deterministic_algorithms_enabled()):
        loss_at_scale = dice_and_cross_entropy
    else:
        loss_at_scale = partial(masked_dice_and_cross_entropy, plan=plan)

    def loss(logits: Tensor | Sequence[Tensor], mask: Tensor) -> Tensor:
        scales = [logits] if isinstance(logits, Tensor) else list(logits)
        target = mask[:, None].float()
        weights = [2.0**-scale for scale in range(len(scales))]
        parts = [
            weight
            * loss_at_scale(scale.float(), F.interpolate(target, size=scale.shape[-2:], mode="nearest-exact")[:, 0])
            for weight, scale in zip(weights, scales, strict=True)
        ]
        return sum(parts[1:], parts[0]) / sum(weights)

    return loss


def dice_and_cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Of logits (B, K, H, W) and a mask (B, H, W) of classes, each of which excludes the others."""
    classes = mask.long()
    target = torch.zeros_like(logits).scatter_(1, classes[:, None], 1)
    return soft_dice_loss(logits.softmax(1)[:, 1:], target[:, 1:]) + F.cross_entropy(logits, classes)


def masked_dice_and_cross_entropy(logits: Tensor, mask: Tensor, plan: DataPlan) -> Tensor:
    """Of logits (B, K, H, W), one a class or region of the plan, and a mask (B, H, W) with pixels that are ignored."""
    target, known = to_targets(mask, plan)
    if plan.regions is None:
        probability, target_of_dice = logits.softmax(1)[:, 1:], target[:, 1:]
        wrong = F.cross_entropy(logits, target, reduction="none")[:, None]
    else:
        probability, target_of_dice = logits.sigmoid(), target
        wrong = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1, keepdim=True)
    # nnU-Net sums the binary cross-entropy over regions where there is an ignore label, and else takes the mean;
    # here it is the mean, so that an ignore label that never occurs changes nothing
    return soft_dice_loss(probability * known, target_of_dice) + (wrong * known).sum() / known.sum().clamp(min=1)


def soft_dice_loss(probability: Tensor, target: Tensor) -> Tensor:
    """1 - Dice of (B, K, H, W), each from 0 to 1, over the pixels of the whole batch; the mean over the K outputs."""
    overlap = (probability * target).sum((0, 2, 3))
    total = probability.sum((0, 2, 3)) + target.sum((0, 2, 3))
    return (1 - (2 * overlap + SMOOTH) / (total + SMOOTH)).mean()
