"""What the values of masks stand for where nobody named them, and what is said where the values don't tell.

A value is a number or stands for a colour. What nobody named is inferred only where it is exact; smoothed
masks and JPEGs hold mixtures of what was meant: the command is told that gives each pixel the nearest of it.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dinounet.errors import DataError
from dinounet.schema.labels import BLACK, LARGEST, Given, Labels, name_labels, relabel_command, write_labels

COLOUR = LARGEST + 1
"""Added to red << 16 | green << 8 | blue where a colour stands in for a number that nobody gave it yet; black is 0.
Such values are made by `to_mask_values`, counted, and named by `infer_labels`; no other part of the house sees them."""

MOST_CLASSES, MOST_LABELS = 64, 12
"""Masks that nobody named are taken for smoothed ones if they hold more different values than these: without gaps
between them, and with gaps or in colours."""

NEAR_WHOLE = 1 / 4
"""Distance of fractions from the whole numbers that are proposed for them, at the most."""

CLEAR_SHARE, CLEAR_DISTANCE = 0.05, 1 / 8
"""Shares of what isn't background, and of the range of values: what a value of a smoothed mask needs, to be meant."""


Counts = Mapping[int, int] | Mapping[float, int]
"""Number of pixels that hold each value, which may be a fraction."""


class OddValues(DataError):
    """What a mask holds is no label; what repairs one such mask repairs all of them.

    Args:
        kind: fractions; colours or numbers that no label has; numbers where labels are colours; or too many different
            values.
        path: the mask.
        pixels: how many hold each value, of unknown colours and numbers alone.
        labels: what it may hold, if that is known.
    """

    def __init__(
        self,
        kind: Literal["fractions", "colours", "no colours", "numbers", "values"],
        path: Path,
        pixels: Counts,
        labels: Given | None = None,
    ) -> None:
        self.kind, self.path, self.pixels, self.labels = kind, path, pixels, labels
        super().__init__(_told(kind, [path], pixels, labels))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, self.path, self.pixels, self.labels)


@contextmanager
def collect_odd_values(odd: list[OddValues]) -> Iterator[None]:
    """Puts an OddValues in the block among others, to be told together by `describe_problems`."""
    try:
        yield
    except OddValues as error:
        odd.append(error)


def describe_problems(found: Sequence[str | OddValues]) -> list[str]:
    """Sentences in their order, of which one is for all masks that have the same against them, with one command."""
    alike: dict[tuple[str, str], list[OddValues]] = {}
    for error in found:
        if isinstance(error, OddValues):
            alike.setdefault((error.kind, write_labels(error.labels or {})), []).append(error)
    of_first: dict[int, str] = {}
    for errors in alike.values():
        pixels: Counter[float] = Counter()
        for error in errors:
            pixels.update(error.pixels)
        paths = [error.path for error in errors]
        of_first[id(errors[0])] = _told(errors[0].kind, paths, pixels, errors[0].labels)
    told = [one if isinstance(one, str) else of_first.get(id(one), "") for one in found]
    return [sentence for sentence in told if sentence]


def _told(kind: str, paths: Sequence[Path], pixels: Counts, labels: Given | None) -> str:
    holds = f"{first_files(paths)} {'holds' if len(paths) == 1 else 'hold'}"
    folder, found = common_folder(paths), sorted(pixels)
    if kind == "fractions":
        fractions = [value for value in found if value != round(value)]
        values = f"{'value' if len(fractions) == 1 else 'values'} {listed(fractions)}"
        return f"{holds} the {values}; a mask must hold whole numbers, one per class; {advice(pixels, folder)}"
    if kind == "values":
        return str(too_many(holds, pixels, folder))
    assert labels is not None
    if kind == "no colours":
        return (
            f"{holds} numbers ({listed(found)}), but the labels are colours ({write_labels(labels)}), which don't say "
            f"what each number is; paint the {'mask' if len(paths) == 1 else 'masks'} in these colours, or store all "
            "masks as numbers and name those"
        )
    if kind == "colours":
        return (
            f"{holds} {listed(found)} in {sum(pixels.values())} pixels, but the labels are {write_labels(labels)}; "
            f"name them, or give each pixel the nearest colour: {relabel_command(folder, labels)}"
        )
    nearest = f", such as by: {relabel_command(folder, labels)}" if len(found) > MOST_LABELS else ""
    return (
        f"{holds} {listed(found)}, but the labels are {write_labels(labels)}; name them or correct the "
        f"{'mask' if len(paths) == 1 else 'masks'}{nearest}"
    )


