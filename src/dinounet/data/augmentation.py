"""nnU-Net's augmentation for 2D patches, by its own library, so that comparisons are fair.

nnU-Net (arXiv 1809.10486), "data augmentation"; the values are those of nnunetv2's trainer, which differs in two ways:
it cuts a patch only 1 / 0.85 larger, which leaves corners empty, and chooses how to blur by the clock, so that a run
can't be repeated to the bit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dinounet.schema.recipe import Augmentation

ENLARGED = math.sqrt(2) / 0.7
"""A patch is cut this much larger, so that rotating by 45 degrees or shrinking to 0.7 leaves no empty corner."""

ELONGATED = 1.5
"""Ratio of a patch's sides above which it is turned by 15 degrees at the most, as in nnU-Net, not all the way round."""


def make_transform(augmentation: Augmentation, patch: tuple[int, int]) -> Any:
    """A callable on image=(C, h, w) float and segmentation=(1, h, w) tensors that returns a dict of the same."""
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

    mirror = MirrorTransform(allowed_axes=(0, 1))
    if augmentation == "none":
        return ComposeTransforms([])
    if augmentation == "flip":
        return ComposeTransforms([mirror])
    furthest = math.pi if max(patch) <= ELONGATED * min(patch) else math.pi / 12
    spatial = SpatialTransform(
        patch,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=0,
        p_rotation=0.2,
        rotation=(-furthest, furthest),
        p_scaling=0.2,
        scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1,
        bg_style_seg_sampling=False,
    )
    return ComposeTransforms([spatial, *make_intensity_transform().transforms, mirror])


def make_intensity_transform() -> Any:
    """The part of nnU-Net's that changes values and moves no pixel: on image=(C, h, w) float, to a dict of the same."""
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    def sometimes(transform: Any, probability: float) -> Any:
        return RandomTransform(transform, apply_probability=probability)

    around_one = BGContrast((0.75, 1.25))
    every_channel: dict[str, Any] = {"synchronize_channels": False, "p_per_channel": 1}
    gamma: dict[str, Any] = {"gamma": BGContrast((0.7, 1.5)), "p_retain_stats": 1, **every_channel}
    return ComposeTransforms(
        [
            sometimes(GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True), 0.1),
            sometimes(
                GaussianBlurTransform(
                    blur_sigma=(0.5, 1.0), synchronize_channels=False, synchronize_axes=False, p_per_channel=0.5
                ),
                0.2,
            ),
            sometimes(MultiplicativeBrightnessTransform(multiplier_range=around_one, **every_channel), 0.15),
            sometimes(ContrastTransform(contrast_range=around_one, preserve_range=True, **every_channel), 0.15),
            sometimes(
                SimulateLowResolutionTransform(
                    scale=(0.5, 1),
                    synchronize_channels=False,
                    synchronize_axes=True,
                    ignore_axes=(),
                    allowed_channels=None,
                    p_per_channel=0.5,
                ),
                0.25,
            ),
            sometimes(GammaTransform(p_invert_image=1, **gamma), 0.1),
            sometimes(GammaTransform(p_invert_image=0, **gamma), 0.3),
        ]
    )


def enlarged(patch: tuple[int, int], augmentation: Augmentation) -> tuple[int, int]:
    """Rows and columns to cut for a patch before it is augmented."""
    if augmentation != "nnunet":
        return patch
    side = int(np.ceil(max(patch) * ENLARGED))
    return side, side
