"""What the data asks for: normalisation, spacing, slices and patch, and the statistics that each decision came from.

The fingerprint and its uses follow nnU-Net (arXiv 1809.10486, "dataset fingerprint").
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dinounet.data.dataset import Dataset
from dinounet.data.images import Volume, coarsest_axis, read_image, require_same_grid
from dinounet.data.labels import Labels, Region
from dinounet.data.masks import read_truth
from dinounet.errors import ConfigError, DataError
from dinounet.files import join_some

Normalisation = Literal["zscore", "ct", "rgb_to_0_1", "none"]

SAMPLES_A_CASE = 10_000
"""Foreground pixels that a case gives to the intensity statistics."""

MOST_CLASSES, MOST_LABELS = 64, 12
"""Masks that nobody named are taken for smoothed ones if they hold more different values than these: without gaps
between them, and with gaps."""

LARGEST_PATCH = 512
PATCH_STEP = 32
"""Sides of a patch are multiples of it, which the network needs not pad."""


@dataclass(frozen=True)
class Intensities:
    """Statistics of one channel over foreground pixels, in the image's own units."""

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True)
class ChannelPlan:
    """What happens to one channel."""

    name: str
    """As the dataset names it."""

    normalisation: Normalisation
    """zscore: each case by its own mean and deviation; ct: clip to percentiles, then the dataset's mean and deviation;
    rgb_to_0_1: divide by 255; none."""

    intensities: Intensities
    """Of the training cases' foreground; ct reads them."""


@dataclass(frozen=True)
class Fingerprint:
    """What was measured, so that a person can check the decisions."""

    cases: int
    median_shape: tuple[int, int, int]
    """Slices, rows and columns."""
    median_spacing: tuple[float, float, float] | None
    """z, y, x in mm; None for images without."""
    label_pixels: dict[str, int]
    """Pixels of each class, and of "ignore" if there is an ignore label, in all training cases."""


@dataclass(frozen=True)
class DataPlan:
    """Every decision between a file and a patch."""

    dataset: str
    """Name of the dataset it was made for."""

    channels: tuple[ChannelPlan, ...]
    """The image's channels, in order."""

    labels: dict[str, int]
    """Names of the classes and the numbers that stand for them in masks, background (0) first."""

    file_ending: str | None
    """Ending of all images; None where each file has its own and holds all channels."""

    slice_axis: int
    """Axis (of z, y, x) along which a volume is cut into slices: the coarsest."""

    spacing: tuple[float, float] | None
    """Distance of neighbouring pixels within a slice in mm, rows then columns; None: pixels are taken as they are."""

    patch: tuple[int, int]
    """Rows and columns of a training patch and of a tile in prediction."""

    fingerprint: Fingerprint
    """The statistics behind the decisions."""

    unknown_spacing: float | None = None
    """Taken for the spacing of images that don't tell theirs; None: their pixels are taken as they are."""

    regions: tuple[Region, ...] | None = None
    """What the network predicts instead of classes, an output each; they may overlap. None: classes."""

    ignore: int | None = None
    """Number that stands in masks for pixels that nobody has judged, which nothing is learned from; None: all are."""

    test_cases: tuple[str, ...] = ()
    """Names of cases that are held out: in no fold, and not looked at for this plan."""

    @property
    def meaning(self) -> Labels:
        """What the numbers in masks stand for."""
        return Labels(self.labels, self.regions, self.ignore)

    def __post_init__(self) -> None:
        _ = self.meaning  # which checks itself
        if self.slice_axis not in (0, 1, 2):
            raise ConfigError(f"data.slice_axis is {self.slice_axis}; it must be 0, 1 or 2")
        if min(self.patch) < 1:
            raise ConfigError(f"data.patch is {list(self.patch)}; both sides must be at least 1")
        if self.spacing is not None and min(self.spacing) <= 0:
            raise ConfigError(f"data.spacing is {list(self.spacing)}; both must be more than 0")


