"""What happens to a channel's intensities: nnU-Net's rule by the channel's name (arXiv 1809.10486), and ImageNet's.

A plan says it by a `ChannelPlan` a channel. Some rules need numbers of the whole case, its `Moments`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dinounet.data.fingerprint import Intensities, RunningMoments, Samples, measure_intensities

Normalisation = Literal["zscore", "ct", "rgb", "rescale_to_0_1", "rgb_to_0_1", "none"]

IMAGENET = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))
"""Mean and deviation of red, green and blue in the images that backbones were trained on, of values from 0 to 1."""

OF_THE_CASE = frozenset({"zscore", "rescale_to_0_1"})
"""Rules that need a case's moments."""

Moments = tuple[float, float]
"""What is subtracted from a channel, and what it is divided by then, where the whole case decides that."""


@dataclass(frozen=True)
class ChannelPlan:
    """What happens to one channel."""

    name: str
    """As the dataset names it."""

    normalisation: Normalisation
    """zscore: each case by its own mean and deviation; ct: clip to percentiles, then the dataset's mean and deviation;
    rgb: divide by 255, then by ImageNet's statistics; rescale_to_0_1: each case's darkest pixel to 0 and brightest to
    1; rgb_to_0_1: divide by 255; none."""

    intensities: Intensities
    """Of the training cases' foreground; ct reads them."""

    imagenet: tuple[float, float] | None = None
    """ImageNet's mean and deviation of this colour, of values from 0 to 1; rgb reads them."""


def normalisation_of(channel: str) -> Normalisation:
    """nnU-Net's rule, which `rgb` is added to: the channel's name decides."""
    known: dict[str, Normalisation] = {
        "ct": "ct",
        "nonorm": "none",
        "rescale_to_0_1": "rescale_to_0_1",
        "rgb": "rgb",
        "rgb_to_0_1": "rgb_to_0_1",
    }
    return known.get(channel.casefold(), "zscore")


def plan_channels(names: Sequence[str], foreground: np.ndarray) -> tuple[ChannelPlan, ...]:
    """What happens to each channel; of three colours each gets ImageNet's statistics of its own, others their mean.

    Args:
        names: of the channels.
        foreground: (n, C) intensities.
    """
    rules = [normalisation_of(name) for name in names]
    colours = IMAGENET if rules == ["rgb"] * 3 else [tuple(np.mean(IMAGENET, axis=0).tolist())] * len(names)
    return tuple(
        ChannelPlan(name, rule, measure_intensities(values), colour if rule == "rgb" else None)
        for name, rule, values, colour in zip(names, rules, foreground.T, colours, strict=True)
    )


def choose_moments(measured: RunningMoments, channels: Sequence[ChannelPlan]) -> list[Moments]:
    """Of what was measured of a case, what each channel's rule needs."""
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
