"""Postprocessing of masks: the largest component kept, small ones removed, holes filled."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dinounet.data.masks import where
from dinounet.schema.labels import Labels
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
