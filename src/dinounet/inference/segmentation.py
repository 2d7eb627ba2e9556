"""What is found in one image, filled in as the network's answers come."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dinounet.data.arrays import Array, entropy, to_classes, to_numpy, to_probabilities
from dinounet.data.geometry import Volume
from dinounet.data.preprocessing import in_slice, slice_axis, slice_size
from dinounet.inference.postprocessing import apply
from dinounet.schema.plan import DataPlan
from dinounet.schema.prediction import Postprocessing

Allocate = Callable[[tuple[int, ...], type], np.ndarray]


@dataclass(frozen=True)
class Wanted:
    """What is wanted of an image beside its labels."""

    probabilities: bool = False
    """Of every class or region."""

    uncertainty: bool = False
    """Entropy, and where several networks or mirrored copies answer, how much they disagree."""

    allocate: Allocate = np.zeros
    """Makes the arrays for them, which for large volumes may lie on the disk."""


JUST_LABELS = Wanted()


@dataclass(frozen=True)
class Segmentation:
    """What was found in one image, on its own grid."""

    volume: Volume
    """The image."""

    axis: int
    """Along which it was cut into slices."""

    labels: np.ndarray
    """(Z, Y, X), the plan's labels, after postprocessing."""

    probabilities: np.ndarray | None = None
    """(K, Z, Y, X) float16 of the classes with background, or of the regions; before postprocessing."""

    entropy: np.ndarray | None = None
    """(Z, Y, X) float16, of the mean of all views' probabilities: from 0, sure, to 1, all alike; of regions their
    mean."""

    disagreement: np.ndarray | None = None
    """(Z, Y, X) float16, the part of the entropy that comes from the views' disagreeing; None with a single view."""


class Draft:
    """A segmentation that is being made.

    Args:
        volume: the image.
        plan: of the data.
        wanted: beside labels.
    """

    def __init__(self, volume: Volume, plan: DataPlan, wanted: Wanted) -> None:
        self.volume, self.plan, self.wanted = volume, plan, wanted
        self.given_up = False
        """Whether something was wrong with its image after it was begun."""
        self._axis = slice_axis(volume, plan)
        self._pixels_left = math.prod(volume.shape)
        self._width = slice_size(volume, plan)[1]
        numbers = list(plan.labels.values())
        self._numbers = np.array(numbers, np.min_scalar_type(max(numbers)))
        self._labels = np.zeros(volume.shape, self._numbers.dtype)
        self._probabilities: np.ndarray | None = None
        self._entropy: np.ndarray | None = None
        self._disagreement: np.ndarray | None = None
        outputs = len(plan.meaning.outputs)
        if wanted.probabilities:
            self._probabilities = wanted.allocate((outputs, *volume.shape), np.float16)
        if wanted.uncertainty:
            self._entropy = wanted.allocate(volume.shape, np.float16)

    @property
    def is_complete(self) -> bool:
        """Whether every pixel has an answer."""
        return self._pixels_left == 0

    def take(self, index: int, first: int, logits: Array, networks: int) -> None:
        """Take rows of a slice, at the image's own size.

        The mask comes of the networks' logits alone, so that what is wanted beside it never changes it: of a single
        network's logits, or of the mean of several networks' probabilities.

        Args:
            index: of the slice.
            first: row.
            logits: (V, K, rows, W); those of the networks, then those of each of their mirrored copies, if they were
                kept to tell how unsure the networks are.
            networks: how many there are.
        """
        where = in_slice(self._axis, index, slice(first, first + logits.shape[-2]))
        answers, views = logits[:networks], logits[networks:]
        each = None
        if networks > 1 or self.wanted.probabilities or self.wanted.uncertainty:
            each = to_probabilities(answers, self.plan)
        if networks == 1:
            classes = to_classes(answers, self.plan)
        else:
            assert each is not None
            classes = to_classes(each.mean(0)[None], self.plan, threshold=0.5)
        if self._probabilities is not None and each is not None:
            self._probabilities[where] = to_numpy(each.mean(0), np.float16)
        if self._entropy is not None and each is not None:
            self._take_uncertainty(where, to_probabilities(views, self.plan) if len(views) else each)
        self._labels[where] = self._numbers[to_numpy(classes[0], np.int64)]
        self._pixels_left -= logits.shape[-2] * self._width

    def _take_uncertainty(self, where: tuple[int | slice, ...], each: Array) -> None:
        """Entropy of the mean of the views' probabilities, and which part of it comes from their disagreeing."""
        assert self._entropy is not None
        total = _entropy(each.mean(0), self.plan)
        self._entropy[where] = to_numpy(total, np.float16)
        if len(each) > 1:  # mutual information (arXiv 1703.02910, section 4)
            if self._disagreement is None:
                self._disagreement = self.wanted.allocate(self.volume.shape, np.float16)
            expected = sum(_entropy(view, self.plan) for view in each) / len(each)
            self._disagreement[where] = to_numpy((total - expected).clip(0), np.float16)

    def finish(self, postprocessing: Postprocessing | None) -> Segmentation:
        """What was found."""
        labels = self._labels
        if postprocessing is not None:
            labels = apply(postprocessing, labels, self.volume.box, self.plan.meaning)
        return Segmentation(self.volume, self._axis, labels, self._probabilities, self._entropy, self._disagreement)


def _entropy(probabilities: Array, plan: DataPlan) -> Array:
    """(rows, W) of (K, rows, W), from 0 to 1."""
    if plan.regions is None:
        return entropy(probabilities).sum(0) / math.log(len(probabilities))
    return (entropy(probabilities) + entropy(1 - probabilities)).mean(0) / math.log(2)