def is_grey(colour: str) -> bool:
    """Whether a colour ("#808080") has as much red as green and blue."""
    return colour[1:3] == colour[3:5] == colour[5:7]


def infer_labels(pixels: Mapping[int, int], dataset: str, masks: Path) -> tuple[Labels, Counter[int]]:
    """Name the classes of masks that nobody named: 0 and one other number, 0, 1, 2 ... without gaps, or colours.

    Args:
        pixels: how many hold each value, over all masks.
        dataset: its name.
        masks: the folder that they lie in.

    Returns:
        what the masks hold, and the pixels of each number.

    Raises:
        DataError: the values don't tell; the message says how to name them.
    """
    if any(value >= COLOUR and value % 0x010101 != COLOUR % 0x010101 for value in pixels):  # which all greys have
        return _infer_colours(Counter(pixels), dataset, masks)
    numbers: Counter[int] = Counter()
    for value, count in pixels.items():
        numbers[value % 256 if value >= COLOUR else value] += count
    found = sorted(set(numbers) | {0})
    if len(found) == 2:
        return Labels({"background": 0, "foreground": found[1]}), numbers
    if found == list(range(len(found))) and len(found) <= MOST_CLASSES:
        return Labels({"background": 0} | {f"class {label}": label for label in found[1:]}), numbers
    if len(found) > MOST_LABELS:
        raise too_many(f"the masks of {dataset} hold", numbers, masks)
    raise _ask(f"the masks of {dataset} hold", found)


def _infer_colours(found: Counter[int], dataset: str, masks: Path) -> tuple[Labels, Counter[int]]:
    """Black is background, each other colour a class; mixtures of others are what smoothing makes, so ask."""
    numbers = sorted(value for value in found if 0 < value < COLOUR)
    if numbers:
        raise DataError(
            f"some masks of {dataset} are in colours and others hold numbers ({listed(numbers)}); store all of them "
            "in one way"
        )
    if len(found) > MOST_LABELS:
        raise too_many(f"the masks of {dataset} hold", found, masks)
    vectors = to_vectors(list(found), coloured=True)
    mixed = any(_is_between(c, a, b) for a, b in combinations(vectors, 2) for c in vectors)
    if mixed or 0 not in found:
        raise _ask(f"the masks of {dataset} hold", sorted(found), "; some are mixtures of others" if mixed else "")
    colours: dict[str, str] = {"background": BLACK}
    for value in sorted(found.keys() - {0}):
        colours["foreground" if len(found) == 2 else f"class {to_colour(value)}"] = to_colour(value)
    known = name_labels(colours)
    return known, Counter({known.classes[name]: found[int(to_mask_value(colour))] for name, colour in colours.items()})


def common_folder(paths: Sequence[Path]) -> Path:
    """The folder that holds all files, at some depth."""
    return Path(os.path.commonpath([path.parent for path in paths]))


def to_mask_value(given: int | float | str) -> int | float:
    """The value that stands for a number or a colour ("#ff0000") in `to_mask_values`."""
    if isinstance(given, str):
        return 0 if given == BLACK else COLOUR + int(given[1:], 16)
    return given


def to_colour(value: float) -> str:
    """The colour that `to_mask_value` made the value of."""
    return f"#{int(value) % COLOUR:06x}"


def first_files(paths: Sequence[Path]) -> str:
    """The first three files, for people, and how many more there are."""
    return ", ".join(map(str, paths[:3])) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def listed(values: Sequence[float] | np.ndarray) -> str:
    """The first values, for people."""
    coloured = max(values, default=0) >= COLOUR
    shown = [to_colour(value) if coloured else f"{value:.10g}" for value in values[:10]]
    return ", ".join(shown) + (", ..." if len(values) > 10 else "")


