"""What is measured of a dataset before anything is decided: nnU-Net's "dataset fingerprint" (arXiv 1809.10486).

Also the mixtures of channels that a backbone of three channels sees, which come from the same look at the images. Of
intensities we take fewer samples than nnU-Net, and none at ignored pixels, which its own count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dinounet.data.choice import Reservoir, choose_evenly
from dinounet.data.geometry import BodyAxis, LengthUnit, Volume, body_axes
from dinounet.data.twins import ImageHash

SAMPLES_A_CASE = 10_000
"""Foreground pixels that a case gives to the intensity statistics, and pixels from anywhere to the components."""

SAMPLES = 1_000_000
"""Pixels that all cases together give, at most; from a hundred cases on, an even choice among what each case gives."""

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
    axes: tuple[BodyAxis, BodyAxis, BodyAxis] | None = None
    """What z, y and x of most volumes run along in the patient; None where no file tells, and of flat images."""

    @property
    def mixes_units(self) -> bool:
        """Whether some cases have lengths in other units than others."""
        return any(0 < some < self.cases for some in (self.cases_at_the_detector, self.cases_without_spacing))

    @property
    def unit(self) -> str:
        """Unit of the spacing."""
        if not self.cases_at_the_detector:
            return "mm"
        some = self.mixes_units
        return f"mm, at the detector in {self.cases_at_the_detector} of {self.cases} cases" if some else AT_THE_DETECTOR


class RunningMoments:
    """Mean, deviation and range of each channel of a case, of which more and more is seen, in double precision.

    Means and deviations of parts are joined as by Chan, Golub and LeVeque (1979).

    Args:
        channels: number of channels.
    """

    def __init__(self, channels: int) -> None:
        self.pixels = 0
        self.mean, self._squares = np.zeros((2, channels))
        self.low, self.high = np.full(channels, np.inf), np.full(channels, -np.inf)

    def add(self, pixels: np.ndarray) -> None:
        """Add pixels of the case, (C, n)."""
        pixels = pixels.astype(np.float64)
        self.low, self.high = np.minimum(self.low, pixels.min(1)), np.maximum(self.high, pixels.max(1))
        own, more = pixels.mean(1), pixels.shape[1]
        shift = own - self.mean
        self._squares += pixels.var(1) * more + shift**2 * more * self.pixels / (self.pixels + more)
        self.pixels += more
        self.mean = self.mean + shift * more / self.pixels

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviation of each channel, (C,)."""
        return np.sqrt(self._squares / max(self.pixels, 1))


class Samples:
    """Intensities at some pixels of all cases, of each case as many, in bounded memory."""

    def __init__(self) -> None:
        self.foreground = Reservoir(SAMPLES)
        """(n, C) at foreground; a case that has none gives none."""
        self.anywhere = Reservoir(SAMPLES)
        """(n, C) anywhere, and (n,) the number of the case; of images that are neither of one channel nor of three."""
        self.moments: list[RunningMoments] = []
        """Moments of each case that gave pixels from anywhere."""


@dataclass(frozen=True)
class Seen:
    """Statistics of one case."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    at_the_detector: bool
    """Whether the spacing is in mm at the detector."""
    is_flat: bool
    constant: tuple[bool, ...]
    """Of each channel whether it holds one value alone."""
    pixels: dict[int, int]
    hash: ImageHash
    """Hash of the case's image."""
    axes: tuple[BodyAxis, BodyAxis, BodyAxis] | None
    """What z, y and x run along in the patient; None where the file doesn't tell."""


def look_at(image: Volume, mask: Volume, pixels: dict[int, int], ignore: int | None, samples: Samples) -> Seen:
    """Take from one case what the fingerprint needs, plane by plane, since it may still lie in its files.

    Args:
        image: of the case.
        mask: on the same grid.
        pixels: how many hold each label.
        ignore: the label of pixels that count nowhere.
        samples: of the cases before; this one's are added.
    """
    random = np.random.default_rng(1234)
    a_plane = math.ceil(SAMPLES_A_CASE / image.shape[0])
    low, high = np.full(len(image.array), np.inf), np.full(len(image.array), -np.inf)
    anywhere, foreground, moments = [], None, RunningMoments(len(image.array))
    mixed = len(image.array) not in (1, 3)
    hashed = ImageHash(image.array.shape)
    for z in range(image.shape[0]):
        plane, labels = image.array[..., z, :, :], mask.array[..., z, :, :].ravel()
        hashed.add(z, plane)
        values = plane.reshape(len(plane), -1).T
        low, high = np.minimum(low, values.min(0)), np.maximum(high, values.max(0))
        somewhere = random.integers(len(values), size=a_plane)
        if mixed:
            anywhere.append(values[somewhere])
            moments.add(values.T)
        inside = values[(labels > 0) & (labels != (0 if ignore is None else ignore))]
        foreground = choose_evenly(foreground, inside, SAMPLES_A_CASE, random)
    assert foreground is not None
    chosen = foreground[0]
    if 0 < len(chosen) < SAMPLES_A_CASE:  # each case weighs the same, as in nnU-Net
        chosen = random.choice(chosen, SAMPLES_A_CASE)
    samples.foreground.add(chosen)
    if mixed:
        somewhere = np.concatenate(anywhere)
        samples.anywhere.add(somewhere, np.full(len(somewhere), len(samples.moments), np.int32))
        samples.moments.append(moments)
    constant = tuple((low == high).tolist())
    at_the_detector = image.geometry is not None and image.geometry.unit == AT_THE_DETECTOR
    axes = body_axes(image)
    return Seen(image.shape, image.spacing, at_the_detector, image.is_flat, constant, pixels, hashed, axes)


def principal_components(samples: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """Three mixtures of channels, (3, C), that keep most of what differs: their principal components.

    The backbone reads three channels (the published code drops all others). Each mixture has unit variance, as a
    channel has, but noise isn't raised to it; of two channels the third mixture repeats the first, as published. Signs
    are such that what is bright in most channels is bright in the mixture.

    Channels that their normalisation doesn't centre, such as those of noNorm, are not centred here either: a mixture
    then has a mean other than 0, as a single channel of that normalisation has.

    Args:
        samples: (C, n), normalised as the network gets them.
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
