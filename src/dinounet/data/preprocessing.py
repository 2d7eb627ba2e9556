"""From a volume to slices that the network reads, as the plan says; and for a mask the way back.

Normalisation and resampling follow nnU-Net's ("ZScoreNormalization", "CTNormalization"; cubic for images, linear
one-hot for labels, within slices only). It goes slice by slice, so that a volume may be larger than memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from dinounet.data.images import Volume
from dinounet.data.labels import IGNORED
from dinounet.data.plan import ChannelPlan, DataPlan

Moments = tuple[float, float]
"""What is subtracted from a channel, and what it is divided by then, where the whole case decides that."""


def image_to_slices(
    image: Volume, plan: DataPlan, part: slice = slice(None), moments: Sequence[Moments] | None = None
) -> np.ndarray:
    """Normalised, resampled slices: (S, C, H, W) float32.

    Args:
        image: in memory or in its file; of it no more is read and held at a time than one slice.
        plan: says how.
        part: of the slices, those that are wanted.
        moments: from `measure_channels`, which is asked if they are not given.
    """
    axis, size = slice_axis(image, plan), resampled_size(image, plan)
    moments = measure_channels(image, plan.channels) if moments is None else moments
    indices = range(image.shape[axis])[part]
    slices = np.empty((len(indices), len(plan.channels), *size), np.float32)
    for result, index in zip(slices, indices, strict=True):
        channels = zip(_cut(image, axis, index), plan.channels, moments, strict=True)
        for place, (channel, how, known) in enumerate(channels):
            normalised = normalise(channel, how, known)
            result[place] = normalised if normalised.shape == size else _resize(normalised, size)
    return slices


def mask_to_slices(mask: Volume, plan: DataPlan, part: slice = slice(None)) -> np.ndarray:
    """Resampled slices of classes: (S, H, W) uint8, each pixel the place of its label in the plan, or IGNORED."""
    axis, size = slice_axis(mask, plan), resampled_size(mask, plan)
    indices = range(mask.shape[axis])[part]
    slices = np.empty((len(indices), *size), np.uint8)
    for result, index in zip(slices, indices, strict=True):
        labels = _cut(mask, axis, index)
        classes = np.zeros_like(labels, np.uint8)
        for place, label in enumerate(plan.labels.values()):
            classes[labels == label] = place
        if plan.ignore is not None:
            classes[labels == plan.ignore] = IGNORED
        result[:] = classes if size == classes.shape else _resize_labels(classes, size)
    return slices


def measure_channels(image: Volume, channels: Sequence[ChannelPlan]) -> list[Moments]:
    """What each channel is normalised by where the whole case decides, in double precision.

    One pass over the planes; means and deviations are joined as by Chan, Golub and LeVeque (1979).
    """
    rules = [channel.normalisation for channel in channels]
    mean, squares = np.zeros((2, len(rules)))
    low, high = np.full(len(rules), np.inf), np.full(len(rules), -np.inf)
    if {*rules} & {"zscore", "rescale_to_0_1"}:
        for z in range(image.shape[0]):
            pixels = _cut(image, 0, z).reshape(len(rules), -1).astype(np.float64)
            low, high = np.minimum(low, pixels.min(1)), np.maximum(high, pixels.max(1))
            own = pixels.mean(1)
            shift = own - mean
            squares += pixels.var(1) * pixels.shape[1] + shift**2 * pixels.shape[1] * z / (z + 1)
            mean += shift / (z + 1)
    deviation = np.sqrt(squares / np.prod(image.shape, dtype=np.int64))
    ranges = zip(rules, mean, deviation, low, high, strict=True)
    return [
        (float(least), float(most - least)) if rule == "rescale_to_0_1" else (float(middle), float(spread))
        for rule, middle, spread, least, most in ranges
    ]


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


def normalise(channel: np.ndarray, how: ChannelPlan, moments: Moments) -> np.ndarray:
    """One channel of a case, or a part of it, by the plan's rule, as float32.

    `moments` are those of the whole channel, from `measure_channels`.
    """
    channel = channel.astype(np.float32, copy=False)
    if how.normalisation in ("zscore", "rescale_to_0_1"):
        subtract, divide = moments
        return (channel - subtract) / max(divide, 1e-8)
    if how.normalisation == "ct":
        known = how.intensities
        clipped = np.clip(channel, known.percentile_00_5, known.percentile_99_5)
        return (clipped - known.mean) / max(known.std, 1e-8)
    if how.normalisation == "rgb":
        assert how.imagenet is not None  # the plan checks
        mean, deviation = how.imagenet
        return (channel / 255 - mean) / deviation
    if how.normalisation == "rgb_to_0_1":
        return channel / 255
    return channel


def _cut(volume: Volume, axis: int, index: int) -> np.ndarray:
    """A slice of an image, (C, H, W), or of a mask, (H, W), as stored."""
    where: Any = (..., index, *[slice(None)] * (2 - axis))
    return volume.array[where]


def _resize_labels(classes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from batchgenerators.augmentations.utils import resize_segmentation

    return resize_segmentation(classes, size, order=1)


def _resize(slice: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from skimage.transform import resize

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return resize(slice, size, order=3, mode="edge", anti_aliasing=False, clip=True)
