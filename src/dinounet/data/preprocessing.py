"""Normalised slices of a volume at the planned spacing, as the network reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinounet.data.arrays import RunningMoments, Samples
from dinounet.data.geometry import Volume
from dinounet.data.images import require_colour
from dinounet.data.lazy_volume import LazyRows
from dinounet.errors import DataError
from dinounet.schema.labels import IGNORED
from dinounet.schema.plan import ChannelPlan, DataPlan

IMAGENET = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))
"""Mean and deviation of red, green and blue in the images that backbones were trained on, of values from 0 to 1."""

OF_THE_CASE = frozenset({"zscore", "rescale_to_0_1"})
"""Rules that need a case's moments."""

Moments = tuple[float, float]
"""What is subtracted from a channel, and what it is divided by then, where the whole case decides that."""


def choose_moments(measured: RunningMoments, channels: Sequence[ChannelPlan]) -> list[Moments]:
    """What each channel's rule needs of what was measured of a case."""
    ranges = zip(channels, measured.mean, measured.deviation, measured.low, measured.high, strict=True)
    return [
        (float(low), float(high - low)) if how.normalisation == "rescale_to_0_1" else (float(mean), float(deviation))
        for how, mean, deviation, low, high in ranges
    ]


def normalise(channel: np.ndarray, how: ChannelPlan, moments: Moments | tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """One channel of a case, or a part of it, by the plan's rule, as float32.

    `moments` are those of the whole channel, from `measure_channels`; or of each pixel's case.
    """
    channel = channel.astype(np.float32, copy=False)
    if how.normalisation in OF_THE_CASE:
        subtract, divide = moments  # a NumPy number, of 64 bits, would make it slower and other numbers
        divide = np.maximum(divide, 1e-8) if isinstance(divide, np.ndarray) else max(divide, 1e-8)
        return ((channel - subtract) / divide).astype(np.float32, copy=False)
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


def normalise_samples(samples: Samples, channels: Sequence[ChannelPlan]) -> np.ndarray:
    """(C, n) intensities from anywhere in all cases, as the network gets them."""
    values, cases = samples.anywhere.chosen()
    of_cases = np.array([choose_moments(measured, channels) for measured in samples.moments])[cases]
    return np.stack(
        [
            normalise(values[:, index], how, (of_cases[:, index, 0], of_cases[:, index, 1]))
            for index, how in enumerate(channels)
        ]
    )


BLOCK = 1 << 22
"""Pixels that are measured together."""

LARGEST_ENLARGED = 1 << 30
"""Pixels of a slice that may come of enlarging it to the plan's spacing: 32768 x 32768."""


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
    moments = measure_channels(image, plan.channels) if moments is None else moments
    indices = range(image.shape[slice_axis(image, plan)])[part]
    slices = np.empty((len(indices), len(plan.channels), *resampled_size(image, plan)), np.float32)
    for result, index in zip(slices, indices, strict=True):
        result[:] = Slice(image, plan, index, moments).rows()
    return slices


@dataclass
class Slice:
    """A slice of an image as the network reads it, which is made as its rows are asked for."""

    image: Volume
    """The volume, in memory or in its file."""

    plan: DataPlan
    """Rules of normalisation and spacing."""

    index: int
    """Index along the plan's axis."""

    moments: Sequence[Moments]
    """Moments of the channels, by `measure_channels`."""

    _whole: np.ndarray | None = None
    """The whole slice, where it can't be made row by row: it is resampled, or its file gives whole planes only."""

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns at the plan's spacing."""
        return resampled_size(self.image, self.plan)

    def rows(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Some of its rows, (C, last - first, W) float32.

        Raises:
            DataError: its file turns out to be broken there, or not to hold colours.
        """
        part = slice(first, last)
        if self._whole is not None:
            return self._whole[:, part]
        if self.size == slice_size(self.image, self.plan) and isinstance(self.image.array, np.ndarray | LazyRows):
            return np.stack(self._normalised(part))
        whole = self._normalised(slice(None))
        self._whole = np.stack([part if part.shape == self.size else _resize(part, self.size) for part in whole])
        return self._whole[:, part]

    def _normalised(self, part: slice) -> list[np.ndarray]:
        stored = _cut(self.image, slice_axis(self.image, self.plan), self.index, part)
        channels = []
        for channel, how, known in zip(stored, self.plan.channels, self.moments, strict=True):
            if how.normalisation.startswith("rgb"):
                require_colour(channel, how.name, self.image.source)
            channels.append(normalise(channel, how, known))
        return channels


def mask_to_slices(mask: Volume, plan: DataPlan, part: slice = slice(None)) -> np.ndarray:
    """Resampled slices of classes: (S, H, W) uint8, each pixel the place of its label in the plan, or IGNORED."""
    axis, size = slice_axis(mask, plan), resampled_size(mask, plan)
    indices = range(mask.shape[axis])[part]
    slices = np.empty((len(indices), *size), np.uint8)
    for result, index in zip(slices, indices, strict=True):
        labels = _cut(mask, axis, index)
        classes = np.zeros_like(labels, np.uint8)
        for place, label in enumerate(plan.labels.classes.values()):
            classes[labels == label] = place
        if plan.labels.ignore is not None:
            classes[labels == plan.labels.ignore] = IGNORED
        result[:] = classes if size == classes.shape else _resize_labels(classes, size)
    return slices


def measure_channels(image: Volume, channels: Sequence[ChannelPlan]) -> list[Moments]:
    """What each channel is normalised by where the whole case decides, in double precision.

    One pass over the image, some rows at a time.
    """
    measured = RunningMoments(len(channels))
    if any(channel.normalisation in OF_THE_CASE for channel in channels):
        for block in _blocks(image):
            measured.add(block.reshape(len(channels), -1))
    return choose_moments(measured, channels)


def slice_axis(volume: Volume, plan: DataPlan) -> int:
    """The axis (of z, y, x) along which a volume is cut: the plan's, but a flat image is one slice."""
    return 0 if volume.is_flat else plan.slice_axis


def slice_size(volume: Volume, plan: DataPlan) -> tuple[int, int]:
    """Rows and columns of a slice as stored."""
    rows, columns = np.delete(volume.shape, slice_axis(volume, plan)).tolist()
    return rows, columns


def resampled_size(volume: Volume, plan: DataPlan) -> tuple[int, int]:
    """Rows and columns of a slice at the plan's spacing.

    Raises:
        DataError: it would be enlarged beyond `LARGEST_ENLARGED`, so that one of the spacings must be wrong.
    """
    rows, columns = slice_size(volume, plan)
    spacing = volume.spacing or (plan.unknown_spacing and (plan.unknown_spacing,) * 3)
    if plan.spacing is None or not spacing:
        return rows, columns
    own = np.delete(spacing, slice_axis(volume, plan)).tolist()
    factors = [distance / wanted for distance, wanted in zip(own, plan.spacing, strict=True)]
    if rows * factors[0] * columns * factors[1] > max(LARGEST_ENLARGED, rows * columns):
        raise DataError(
            f"{volume.source}: its pixels are {own[0]:g} x {own[1]:g} mm apart and the plan's are "
            f"{plan.spacing[0]:g} x {plan.spacing[1]:g}, for which a slice would have to be enlarged by "
            f"{factors[0]:g} x {factors[1]:g}; correct the spacing that is wrong, the image's or the plan's"
        )
    return max(1, round(rows * factors[0])), max(1, round(columns * factors[1]))


def _cut(volume: Volume, axis: int, index: int, rows: slice = slice(None)) -> np.ndarray:
    """Rows of a slice of an image, (C, H, W), or of a mask, (H, W), as stored."""
    return volume.array[in_slice(axis, index, rows)]


def in_slice(axis: int, index: int, rows: slice = slice(None)) -> Any:
    """What to index an array (..., Z, Y, X) by for rows of one slice along an axis."""
    others = [rows, slice(None)]
    return (..., *others[:axis], index, *others[axis:])


def _blocks(image: Volume) -> Iterator[np.ndarray]:
    """All of an image, (C, rows, X) at a time, in the same blocks wherever it lies: sums are the same to the bit."""
    depth, height, width = image.shape
    together = max(1, BLOCK // (len(image.array) * width))
    whole_planes = not isinstance(image.array, np.ndarray | LazyRows)  # reading rows would read their plane each time
    for z in range(depth):
        plane = _cut(image, 0, z) if whole_planes else None
        for first in range(0, height, together):
            rows = slice(first, first + together)
            yield _cut(image, 0, z, rows) if plane is None else plane[:, rows]


def _resize_labels(classes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from batchgenerators.augmentations.utils import resize_segmentation

    return resize_segmentation(classes, size, order=1)


def _resize(slice: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resample by cubic splines, to the bit as `skimage.transform.resize`, without what that imports."""
    from scipy import ndimage  # takes a third of a second to import

    resized = ndimage.zoom(slice, np.divide(size, slice.shape), order=3, mode="nearest", grid_mode=True)
    return np.clip(resized, slice.min(), slice.max())
