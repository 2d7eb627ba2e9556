"""A folder of predictions against a folder of truths: `metrics.json`, and a table of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from dinounet.data.images import Volume, require_same_grid
from dinounet.data.labels import Labels, Region
from dinounet.data.masks import read_mask, read_truth, with_empty_slices
from dinounet.data.pairs import Case, ClassFiles, class_files, mask_files, name_of
from dinounet.errors import ConfigError, DataError
from dinounet.evaluation.metrics import POLICY, dice, hd95
from dinounet.files import join_some, write_json

if TYPE_CHECKING:
    from rich.console import Console

FORMAT = 1

Empty = Literal["both", "truth", "prediction"]
Unit = Literal["mm", "px"]

EMPTY: dict[tuple[bool, bool], Empty | None] = {
    (True, True): None,
    (True, False): "prediction",
    (False, True): "truth",
    (False, False): "both",
}
"""Where a class is empty, by whether truth and prediction hold it."""
WORDS = {"both": "empty in both", "truth": "not in the truth", "prediction": "missed"}
"""What it means that a class is empty there."""


@dataclass(frozen=True)
class ClassMetrics:
    """How well one class of one case was found."""

    dice: float
    """From 0 to 1."""

    hd95: float
    """In the case's unit."""

    empty: Empty | None = None
    """Where the class has no pixel, if anywhere; both numbers are then the policy's."""


@dataclass(frozen=True)
class CaseMetrics:
    """How well one case was segmented."""

    case: str
    """The file's name without ending."""

    unit: Unit
    """Of HD95: mm, or px where the truth's format knows of no spacing."""

    classes: dict[str, ClassMetrics]
    """By name, without the background; or the regions."""

    ignored_pixels: int = 0
    """Of the truth, which were left out of both masks."""

    @property
    def dice(self) -> float:
        """Mean over the classes."""
        return _mean([found.dice for found in self.classes.values()])

    @property
    def hd95(self) -> float:
        """Mean over the classes, in `unit`."""
        return _mean([found.hd95 for found in self.classes.values()])


@dataclass(frozen=True)
class MeanMetrics:
    """Means, empty masks counted as the policy says."""

    dice: float
    """From 0 to 1."""

    hd95: float
    """In the cases' unit."""


@dataclass(frozen=True)
class EmptyCounts:
    """In how many cases one class is empty where."""

    both: int
    """Neither there nor found."""

    truth: int
    """Found, but not there."""

    prediction: int
    """There, but missed."""


@dataclass(frozen=True)
class Metrics:
    """What `metrics.json` holds."""

    labels: dict[str, int]
    """Names and numbers of the classes, with the background, which is not evaluated."""

    policy: str
    """What an empty mask counts."""

    cases: tuple[CaseMetrics, ...]
    """Sorted by name."""

    mean_over_cases: dict[str, MeanMetrics]
    """Of each class."""

    mean_over_cases_and_classes: MeanMetrics
    """Of everything; each case and class weighs the same."""

    empties: dict[str, EmptyCounts]
    """Of each class."""

    regions: tuple[Region, ...] | None = None
    """What was evaluated instead of classes."""

    ignore: int | None = None
    """Number in the truth's masks of the pixels that were left out."""

    colours: dict[str, str] | None = None
    """Of a truth in colours, what stands for each class, whose numbers are ours."""

    format: int = FORMAT
    """Version of this file's keys."""

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ConfigError(
                f"format is {self.format} but this version of dinounet reads {FORMAT}; use another version"
            )
        if not self.cases or len({case.unit for case in self.cases}) > 1:
            raise ConfigError("cases must be at least one, and their units all mm or all px; evaluate again")

    @property
    def unit(self) -> Unit:
        """Of every HD95."""
        return self.cases[0].unit

    @property
    def meaning(self) -> Labels:
        """What masks hold."""
        return Labels(self.labels, self.regions, self.ignore, self.colours)

    @property
    def classes(self) -> dict[str, tuple[int, ...]]:
        """What was evaluated, classes or regions, and the numbers that stand for it in masks."""
        return self.meaning.foreground

    @property
    def ignored_pixels(self) -> int:
        """Of all cases."""
        return sum(case.ignored_pixels for case in self.cases)

    @property
    def remark_on_ignored(self) -> str:
        """What an ignore label left out, as the begin of a sentence; empty without one."""
        if self.ignore is None:
            return ""
        return f"{self.ignored_pixels:,} pixels that the truth ignores ({self.ignore}) are left out of both masks; "

    @property
    def worst_first(self) -> tuple[CaseMetrics, ...]:
        """The cases by rising mean Dice; of equals, the farther one first."""
        return tuple(sorted(self.cases, key=lambda case: (case.dice, -case.hd95, case.case)))


