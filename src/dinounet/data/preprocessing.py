"""From a volume to slices that the network reads, as the plan says; and for a mask the way back.

Normalisation and resampling follow nnU-Net's ("ZScoreNormalization", "CTNormalization"; cubic for images, linear
one-hot for labels, within slices only).
"""

from __future__ import annotations

import warnings

import numpy as np

from dinounet.data.images import Volume
from dinounet.data.labels import IGNORED
from dinounet.data.plan import ChannelPlan, DataPlan


def image_to_slices(image: Volume, plan: DataPlan) -> np.ndarray:
    """Normalised, resampled slices: (S, C, H, W) float32."""
    channels = [normalise(channel, how) for channel, how in zip(image.array, plan.channels, strict=True)]
    slices = np.moveaxis(np.stack(channels), slice_axis(image, plan) + 1, 0)
    size = resampled_size(image, plan)
    if size != slices.shape[-2:]:
        slices = np.stack([[_resize(channel, size) for channel in slice] for slice in slices])
    return np.ascontiguousarray(slices, dtype=np.float32)


def mask_to_slices(mask: Volume, plan: DataPlan) -> np.ndarray:
    """Resampled slices of classes: (S, H, W) uint8, each pixel the place of its label in the plan, or IGNORED."""
    classes = np.zeros(mask.array.shape, np.uint8)
    for index, label in enumerate(plan.labels.values()):
        classes[mask.array == label] = index
    if plan.ignore is not None:
        classes[mask.array == plan.ignore] = IGNORED
    slices: np.ndarray = np.moveaxis(classes, slice_axis(mask, plan), 0)
    size = resampled_size(mask, plan)
    if size != slices.shape[-2:]:
        from batchgenerators.augmentations.utils import resize_segmentation

        slices = np.stack([resize_segmentation(slice, size, order=1) for slice in slices])
    return np.ascontiguousarray(slices)


def slices_to_mask(slices: np.ndarray, volume: Volume, plan: DataPlan) -> np.ndarray:
    """Slices of classes at the volume's own size, (S, H, W), as labels on its axes (Z, Y, X)."""
    labels = np.array(list(plan.labels.values()), np.uint8 if max(plan.labels.values()) < 256 else np.uint16)
    return np.moveaxis(labels[slices], 0, slice_axis(volume, plan))


def slice_axis(volume: Volume, plan: DataPlan) -> int:
    """The axis (of z, y, x) along which a volume is cut: the plan's, but a flat image is one slice."""
    return 0 if volume.is_flat else plan.slice_axis


def slice_size(volume: Volume, plan: DataPlan) -> tuple[int, int]:
    """Rows and columns of a slice as stored."""
    rows, columns = np.delete(volume.shape, slice_axis(volume, plan)).tolist()
    return rows, columns


def resampled_size(volume: Volume, plan: DataPlan) -> tuple[int, int]:
    """Rows and columns of a slice at the plan's spacing."""
    rows, columns = slice_size(volume, plan)
    spacing = volume.spacing or (plan.unknown_spacing and (plan.unknown_spacing,) * 3)
    if plan.spacing is None or not spacing:
        return rows, columns
    own = np.delete(spacing, slice_axis(volume, plan)).tolist()
    factors = [distance / wanted for distance, wanted in zip(own, plan.spacing, strict=True)]
    return max(1, round(rows * factors[0])), max(1, round(columns * factors[1]))


def normalise(channel: np.ndarray, how: ChannelPlan) -> np.ndarray:
    """One channel of a whole case, (Z, Y, X) of any type, by the plan's rule: float32."""
    channel = channel.astype(np.float32, copy=False)
    if how.normalisation == "zscore":
        return (channel - channel.mean()) / max(channel.std(), 1e-8)
    if how.normalisation == "ct":
        known = how.intensities
        clipped = np.clip(channel, known.percentile_00_5, known.percentile_99_5)
        return (clipped - known.mean) / max(known.std, 1e-8)
    if how.normalisation == "rgb":
        assert how.imagenet is not None  # the plan checks
        mean, deviation = how.imagenet
        return (channel / 255 - mean) / deviation
    if how.normalisation == "rescale_to_0_1":
        above = channel - channel.min()
        return above / max(above.max(), 1e-8)
    if how.normalisation == "rgb_to_0_1":
        return channel / 255
    return channel


def _resize(slice: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from skimage.transform import resize

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return resize(slice, size, order=3, mode="edge", anti_aliasing=False, clip=True)
