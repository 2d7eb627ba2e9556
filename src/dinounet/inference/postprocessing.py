"""What is done to predicted masks after the network: the largest component kept, small ones removed, holes filled.

`postprocessing.json` in a run's folder says it of each class; `dinounet.choosing` chooses it. As in nnU-Net (arXiv
1809.10486, "postprocessing") a component is what touches, also by edges and corners, over a whole volume, and what is
removed becomes background. nnU-Net knows only the first of these steps, and that of all classes as one too.

A region is the union of its labels, as masks hold it: a component of it is removed with all the labels in it, so also
from the regions inside of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dinounet.data.labels import Labels
from dinounet.data.masks import where
from dinounet.errors import ConfigError
from dinounet.files import read_record

POSTPROCESSING = "postprocessing.json"
"""In a run's folder: what is done to the masks that it predicts."""

FORMAT = 1

STRIP = 2**22
"""Pixels, about, that are counted at once."""


@dataclass(frozen=True)
class Steps:
    """What is done to one class or region, in the order of the fields, and why."""

    keep_largest: bool = False
    """Only its largest component is kept; of equally large ones all."""

    smallest: float | None = None
    """Components below this size are removed, in the record's unit; None: none is."""

    fill_holes: bool = False
    """Background that it encloses becomes its own; other classes in there stay."""

    dice_before: float | None = None
    """Mean over the record's cases without any step, 1 where the class is rightly absent; None: nobody measured."""

    dice_after: float | None = None
    """The same with the steps of all classes. They were chosen on these cases, so other cases gain less."""

    def __post_init__(self) -> None:
        if self.smallest is not None and not (math.isfinite(self.smallest) and self.smallest > 0):
            raise ConfigError(f"smallest is {self.smallest}; it must be above 0, or null to remove nothing")

    @property
    def does_something(self) -> bool:
        """Whether there is a step at all."""
        return self.keep_largest or self.smallest is not None or self.fill_holes


@dataclass(frozen=True)
class Postprocessing:
    """What is done to predicted masks."""

    classes: dict[str, Steps]
    """Of each class, or region, by name; of those that are not named nothing."""

    unit: Literal["mm3", "px"] = "px"
    """Of sizes: mm3 (in flat images mm², as if 1 mm thick), so that they hold at other spacings too; px, pixels,
    where some case doesn't tell its spacing."""

    spacing: tuple[float, float, float] | None = None
    """Median distance of neighbours along z, y and x in mm, which images have that don't tell theirs; with px none."""

    cases: tuple[str, ...] = ()
    """That it was chosen on."""

    format: int = FORMAT
    """Version of this file's keys."""

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ConfigError(
                f"format is {self.format} but this version of dinounet reads {FORMAT}; use another version"
            )
        if (self.unit == "mm3") != (self.spacing is not None):
            raise ConfigError(
                f"unit is {self.unit} and spacing {self.spacing}; give a spacing with mm3, and null with px"
            )
        if self.spacing is not None and not all(math.isfinite(step) and step > 0 for step in self.spacing):
            raise ConfigError(f"spacing is {list(self.spacing)}; give three distances in mm above 0")

    @property
    def does_something(self) -> bool:
        """Whether any class has a step."""
        return any(steps.does_something for steps in self.classes.values())


def read_postprocessing(run: Path) -> Postprocessing | None:
    """What a run's masks undergo; None of a run for which nobody chose.

    Raises:
        UserError: the file is no JSON, or has unknown, missing or wrong keys.
    """
    path = run / POSTPROCESSING
    return read_record(Postprocessing, path, what="a run's postprocessing") if path.exists() else None


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


def check_names(post: Postprocessing, known: Labels, where: str = "the postprocessing") -> None:
    """Raise a ConfigError if steps are meant for what masks don't hold; `where` says in which file."""
    unknown = [name for name in post.classes if name not in known.foreground]
    if unknown:
        raise ConfigError(
            f"{where} names {', '.join(unknown)}, but masks hold {', '.join(known.foreground)}; name these"
        )


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
