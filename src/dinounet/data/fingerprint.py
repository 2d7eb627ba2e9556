"""What is measured of a dataset before anything is decided: nnU-Net's "dataset fingerprint" (arXiv 1809.10486).

Also the mixtures of channels that a backbone of three channels sees, which come from the same look at the images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dinounet.data.images import Volume

SAMPLES_A_CASE = 10_000
"""Foreground pixels that a case gives to the intensity statistics, and pixels from anywhere to the components."""

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
    """z, y, x in mm; None for images without."""
    label_pixels: dict[str, int]
    """Pixels of each class, and of "ignore" if there is an ignore label, in all training cases."""


@dataclass(frozen=True)
class Seen:
    """What a look at one case leaves."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    is_flat: bool
    constant: tuple[bool, ...]
    """Of each channel whether it holds one value alone."""
    pixels: dict[int, int]
    foreground: np.ndarray
    """(C, n) intensities at some of its foreground."""
    anywhere: np.ndarray
    """(C, n) intensities at some of its pixels, each channel in its own deviations from its own mean."""


def look_at(image: Volume, mask: Volume, pixels: dict[int, int], ignore: int | None) -> Seen:
    """Take from one case what the fingerprint needs; `pixels` counts each label's."""
    flat = image.array.reshape(len(image.array), -1)
    chosen = np.random.RandomState(1234).randint(flat.shape[1], size=SAMPLES_A_CASE)
    anywhere = flat[:, chosen].astype(np.float64)
    anywhere -= anywhere.mean(1, keepdims=True)
    anywhere /= np.maximum(anywhere.std(1, keepdims=True), 1e-8)
    foreground = _sample_foreground(image.array, mask.array, ignore)
    constant = tuple((flat.min(1) == flat.max(1)).tolist())
    return Seen(image.shape, image.spacing, image.is_flat, constant, pixels, foreground, anywhere)


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


def _sample_foreground(image: np.ndarray, mask: np.ndarray, ignore: int | None) -> np.ndarray:
    """(C, n) intensities at foreground pixels, drawn as nnU-Net draws them; n is 0 where there is no foreground."""
    places = np.flatnonzero((mask > 0) & (mask != (0 if ignore is None else ignore)))
    if not len(places):
        return image[:, :0].reshape(len(image), -1)
    chosen = np.random.RandomState(1234).choice(places, SAMPLES_A_CASE, replace=True)
    return image.reshape(len(image), -1)[:, chosen]


def measure_intensities(values: np.ndarray) -> Intensities:
    """Statistics of one channel's values, (n,)."""
    low, high = np.percentile(values, (0.5, 99.5))
    return Intensities(float(values.mean()), float(values.std()), float(low), float(high))