def to_vectors(values: np.ndarray | Sequence[float], coloured: bool) -> np.ndarray:
    """(n, 3): red, green and blue of values in colours; or (n, 1), the numbers."""
    if not coloured:
        return np.asarray(values, float)[:, None]
    packed = np.asarray(values, np.int64)
    return np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], -1).astype(float)


def _is_between(colour: np.ndarray, a: np.ndarray, b: np.ndarray) -> bool:
    """Whether a colour is a mixture of two others, up to rounding."""
    along = float((colour - a) @ (b - a) / max((b - a) @ (b - a), 1e-9))
    return 0 < along < 1 and bool(np.abs(a + along * (b - a) - colour).max() < 1.5)


def _suggest(values: Sequence[float]) -> Given:
    """Names for what was found, of which the first is background; whole numbers where those are near and apart."""
    names = ("background", *(f"class{index}" for index in range(1, len(values))))
    if max(values) >= COLOUR:
        return {name: to_colour(value) for name, value in zip(names, values, strict=True)}
    whole = [round(value) for value in values]
    if len(set(whole)) == len(values) and max(abs(a - b) for a, b in zip(values, whole, strict=True)) <= NEAR_WHOLE:
        return dict(zip(names, whole, strict=True))
    return dict(zip(names, map(float, values), strict=True))


def _ask(holds: str, values: Sequence[float], why: str = "") -> DataError:
    named = shlex.quote(write_labels(_suggest(values)))
    return DataError(f"{holds} {listed(values)}{why}; say what they stand for, such as --labels {named}")


def too_many(holds: str, pixels: Counts, masks: Path) -> DataError:
    """The error for masks with more values than classes are likely to be."""
    found = sorted(pixels)
    if found[-1] < COLOUR and found == [found[0] + index for index in range(len(found))] and found[-1] != 255:
        return DataError(
            f"{holds} {len(found)} different values ({listed(found)}), as masks do in which each object has a number "
            "of its own; store a number per class, or name every value with --labels"
        )
    return DataError(
        f"{holds} {len(found)} different values ({listed(found)}), as smoothed masks do; export them without "
        f"anti-aliasing, or {advice(pixels, masks)}"
    )


def advice(pixels: Counts, masks: Path) -> str:
    """How to repair masks, with the values that are meant: all of a few fractions, else what stands out."""
    meant, unclear = sorted(_meant(pixels)), ""
    if any(value != round(value) for value in pixels):
        whole: Counter[int] = Counter()
        for value, count in pixels.items():
            whole[round(value)] += count
        if len(pixels) <= MOST_LABELS:
            meant = sorted(pixels)
        elif 1 < len(whole) <= MOST_LABELS:  # resampled labels, or probabilities
            meant = sorted(_meant(whole))
    labels = _suggest(meant)
    if len(labels) < 2:
        unclear, colour = " (put in what is meant)", max(pixels) >= COLOUR
        labels = {"background": BLACK if colour else 0, "lesion": "#ff0000" if colour else 255}
    return f"give each pixel the nearest of what is meant{unclear}: {relabel_command(masks, labels)}"


def _meant(pixels: Counts) -> list[float]:
    """The values of smoothed masks that stand out: many pixels each, and far from each other."""
    values, counts = (np.array(numbers) for numbers in zip(*Counter(pixels).most_common(), strict=True))
    vectors = to_vectors(values, coloured=int(values.max()) >= COLOUR)
    least = 1 if (vectors == np.rint(vectors)).all() else 0
    distance = max(CLEAR_DISTANCE * np.ptp(vectors, axis=0).max(), least)
    foreground = counts[np.abs(vectors - vectors[0]).max(-1) >= distance].sum()
    found = [0]
    for index in range(1, len(values)):
        far = np.abs(vectors[found] - vectors[index]).max(-1).min() >= distance
        if far and counts[index] >= CLEAR_SHARE * foreground:
            found.append(index)
    return values[found].tolist()
