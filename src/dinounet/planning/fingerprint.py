"""Statistics of a dataset before anything is decided: nnU-Net's "dataset fingerprint" (arXiv 1809.10486)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dinounet.data.arrays import SAMPLES_A_CASE, CaseSamples, Reservoir, RunningMoments
from dinounet.data.checks import Hasher, ImageHash
from dinounet.data.geometry import Volume, body_axes
from dinounet.schema.plan import AT_THE_DETECTOR, BodyAxis, Intensities

LEAST_VARIANCE = 0.01
"""Of a component, as a share of the first one's, below which it is not made as strong as the others: it is noise."""


@dataclass(frozen=True)
class CaseStatistics:
    """Statistics of one case."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    at_the_detector: bool
    """Whether the spacing is in mm at the detector."""
    is_flat: bool
    modality: str | None
    """How the image was taken, as DICOM names it, where the file tells."""
    constant: tuple[bool, ...]
    """Of each channel whether it holds one value alone."""
    pixels: dict[int, int]
    """Number of pixels that hold each label, or what stands for one in the mask."""
    hash: ImageHash
    """Hash of the case's image."""
    axes: tuple[BodyAxis, BodyAxis, BodyAxis] | None
    """What z, y and x run along in the patient; None where the file doesn't tell."""


def collect_statistics(
    image: Volume, mask: Volume, pixels: dict[int, int], ignore: int | None
) -> tuple[CaseStatistics, CaseSamples]:
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
    anywhere, foreground, moments = [], Reservoir(SAMPLES_A_CASE, random), RunningMoments(len(image.array))
    mixed = len(image.array) not in (1, 3)
    hasher = Hasher(image.array.shape)
    for z in range(image.shape[0]):
        plane, labels = image.array[..., z, :, :], mask.array[..., z, :, :].ravel()
        hasher.add(z, plane)
        values = plane.reshape(len(plane), -1).T
        low, high = np.minimum(low, values.min(0)), np.maximum(high, values.max(0))
        somewhere = random.integers(len(values), size=a_plane)
        if mixed:
            anywhere.append(values[somewhere])
            moments.add(values.T)
        foreground.add(values[(labels > 0) & (labels != (0 if ignore is None else ignore))])
    (chosen,) = foreground.chosen()
    if 0 < len(chosen) < SAMPLES_A_CASE:  # each case weighs the same, as in nnU-Net
        chosen = random.choice(chosen, SAMPLES_A_CASE)
    statistics = CaseStatistics(
        shape=image.shape,
        spacing=image.spacing,
        at_the_detector=image.geometry is not None and image.geometry.unit == AT_THE_DETECTOR,
        is_flat=image.is_flat,
        modality=image.modality,
        constant=tuple((low == high).tolist()),
        pixels=pixels,
        hash=hasher.finish(),
        axes=body_axes(image),
    )
    return statistics, CaseSamples(chosen, np.concatenate(anywhere) if mixed else None, moments if mixed else None)


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
