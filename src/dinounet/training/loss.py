"""Dice plus cross-entropy, one to one, as nnU-Net's: Dice over the batch, without background, smoothed by 1e-5.

With regions each output has a binary cross-entropy of its own and Dice counts all of them. Ignored pixels are left out
of every sum and of every mean; so the mean over no pixel is 0, and a batch without a known pixel teaches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, are_deterministic_algorithms_enabled

from dinounet.data.plan import DataPlan
from dinounet.targets import to_targets

Loss = Callable[[Tensor | Sequence[Tensor], Tensor], Tensor]


def make_loss(plan: DataPlan | None = None) -> Loss:
    """A function of logits (B, K, H, W), or a list of them at 1, 1/2, 1/4 ..., and a mask (B, H, W), to a scalar.

    Scales are weighed 1, 1/2, 1/4 ..., and the weights add up to 1, as in nnU-Net's deep supervision.

    Args:
        plan: of the data, whose regions and ignore label count; None for neither.
    """
    # on CUDA PyTorch's cross-entropy of class numbers has no deterministic form, that of shares has
    if plan is None or (plan.regions is None and plan.ignore is None and not are_deterministic_algorithms_enabled()):
        loss_at_scale = _dice_and_cross_entropy()
    else:
        loss_at_scale = _masked_dice_and_cross_entropy(plan)

    def loss(logits: Tensor | Sequence[Tensor], mask: Tensor) -> Tensor:
        scales = [logits] if isinstance(logits, Tensor) else list(logits)
        target = mask[:, None].float()
        weights = [2.0**-scale for scale in range(len(scales))]
        parts = [
            weight * loss_at_scale(scale.float(), F.interpolate(target, size=scale.shape[-2:], mode="nearest-exact"))
            for weight, scale in zip(weights, scales, strict=True)
        ]
        return sum(parts[1:], parts[0]) / sum(weights)

    return loss


def _dice_and_cross_entropy() -> Callable[[Tensor, Tensor], Tensor]:
    from monai.losses import DiceCELoss

    return DiceCELoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5
    )


def _masked_dice_and_cross_entropy(plan: DataPlan) -> Callable[[Tensor, Tensor], Tensor]:
    from monai.losses import MaskedDiceLoss

    regions = plan.regions is not None
    dice = MaskedDiceLoss(
        include_background=regions, sigmoid=regions, softmax=not regions, batch=True, smooth_nr=1e-5, smooth_dr=1e-5
    )

    def loss(logits: Tensor, mask: Tensor) -> Tensor:
        target, known = to_targets(mask[:, 0], plan)
        if regions:
            wrong = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1, keepdim=True)
        else:
            wrong = F.cross_entropy(logits, target, reduction="none")[:, None]
        # nnU-Net sums the binary cross-entropy over regions where there is an ignore label, and else takes the mean;
        # here it is the mean, so that an ignore label that never occurs changes nothing
        return dice(logits, target, known) + (wrong * known).sum() / known.sum().clamp(min=1)

    return loss
