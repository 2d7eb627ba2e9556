"""From summed outputs to masks: classes or regions, the original grid, and postprocessing by components."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dinounet.data.arrays import Array, entropy, to_classes, to_numpy, to_probabilities
from dinounet.data.geometry import Volume
from dinounet.data.masks import where
from dinounet.data.preprocessing import in_slice, slice_axis, slice_size
from dinounet.schema.labels import Labels
from dinounet.schema.plan import DataPlan
from dinounet.schema.prediction import Postprocessing, Steps, check_names

STRIP = 2**22
"""Pixels, about, that are counted at once."""


def agree(posts: Sequence[Postprocessing | None]) -> Postprocessing | None:
    """What several runs, such as the folds of a dataset, all chose for themselves; None unless each has chosen.

    A size is the smallest of theirs, and none where their units differ.
    """
    chosen = [post for post in posts if post is not None]
    if len(chosen) < len(posts) or not chosen:
        return None
    first = chosen[0]
    same_unit = all(post.unit == first.unit for post in chosen)
    classes = {}
    for name in first.classes:
        steps = [post.classes.get(name, Steps()) for post in chosen]
        sizes = [one.smallest for one in steps if one.smallest is not None]
        smallest = min(sizes) if same_unit and len(sizes) == len(steps) else None
        classes[name] = Steps(all(one.keep_largest for one in steps), smallest, all(one.fill_holes for one in steps))
    cases = tuple(dict.fromkeys(case for post in chosen for case in post.cases))
    return Postprocessing(classes, first.unit, first.spacing, cases)


def describe(post: Postprocessing) -> str:
    """The steps in words, such as "lesion: largest component kept, holes filled"; empty if there are none."""
    unit = "mm³" if post.unit == "mm3" else "pixels"
    told = []
    for name, steps in post.classes.items():
        words = ["largest component kept"] * steps.keep_largest
        words += [f"components below {steps.smallest:.4g} {unit} removed"] if steps.smallest is not None else []
        words += ["holes filled"] * steps.fill_holes
        told += [f"{name}: {', '.join(words)}"] if words else []
    return "; ".join(told)


def apply(
    post: Postprocessing, labels: np.ndarray, spacing: tuple[float, float, float] | None, known: Labels
) -> np.ndarray:
    """Do to a predicted mask what is to be done.

    First components are removed of all classes, then holes are filled, of the last class first, since later regions
    lie over earlier ones. Axes of length 1 are dropped: in three dimensions no flat mask encloses anything. Each class
    is worked on within its bounding box; that takes a byte or two a pixel of the mask, and four a pixel of the box.

    Args:
        post: the steps.
        labels: (Z, Y, X), integers; changed in place, since it may be large.
        spacing: distance of neighbours along z, y and x in mm; None where it isn't known.
        known: what the numbers stand for.

    Returns:
        `labels`.

    Raises:
        ConfigError: there are steps for names that masks don't hold.
    """
    check_names(post, known)
    steps = {name: post.classes[name] for name in known.foreground if name in post.classes}
    space = np.atleast_1d(np.squeeze(labels))  # a view
    pixel = math.prod(spacing or post.spacing or ()) if post.unit == "mm3" else 1.0
    written_as = {region.name: region.written_as for region in known.regions or ()}
    for name, todo in steps.items():
        if todo.keep_largest or todo.smallest is not None:
            _remove_components(space, known.foreground[name], todo.keep_largest, (todo.smallest or 0.0) / pixel)
    for name, todo in reversed(steps.items()):
        if todo.fill_holes:
            _fill_holes(space, known.foreground[name], written_as.get(name, known.foreground[name][0]))
    return labels


def component_sizes(labels: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
    """Pixels of each component that these numbers make up in a mask (Z, Y, X), in no order."""
    mask = _cut(np.atleast_1d(np.squeeze(labels)), numbers)[1]
    return _components(mask)[1][1:]


def _remove_components(space: np.ndarray, numbers: Sequence[int], keep_largest: bool, smallest: float) -> None:
    """Make background of all components but the largest (if asked), and of those below a size in pixels."""
    box, mask = _cut(space, numbers)
    components, sizes = _components(mask)
    remove = sizes < smallest
    if keep_largest:
        remove |= sizes < sizes[1:].max(initial=0)
    remove[0] = False  # what is in no component
    for part, found in zip(_strips(space[box]), _strips(components), strict=True):
        part[remove[found]] = 0


def _fill_holes(space: np.ndarray, numbers: Sequence[int], written_as: int) -> None:
    """Give background that these numbers enclose this number; what is diagonal to the outside is enclosed."""
    from scipy import ndimage  # takes a third of a second to import

    box, mask = _cut(space, numbers)
    inside = space[box]
    inside[ndimage.binary_fill_holes(mask) & (inside == 0)] = written_as


def _cut(space: np.ndarray, numbers: Sequence[int]) -> tuple[tuple[slice, ...], np.ndarray]:
    """Where these numbers are: their bounding box (of no pixel if they are nowhere), and the mask in it."""
    from scipy import ndimage  # takes a third of a second to import

    mask = where(space, numbers)
    found = ndimage.find_objects(mask.view(np.uint8))
    box = found[0] if found else (slice(0),) * space.ndim
    return box, mask[box]


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Components by number from 1 on, in the mask's shape, and how many pixels have each number, 0 included."""
    from scipy import ndimage  # takes a third of a second to import

    components, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
    sizes = np.zeros(count + 1, np.int64)
    for part in _strips(components):
        sizes += np.bincount(part.ravel(), minlength=count + 1)
    return components, sizes