def find_masks(folder: Path, cases: Iterable[str] = ()) -> dict[str, Path | ClassFiles]:
    """A folder's masks by case (`pairs.name_of`), sorted; files in other formats are passed over.

    Args:
        folder: of masks, and of folders of them.
        cases: names of cases that it may have a mask a class of.

    Raises:
        DataError: the folder is missing or holds no mask, or a case's mask twice.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give one that holds a mask for each case")
    masks = mask_files(folder)
    classes = class_files(masks, folder, cases)
    if classes:
        return {case: classes[case] for case in sorted(classes)}
    found: dict[str, list[Path]] = {}
    for path in masks:
        found.setdefault(name_of(path, folder), []).append(path)
    twice = [f"{paths[0].name} and {paths[1].name}" for paths in found.values() if len(paths) > 1]
    if twice:
        raise DataError(f"{folder} holds more than one mask of a case: {join_some(twice)}; keep one of each")
    if not found:
        raise DataError(f"{folder} holds no masks; give the folder with <case>.nii.gz, .png or their like")
    return {case: paths[0] for case, paths in found.items()}


def evaluate_folders(
    predictions: Path,
    truth: Path,
    labels: Mapping[str, int],
    output: Path | None = None,
    on_case: Callable[[str], None] | None = None,
    *,
    regions: tuple[Region, ...] | None = None,
    ignore: int | None = None,
    colours: dict[str, str] | None = None,
) -> Metrics:
    """Compare masks with the truth, case by case; files are paired by name without ending, formats may differ.

    Args:
        predictions: folder with a mask for each case of the truth, and no other.
        truth: folder of masks; their spacing is what HD95 is measured by.
        labels: names and numbers of the classes; 0 is background and not evaluated.
        output: the file to write the metrics to as JSON.
        on_case: is called with the name of each case that is done.
        regions: to evaluate instead of classes.
        ignore: number of the truth's pixels that are left out of both masks.
        colours: of a truth in colours, what stands for each class.

    Raises:
        DataError: all that is wrong with the masks, together: a mask is missing, superfluous or unreadable, the grids
            of a pair differ, a value is no label, or some cases are measured in mm and others in pixels.
    """
    known = Labels(dict(labels), regions, ignore, colours)
    if not known.foreground:
        raise DataError(f"the labels {dict(labels)} name no class but background; name at least one, such as lesion=1")
    predicted = find_masks(predictions)
    truths = find_masks(truth, predicted)
    problems = _name_problems(predictions, truth, predicted.keys(), truths.keys())
    cases = [Case(name, (), truths[name]) for name in sorted(truths.keys() & predicted.keys())]
    return evaluate_cases(cases, predicted, known, output, on_case, problems=problems)


def evaluate_cases(
    cases: Sequence[Case],
    predicted: Mapping[str, Path | ClassFiles],
    known: Labels,
    output: Path | None = None,
    on_case: Callable[[str], None] | None = None,
    *,
    problems: Sequence[str] = (),
) -> Metrics:
    """Compare the masks of cases, wherever they are, with their truth; see `evaluate_folders`.

    Args:
        cases: whose truth is known.
        predicted: the file of each case's predicted mask, by its name.
        known: what the numbers in the masks stand for.
        output: the file to write the metrics to as JSON.
        on_case: is called with the name of each case that is done.
        problems: what is known to be wrong already; told together with all else.
    """
    wrong: list[str] = []
    units: dict[Unit, list[str]] = {"mm": [], "px": []}
    evaluated = []
    for case in cases:
        try:
            prediction = read_mask(predicted[case.name], known)
            pair = with_empty_slices(read_truth(case, known), prediction), prediction
            require_same_grid(pair[1], pair[0])
        except DataError as error:
            wrong.append(str(error))
            continue
        may_hold = known.given, known.labels
        wrong += [text for mask, may in zip(pair, may_hold, strict=True) if (text := _unknown(mask, may))]
        units["px" if pair[0].spacing is None else "mm"].append(case.name)
        if not problems and not wrong:  # measuring takes long; once something is wrong, only look for more of it
            evaluated.append(_evaluate_case(case.name, *pair, known))
        if on_case is not None:
            on_case(case.name)
    found = [*problems, *([join_some(wrong)] if wrong else [])]
    if all(units.values()):
        found.append(
            f"the truth mixes masks with a spacing in mm ({join_some(units['mm'])}) and without one "
            f"({join_some(units['px'])}), whose HD95 have no common mean; evaluate them apart"
        )
    if found:
        raise DataError("; ".join(found))
    metrics = summarise(evaluated, known)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, metrics)
    return metrics


def summarise(cases: Sequence[CaseMetrics], known: Labels) -> Metrics:
    """Means and counts over cases, which must all have the same classes and unit."""
    by_class = {name: [case.classes[name] for case in cases] for name in known.foreground}
    means = {name: _mean_metrics(found) for name, found in by_class.items()}
    empties = {
        name: EmptyCounts(*(sum(one.empty == where for one in found) for where in ("both", "truth", "prediction")))
        for name, found in by_class.items()
    }
    overall = _mean_metrics([one for found in by_class.values() for one in found])
    return Metrics(
        known.labels, POLICY, tuple(cases), means, overall, empties,
        regions=known.regions, ignore=known.ignore, colours=known.colours,
    )  # fmt: skip


def describe_empties(metrics: Metrics) -> str:
    """The empty masks in a sentence."""
    counts = {where: sum(getattr(count, where) for count in metrics.empties.values()) for where in WORDS}
    pairs = len(metrics.cases) * len(metrics.empties)
    return (
        f"Of {pairs} pairs of case and class, missed entirely (only the prediction is empty): {counts['prediction']}; "
        f"found where there is nothing (only the truth is empty): {counts['truth']}; empty in both: {counts['both']}."
    )


def print_table(metrics: Metrics, console: Console) -> None:
    """Print every case and class, the means, the policy and how often it applied."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table("case", "class", box=SIMPLE_HEAD)
    table.add_column("Dice", justify="right", no_wrap=True)
    table.add_column(f"HD95 ({metrics.unit})", justify="right", no_wrap=True)
    table.add_column("")
    for case in metrics.cases:
        for index, (name, found) in enumerate(case.classes.items()):
            first, remark = "" if index else case.case, WORDS[found.empty] if found.empty else ""
            table.add_row(Text(first), Text(name), f"{found.dice:.3f}", f"{found.hd95:.2f}", remark)
    table.add_section()
    for index, (name, mean) in enumerate(metrics.mean_over_cases.items()):
        first = "" if index else f"mean over {len(metrics.cases)} cases"
        table.add_row(first, Text(name), f"{mean.dice:.3f}", f"{mean.hd95:.2f}", style="bold")
    mean = metrics.mean_over_cases_and_classes
    table.add_row("mean over cases and classes", "", f"{mean.dice:.3f}", f"{mean.hd95:.2f}", style="bold")
    console.print(table)
    remark = metrics.remark_on_ignored.replace("; ", ". ")
    console.print(f"{remark}{metrics.policy} {describe_empties(metrics)}", style="dim", highlight=False, markup=False)


