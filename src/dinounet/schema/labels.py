"""What numbers in masks stand for: classes, regions made of several, and pixels that nobody has judged.

Regions and the ignore label are nnU-Net's ("region-based training", "ignore label"): a region has an output of the
network of its own, so that regions may overlap; an ignored pixel counts in no loss and in no metric.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinounet.errors import ConfigError, DataError
from dinounet.schema.base import record

IGNORE = "ignore"
"""The name that makes a label the ignore label."""

IGNORED = 255
"""Class of an ignored pixel in preprocessed masks."""

MOST = 256
"""Classes at most, background included, since preprocessed masks hold them as bytes."""

LARGEST = (1 << 24) - 1
"""Number that may stand for a class, which every format but pictures can hold, and float32 too."""

Given = Mapping[str, int | float | str]
"""Names of classes, each with what stands for it in masks: a number, or a colour such as "#ff0000". Fractions are for
`dinounet relabel` alone, which makes whole numbers of them."""


BLACK = "#000000"

_MARK = re.compile(r"\d+(\.\d+)?|#[0-9a-fA-F]{6}", re.ASCII)
"""What may stand for a class: a number, or a colour."""


@record
class Region:
    """Several classes under one name, such as a tumour and all its parts."""

    name: str
    """Name of the region in the dataset."""

    labels: tuple[int, ...]
    """Values in masks that belong to it."""

    written_as: int
    """Number, one of these, that predicted masks hold where it is; regions are written in order, later over earlier."""


@record
class Labels:
    """All that is known of the numbers in a dataset's masks.

    Raises:
        ConfigError: they contradict each other.
    """

    classes: dict[str, int]
    """Names of the classes and their numbers, background (0) first."""

    regions: tuple[Region, ...] | None = None
    """Regions that are predicted instead of classes."""

    ignore: int | None = None
    """Value of pixels that were not annotated."""

    colours: dict[str, str] | None = None
    """Of colour-coded masks the colour of each class, and of "ignore", as "#ff0000"; the numbers then are ours."""

    def __post_init__(self) -> None:
        numbers = list(self.classes.values())
        if len(numbers) > MOST:
            raise ConfigError(f"there are {len(numbers)} classes; there can be {MOST} at most, background included")
        if self.largest > LARGEST:
            raise ConfigError(f"{self.largest} stands for a class, but may be {LARGEST} at most; store smaller numbers")
        if self.ignore in numbers:
            raise ConfigError(f"{self.ignore} is the ignore label and a class too; give each a number of its own")
        if self.ignore is not None and len(numbers) > IGNORED:
            raise ConfigError(
                f"there are {len(numbers)} classes; beside an ignore label there can be {IGNORED} at most"
            )
        if self.colours is not None:
            _check_colours(self.colours, self.with_ignore)
        if self.regions is None:
            return
        names = [region.name for region in self.regions]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"the regions are named {names}; there must be one at least, each with a name of its own")
        for region in self.regions:
            if 0 in region.labels or not set(region.labels) <= set(numbers):
                raise ConfigError(
                    f"the region {region.name} is made of {list(region.labels)}, but the labels are {numbers}; name "
                    "some of them, without the background"
                )
            if region.written_as not in region.labels:
                raise ConfigError(
                    f"the region {region.name} is written as {region.written_as}, which must be one of its own labels "
                    f"{list(region.labels)}"
                )

    @property
    def with_ignore(self) -> dict[str, int]:
        """The labels and the ignore label by name, as a mask of numbers may hold them."""
        return self.classes | ({} if self.ignore is None else {IGNORE: self.ignore})

    @property
    def largest(self) -> int:
        """The greatest number that a mask may hold."""
        return max(self.with_ignore.values(), default=0)

    @property
    def as_cli(self) -> Given:
        """The same as --labels gives them: colours where masks hold those."""
        return self.with_ignore if self.colours is None else self.colours

    @property
    def palette(self) -> dict[int, str] | None:
        """The colour of each number, of colour-coded masks."""
        return (
            None if self.colours is None else {self.with_ignore[name]: colour for name, colour in self.colours.items()}
        )

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Of each output of the network its name and numbers: the regions, or else the classes with background."""
        if self.regions is not None:
            return {region.name: region.labels for region in self.regions}
        return {name: (label,) for name, label in self.classes.items()}

    @property
    def foreground(self) -> dict[str, tuple[int, ...]]:
        """The outputs that are of interest."""
        return {name: numbers for name, numbers in self.outputs.items() if numbers != (0,)}


def parse_labels(text: str) -> dict[str, int | float | str]:
    """ "background=0,lesion=1" or "background=#000000,lesion=#ff0000" as a mapping.

    Raises:
        ConfigError: it isn't of that form, names something twice, or mixes numbers and colours.
    """
    pairs = [part.rsplit("=", 1) for part in text.split(",")]
    if any(len(pair) != 2 or not pair[0].strip() or not _MARK.fullmatch(pair[1].strip()) for pair in pairs):
        raise ConfigError(f"--labels is {text!r}; write it as background=0,lesion=1, or background=#000000,...")
    marks = [mark.strip().lower() for _, mark in pairs]
    labels = {name.strip(): _to_given(mark) for (name, _), mark in zip(pairs, marks, strict=True)}
    if len(labels) < len(pairs) or len(set(labels.values())) < len(pairs):
        raise ConfigError(f"--labels is {text!r}, which has a duplicate name or number; give each class its own")
    if len({isinstance(mark, str) for mark in labels.values()}) > 1:
        raise ConfigError(f"--labels is {text!r}; name either numbers or colours, not both")
    return labels