def plan_data(
    dataset: Dataset, patch: tuple[int, int] | None = None, on_case: Callable[[], None] = lambda: None
) -> DataPlan:
    """Look at every training case once, and decide.

    Args:
        dataset: whose cases to read.
        patch: rows and columns; by default what covers the median slice, at most 512.
        on_case: called after each case.

    Raises:
        DataError: what is wrong with the images and masks, all together.
    """
    shapes, spacings, flat, samples, problems = [], [], [], [], []
    channels = dataset.channels
    given = dataset.labels and Labels(dataset.labels, None, dataset.ignore).given
    pixels: Counter[int] = Counter()
    for case in dataset.cases:
        try:
            image, mask = read_image(case.images), read_truth(case)
            channels = channels or _channel_names(len(image.array))
            found = check_case(image, mask, channels, given)
        except DataError as error:
            problems.append(str(error))
            continue
        finally:
            on_case()
        shapes.append(image.shape)
        spacings.append(image.spacing)
        flat.append(image.is_flat)
        pixels.update(found)
        samples.append(_sample_foreground(image.array, mask.array, dataset.ignore))
    if problems:
        raise DataError(join_some(problems))
    assert channels is not None
    labels = dataset.labels or infer_labels(pixels, dataset.name)
    if not any(pixels[label] for label in labels.values() if label):
        raise DataError(f"the masks of {dataset.name} hold nothing but background; there is nothing to learn")

    known = [spacing for spacing in spacings if spacing is not None]
    median_spacing = tuple(np.median(known, axis=0).tolist()) if known else None
    depth, height, width = (int(side) for side in np.median(shapes, axis=0))
    median_shape = depth, height, width
    slice_axis = 0 if all(flat) else coarsest_axis(median_shape, median_spacing)
    in_plane = [axis for axis in range(3) if axis != slice_axis]
    if patch is None:
        sides = (min(LARGEST_PATCH, math.ceil(median_shape[axis] / PATCH_STEP) * PATCH_STEP) for axis in in_plane)
        patch = (next(sides), next(sides))
    return DataPlan(
        dataset=dataset.name,
        channels=tuple(
            ChannelPlan(name, _normalisation_of(name), _intensities(np.concatenate([s[channel] for s in samples])))
            for channel, name in enumerate(channels)
        ),
        labels=labels,
        file_ending=dataset.file_ending,
        slice_axis=slice_axis,
        spacing=(median_spacing[in_plane[0]], median_spacing[in_plane[1]]) if median_spacing else None,
        patch=patch,
        fingerprint=Fingerprint(
            len(shapes),
            median_shape,
            median_spacing,
            {name: pixels[label] for name, label in Labels(labels, None, dataset.ignore).given.items()},
        ),
        regions=dataset.regions,
        ignore=dataset.ignore,
        test_cases=dataset.test_cases,
    )


def infer_labels(pixels: Mapping[int, int], dataset: str) -> dict[str, int]:
    """Name the classes of masks that nobody named: 0 and one other number, or 0, 1, 2 ... without gaps.

    Raises:
        DataError: the numbers don't tell; the message says how to name them.
    """
    found = sorted(set(pixels) | {0})
    if len(found) == 2:
        return {"background": 0, "foreground": found[1]}
    if found == list(range(len(found))) and len(found) <= MOST_CLASSES:
        return {"background": 0} | {f"class {label}": label for label in found[1:]}
    if len(found) > MOST_LABELS:
        raise DataError(
            f"the masks of {dataset} hold {len(found)} different values ({_listed(found)}), as smoothed masks do; "
            "export them without anti-aliasing, or name every value with --labels"
        )
    named = ",".join(["background=0", *(f"class{index}={label}" for index, label in enumerate(found[1:], start=1))])
    raise DataError(f"the masks of {dataset} hold {_listed(found)}; say what they stand for, such as --labels {named}")


def check_case(
    image: Volume, mask: Volume, channels: Sequence[str], labels: Mapping[str, int] | None
) -> dict[int, int]:
    """How many pixels of each label, with the ignore label if there is one, a case holds.

    Raises:
        DataError: image and mask don't lie on one grid, or have other channels or labels.
    """
    check_channels(image, channels)
    require_same_grid(mask, image)
    pixels: Counter[int] = Counter()
    for z in range(mask.shape[0]):
        values, counts = np.unique(mask.array[..., z, :, :], return_counts=True)
        pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    found = dict(sorted(pixels.items()))
    unknown = [value for value in found if labels is not None and value not in labels.values()]
    if labels is not None and unknown:
        named = ",".join(f"{name}={label}" for name, label in labels.items())
        raise DataError(
            f"{mask.source} holds {_listed(unknown)}, but the labels are {named}; name them or correct the mask"
        )
    return found


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")


def _channel_names(count: int) -> tuple[str, ...]:
    """Of images that nobody described."""
    return ("R", "G", "B") if count == 3 else tuple(f"channel {index}" for index in range(count))


def check_channels(image: Volume, channels: Sequence[str]) -> None:
    """Raise a DataError unless the image has these channels."""
    if len(image.array) != len(channels):
        raise DataError(
            f"{image.source} has {len(image.array)} channels, but {len(channels)} are wanted ({', '.join(channels)})"
        )


def _normalisation_of(channel: str) -> Normalisation:
    """nnU-Net's rule: the channel's name decides."""
    known: dict[str, Normalisation] = {"ct": "ct", "nonorm": "none", "rgb_to_0_1": "rgb_to_0_1"}
    return known.get(channel.casefold(), "zscore")


def _sample_foreground(image: np.ndarray, mask: np.ndarray, ignore: int | None) -> np.ndarray:
    """(C, n) intensities at foreground pixels, drawn as nnU-Net draws them; n is 0 where there is no foreground."""
    places = np.flatnonzero((mask > 0) & (mask != (0 if ignore is None else ignore)))
    if not len(places):
        return image[:, :0].reshape(len(image), -1)
    chosen = np.random.RandomState(1234).choice(places, SAMPLES_A_CASE, replace=True)
    return image.reshape(len(image), -1)[:, chosen]


def _intensities(values: np.ndarray) -> Intensities:
    low, high = np.percentile(values, (0.5, 99.5))
    return Intensities(float(values.mean()), float(values.std()), float(low), float(high))