def _strips(array: np.ndarray) -> list[np.ndarray]:
    """Views of it along its first axis: bincount makes of each pixel eight bytes, which is too much for all at once."""
    return np.array_split(array, 1 + array.size // STRIP)


Allocate = Callable[[tuple[int, ...], type], np.ndarray]


@dataclass(frozen=True)
class OutputOptions:
    """What is wanted of an image beside its labels."""

    probabilities: bool = False
    """Whether to keep the probabilities of every class or region."""

    uncertainty: bool = False
    """Entropy, and where several networks or mirrored copies answer, how much they disagree."""

    allocate: Allocate = np.zeros
    """Makes the arrays for them, which for large volumes may lie on the disk."""


LABELS_ONLY = OutputOptions()


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


class SegmentationBuilder:
    """A segmentation that is being made.

    Args:
        volume: the image.
        plan: of the data.
        wanted: beside labels.
    """

    def __init__(self, volume: Volume, plan: DataPlan, wanted: OutputOptions) -> None:
        self.volume, self.plan, self.wanted = volume, plan, wanted
        self.given_up = False
        """Whether something was wrong with its image after it was begun."""
        self._axis = slice_axis(volume, plan)
        self._pixels_left = math.prod(volume.shape)
        self._width = slice_size(volume, plan)[1]
        numbers = list(plan.labels.classes.values())
        self._numbers = np.array(numbers, np.min_scalar_type(max(numbers)))
        self._labels = np.zeros(volume.shape, self._numbers.dtype)
        self._probabilities: np.ndarray | None = None
        self._entropy: np.ndarray | None = None
        self._disagreement: np.ndarray | None = None
        outputs = len(plan.labels.outputs)
        if wanted.probabilities:
            self._probabilities = wanted.allocate((outputs, *volume.shape), np.float16)
        if wanted.uncertainty:
            self._entropy = wanted.allocate(volume.shape, np.float16)

    @property
    def is_complete(self) -> bool:
        """Whether every pixel has an answer."""
        return self._pixels_left == 0

    def add_slice(self, index: int, first: int, logits: Array, networks: int) -> None:
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
            labels = apply(postprocessing, labels, self.volume.box, self.plan.labels)
        return Segmentation(self.volume, self._axis, labels, self._probabilities, self._entropy, self._disagreement)


def _entropy(probabilities: Array, plan: DataPlan) -> Array:
    """(rows, W) of (K, rows, W), from 0 to 1."""
    if plan.labels.regions is None:
        return entropy(probabilities).sum(0) / math.log(len(probabilities))
    return (entropy(probabilities) + entropy(1 - probabilities)).mean(0) / math.log(2)