def write_labels(labels: Given) -> str:
    """What `parse_labels` reads; fractions with at most six digits after the point."""
    return ",".join(f"{name}={_in_text(mark)}" for name, mark in labels.items())


def _to_given(mark: str) -> int | float | str:
    if mark[0] == "#":
        return mark
    return float(mark) if "." in mark else int(mark)


def _in_text(mark: int | float | str) -> str:
    return f"{mark:.6f}".rstrip("0").rstrip(".") if isinstance(mark, float) else str(mark)


def relabel_command(masks: Path, labels: Given) -> str:
    """The command, to be pasted into a shell, that writes clean copies of a folder of smoothed masks."""
    beside = masks.parent if masks.name else Path("..")  # of "."
    target = str(beside / (masks.absolute().name + "_clean"))
    return shlex.join(["dinounet", "relabel", str(masks), "-o", target, "--labels", write_labels(labels)])


def name_labels(given: Given) -> Labels:
    """Names and what stands for them, all numbers or all colours; the name "ignore" is the ignore label.

    Colours get numbers: the background (by name, else black) 0, the others 1, 2 ... as they are given, ignore the last.

    Raises:
        ConfigError: the background isn't named, or nothing else is.
    """
    if any(isinstance(mark, float) for mark in given.values()):
        raise ConfigError(f"the labels are {write_labels(given)}; masks hold whole numbers, name these")
    numbers = {name: mark for name, mark in given.items() if isinstance(mark, int)}
    colours = {name: mark for name, mark in given.items() if isinstance(mark, str)}
    if colours:
        black = next((name for name, mark in colours.items() if mark == BLACK), "")
        background = "background" if "background" in colours else black
        order = sorted(colours, key=lambda name: (name != background, name == IGNORE))  # otherwise as given
        numbers = {name: index for index, name in enumerate(order)} if background else {}
    ignore = numbers.pop(IGNORE, None)
    if 0 not in numbers.values() or len(numbers) < 2:
        zero = f"the background's colour, such as {BLACK}," if colours else "0"
        raise ConfigError(f"the labels are {write_labels(given)}; name what {zero} stands for, and one class at least")
    ordered = dict(sorted(numbers.items(), key=lambda item: item[1]))
    return Labels(ordered, None, ignore, colours or None)


def _check_colours(colours: Mapping[str, str], given: Mapping[str, int]) -> None:
    if colours.keys() != given.keys() or len(set(colours.values())) < len(colours):
        raise ConfigError(f"the colours are {dict(colours)}; give each of {', '.join(given)} one of its own")
    for colour in colours.values():
        if not re.fullmatch("#[0-9a-f]{6}", colour):
            raise ConfigError(f"{colour!r} is not a colour; write it as #ff0000")


def read_nnunet_labels(description: Mapping[str, Any], path: Path) -> Labels:
    """The labels of `dataset.json`: numbers, or lists of numbers for regions, which `regions_class_order` goes with.

    Raises:
        DataError: they are neither, contradict each other, or the order doesn't fit the regions.
    """
    try:
        return _interpret(description, path)
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from None


def _interpret(description: Mapping[str, Any], path: Path) -> Labels:
    numbers = {name: _numbers(name, value, path) for name, value in description["labels"].items()}
    ignore = numbers.pop(IGNORE, None)
    if ignore is not None and len(ignore) > 1:
        raise DataError(f"{path} has {list(ignore)} as the ignore label, which must be one number")
    ignored = None if ignore is None else ignore[0]
    if all(len(value) == 1 for value in numbers.values()):
        by_number = sorted(((name, value[0]) for name, value in numbers.items()), key=lambda item: item[1])
        return Labels(dict(by_number), None, ignored)

    parts = {name: value for name, value in numbers.items() if value != (0,)}
    order = description.get("regions_class_order")
    if not isinstance(order, Sequence) or len(order) != len(parts) or any(type(label) is not int for label in order):
        raise DataError(
            f"{path} has the regions {', '.join(parts)} and regions_class_order {order}, which must be a list of one "
            "number for each, that predicted masks hold there"
        )
    regions = tuple(Region(name, value, label) for (name, value), label in zip(parts.items(), order, strict=True))
    names = {value[0]: name for name, value in reversed(numbers.items()) if len(value) == 1}
    found = sorted({label for value in numbers.values() for label in value})
    labels = {names.get(label, f"label {label}"): label for label in found}
    if len(labels) < len(found):
        raise DataError(
            f"{path} names a label {', '.join(names.values())}; leave names such as 'label 1' to the others"
        )
    return Labels(labels, regions, ignored)


def _numbers(name: str, value: Any, path: Path) -> tuple[int, ...]:
    listed = value if isinstance(value, list) else [value]
    if not listed or any(type(label) is not int for label in listed):
        raise DataError(
            f"{path} has {name} = {value!r} among its labels; write the name first, then a number, or a list of them "
            "for a region"
        )
    return tuple(sorted(set(listed)))