def _name_problems(predictions: Path, truth: Path, predicted: AbstractSet[str], truths: AbstractSet[str]) -> list[str]:
    missing, surplus = sorted(truths - predicted), sorted(predicted - truths)
    problems = []
    if missing:
        problems.append(f"{predictions} lacks masks of cases in {truth}: {join_some(missing)}; predict them too")
    if surplus:
        problems.append(f"{predictions} holds masks of cases that {truth} lacks: {join_some(surplus)}; remove them")
    return problems


def _unknown(mask: Volume, labels: Mapping[str, int]) -> str:
    unknown = np.unique(mask.array[np.isin(mask.array, list(labels.values()), invert=True)])
    if not unknown.size:
        return ""
    values = join_some([str(value) for value in unknown]).replace(";", ",")
    named = ", ".join(f"{name}={label}" for name, label in labels.items())
    return f"{mask.source} holds the values {values} but the labels are {named}; name them or correct the mask"


def _evaluate_case(case: str, truth: Volume, prediction: Volume, known: Labels) -> CaseMetrics:
    counts = np.ones(truth.shape, bool) if known.ignore is None else truth.array != known.ignore
    found = {}
    for name, numbers in known.foreground.items():
        a, b = (np.isin(mask.array, numbers) & counts for mask in (truth, prediction))
        empty = EMPTY[bool(a.any()), bool(b.any())]
        found[name] = ClassMetrics(dice(a, b), hd95(a, b, truth.spacing or (1.0, 1.0, 1.0)), empty)
    return CaseMetrics(case, "px" if truth.spacing is None else "mm", found, int(np.count_nonzero(~counts)))


def _mean_metrics(found: Sequence[ClassMetrics]) -> MeanMetrics:
    return MeanMetrics(_mean([one.dice for one in found]), _mean([one.hd95 for one in found]))


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
