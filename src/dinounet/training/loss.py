"""Dice plus cross-entropy, one to one, as nnU-Net's: Dice over the batch, without background, smoothed by 1e-5."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor | Sequence[Tensor], Tensor], Tensor]


def make_loss() -> Loss:
    """A function of logits (B, K, H, W), or a list of them at 1, 1/2, 1/4 ..., and a mask (B, H, W), to a scalar.

    Scales are weighed 1, 1/2, 1/4 ..., and the weights add up to 1, as in nnU-Net's deep supervision.
    """
    with warnings.catch_warnings():  # monai warns of what other packages will do some day
        warnings.simplefilter("ignore")
        from monai.losses import DiceCELoss

    dice_and_cross_entropy = DiceCELoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5
    )

    def loss(logits: Tensor | Sequence[Tensor], mask: Tensor) -> Tensor:
        scales = [logits] if isinstance(logits, Tensor) else list(logits)
        target = mask[:, None].float()
        weights = [2.0**-scale for scale in range(len(scales))]
        parts = [
            weight * dice_and_cross_entropy(scale.float(), F.interpolate(target, size=scale.shape[-2:], mode="nearest"))
            for weight, scale in zip(weights, scales, strict=True)
        ]
        return sum(parts[1:], parts[0]) / sum(weights)

    return loss
