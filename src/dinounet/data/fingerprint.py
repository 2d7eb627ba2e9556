"""What is measured of a dataset before anything is decided: nnU-Net's "dataset fingerprint" (arXiv 1809.10486).

Also the mixtures of channels that a backbone of three channels sees, which come from the same look at the images. Of
intensities we take fewer samples than nnU-Net, and none at ignored pixels, which its own count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dinounet.data.choice import choose_evenly
from dinounet.data.geometry import LengthUnit, Volume
from dinounet.data.twins import ImageHash

SAMPLES_A_CASE = 10_000
"""Foreground pixels that a case gives to the intensity statistics, and pixels from anywhere to the components."""

AT_THE_DETECTOR: LengthUnit = "mm at the detector"

LEAST_VARIANCE = 0.01
"""Of a component, as a share of the first one's, below which it is not made as strong as the others: it is noise."""


@dataclass(frozen=True)
class Intensities:
    """Statistics of one channel over foreground pixels, in the image's own units."""

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True)
class Fingerprint:
    """What was measured, so that a person can check the decisions."""

    cases: int
    smallest_shape: tuple[int, int, int]
    """The least number of slices, of rows and of columns, each over all cases."""
    median_shape: tuple[int, int, int]
    """Slices, rows and columns."""
    largest_shape: tuple[int, int, int]
    """The greatest numbers."""
    median_spacing: tuple[float, float, float] | None
    """z, y, x in mm, over the cases that tell theirs; None if none does."""
    label_pixels: dict[str, int]
    """Pixels of each class, and of "ignore" if there is an ignore label, in all training cases."""
    cases_at_the_detector: int = 0
    """Cases, X-rays that nobody calibrated, whose mm are those at the detector."""
    cases_without_spacing: int = 0
    """Cases that tell no spacing."""

    @property
    def mixes_units(self) -> bool:
        """Whether some cases have lengths in other units than others."""
        return any(0 < some < self.cases for some in (self.cases_at_the_detector, self.cases_without_spacing))

    @property
    def unit(self) -> str:
        """Of the spacing."""
        if not self.cases_at_the_detector:
            return "mm"
        some = self.mixes_units
        return f"mm, at the detector in {self.cases_at_the_detector} of {self.cases} cases" if some else AT_THE_DETECTOR


@dataclass(frozen=True)
class Seen:
    """What a look at one case leaves."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    at_the_detector: bool
    """Whether the spacing is in mm there."""
    is_flat: bool
    constant: tuple[bool, ...]
    """Of each channel whether it holds one value alone."""
    pixels: dict[int, int]
    foreground: np.ndarray
    """(C, n) intensities at some of its foreground."""
    anywhere: np.ndarray
    """(C, n) intensities at some of its pixels, each channel in its own deviations from its own mean."""
    hash: ImageHash
    """Of its image."""


def look_at(image: Volume, mask: Volume, pixels: dict[int, int], ignore: int | None) -> Seen:
    """Take from one case what the fingerprint needs, plane by plane, since it may still lie in its files.

    Args:
        image: of the case.
        mask: on the same grid.
        pixels: how many hold each label.
        ignore: the label of pixels that count nowhere.
    """
    random = np.random.default_rng(1234)
    a_plane = math.ceil(SAMPLES_A_CASE / image.shape[0])
    low, high = np.full(len(image.array), np.inf), np.full(len(image.array), -np.inf)
    anywhere, foreground = [], None
    hashed = ImageHash(image.array.shape)
    for z in range(image.shape[0]):
        plane, labels = image.array[..., z, :, :], mask.array[..., z, :, :].ravel()
        hashed.add(z, plane)
        values = plane.reshape(len(plane), -1).T
        low, high = np.minimum(low, values.min(0)), np.maximum(high, values.max(0))
        anywhere.append(values[random.integers(len(values), size=a_plane)])
        inside = values[(labels > 0) & (labels != (0 if ignore is None else ignore))]
        foreground = choose_evenly(foreground, inside, SAMPLES_A_CASE, random)
    assert foreground is not None
    chosen = foreground[0]
    if 0 < len(chosen) < SAMPLES_A_CASE:  # each case weighs the same, as in nnU-Net
        chosen = random.choice(chosen, SAMPLES_A_CASE)
    spread = np.concatenate(anywhere).T.astype(np.float64)
    spread -= spread.mean(1, keepdims=True)
    spread /= np.maximum(spread.std(1, keepdims=True), 1e-8)
    constant = tuple((low == high).tolist())
    at_the_detector = image.geometry is not None and image.geometry.unit == AT_THE_DETECTOR
    return Seen(image.shape, image.spacing, at_the_detector, image.is_flat, constant, pixels, chosen.T, spread, hashed)


def principal_components(samples: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """Three mixtures of channels, (3, C), that keep most of what differs: their principal components.

    The backbone reads three channels (the published code drops all others). Each mixture has unit variance, as a
    channel has, but noise isn't raised to it; of two channels the third mixture repeats the first, as published. Signs
    are such that what is bright in most channels is bright in the mixture.

    Args:
        samples: (C, n), of mean 0 in every channel.
    """
    variances, components = np.linalg.eigh(np.cov(samples))
    order = np.argsort(variances)[::-1][:3]
    least = max(LEAST_VARIANCE * variances.max(), np.finfo(np.float32).eps)  # constant images have none at all
    kept = components[:, order].T / np.sqrt(np.maximum(variances[order], least))[:, None]
    kept *= np.where(kept.sum(1, keepdims=True) < 0, -1, 1)
    return tuple(tuple(kept[row % len(kept)].tolist()) for row in range(3))


def measure_intensities(values: np.ndarray) -> Intensities:
    """Statistics of one channel's values, (n,)."""
    low, high = np.percentile(values, (0.5, 99.5))
    return Intensities(float(values.mean()), float(values.std()), float(low), float(high))
