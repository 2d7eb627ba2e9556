"""Models side by side on the same cases: differences to the first, how sure they are, and who wins how often.

Differences are paired, case by case. Their intervals are bootstrapped as those of the means; the p of Wilcoxon's
signed-rank test (doi:10.2307/3001968) is two-sided and not corrected for the number of measures, classes and models.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dinounet.console import say
from dinounet.data.layouts import Case, ClassFiles
from dinounet.errors import ConfigError, DataError, collect_errors
from dinounet.evaluation.evaluate import evaluate_cases, pair_folders
from dinounet.evaluation.groups import find_labels, with_groups
from dinounet.evaluation.means import (
    counted_classes,
    groups_drawn,
    intervals_of_means,
    intervals_where,
    numbers_of,
    warn_of_floor,
    with_mean_over_classes,
)
from dinounet.schema.comparison import ComparedModel, Comparison, Difference, Origin
from dinounet.schema.labels import Labels, write_labels
from dinounet.schema.metrics import NAMES, By, Interval, Metrics

TIE = 1e-9
"""Up to this difference two numbers are the same."""

COMPARED = (*NAMES[:-1], "absolute_volume_difference")
"""Measures that differences are taken of. Too large is as bad as too small, so volume differences lose their sign."""

HIGHER_IS_BETTER = ("dice", "iou", "nsd", "precision", "recall")

Pairs = tuple[list[Case], dict[str, Path | ClassFiles]]
"""Cases with their truth, and the file of each one's predicted mask."""


def pair_models(
    folders: Mapping[str, Path], truth: Path, by: By = "case", groups: Path | Mapping[str, str] | None = None
) -> dict[str, Pairs]:
    """The masks of every model, each with its truth, and the groups of cases as `with_groups` has them.

    Raises:
        ConfigError: nothing says which cases belong together, or models' folders say otherwise.
        DataError: which cases who lacks, all together, or that a folder is none or empty.
    """
    pairs: dict[str, Pairs] = {}
    problems: list[str] = []
    told: dict[str, list[str | None]] = {}
    for name, folder in folders.items():
        with collect_errors(problems):
            cases, predicted, wrong = pair_folders(folder, truth)
            problems += wrong
            cases, source = with_groups(cases, folder, truth, by, groups)
            pairs[name] = cases, predicted
            told[source] = [case.group for case in cases]
    if problems:
        raise DataError(_once_each(problems))
    for source in filter(None, told):
        say("note", source)
    if len(set(map(tuple, told.values()))) > 1:
        raise ConfigError(f"the models' groups differ ({'; '.join(told)}), so that nothing is paired; give --groups")
    return pairs


def common_labels(folders: Mapping[str, Path], truth: Path, given: str | None = None) -> Labels:
    """What the masks of all folders hold; see `find_labels`.

    Raises:
        ConfigError: they differ.
    """
    found = {folder: find_labels(folder, truth, given) for folder in folders.values()}
    (first, labels), *others = found.items()
    for folder, other in others:
        if other != labels:
            raise ConfigError(
                f"{first} holds masks of {_describe(labels)} but {folder} of {_describe(other)}; compare models of the "
                "same classes, or define their classes by --labels"
            )
    return labels


def _describe(labels: Labels) -> str:
    regions = "".join(f", region {region.name} of {list(region.labels)}" for region in labels.regions or ())
    return write_labels(labels.as_cli) + regions


def evaluate_models(
    pairs: Mapping[str, Pairs],
    known: Labels,
    tolerance: float,
    on_case: Callable[[str], None] | None = None,
    by: By = "case",
    left_out: Mapping[str, str] | None = None,
    at_the_detector: Collection[str] = (),
) -> dict[str, Metrics]:
    """Evaluate each model afresh: older metrics may be of another truth, of other labels or of masks since changed.

    Args:
        pairs: of each model by its name.
        known: what the numbers in the masks stand for.
        tolerance: of NSD.
        on_case: is called with the name of each case that is done.
        by: what is scored.
        left_out: classes that are to be in no model's means over classes, and why.
        at_the_detector: names of cases whose lengths are at the detector, as the record of any of the models tells.

    Raises:
        UserError: see `evaluate_cases`.
    """
    problems: list[str] = []
    metrics = {}
    for name, (cases, predicted) in pairs.items():
        with collect_errors(problems):
            metrics[name] = evaluate_cases(
                cases, predicted, known, on_case=on_case, tolerance=tolerance, by=by, left_out=left_out,
                at_the_detector=at_the_detector,
            )  # fmt: skip
    if problems:
        raise DataError(_once_each(problems))
    return metrics


def _once_each(problems: list[str]) -> str:
    return "; ".join(dict.fromkeys(problems))  # what is wrong with the truth is so for every model


def compare_models(
    metrics: Mapping[str, Metrics], folders: Mapping[str, Path], truth: Path, origins: Mapping[str, Origin]
) -> Comparison:
    """Put models side by side that were evaluated on the same cases with the same settings.

    Args:
        metrics: of each model by its name, the first being what others are compared with.
        folders: of each model's masks.
        truth: folder.
        origins: what each model's training and prediction cost.
    """
    first, *others = metrics
    like = metrics[first]
    models = [
        ComparedModel(
            name=name,
            folder=str(folders[name]),
            origin=origins[name],
            mean_over_cases=found.mean_over_cases,
            mean_over_cases_and_classes=found.mean_over_cases_and_classes,
            empties=found.empties,
            basis=found.basis,
            basis_over_classes=found.basis_over_classes,
            warning=warn_of_floor(found, name),
        )
        for name, found in metrics.items()
    ]
    numbers = {name: _numbers(found) for name, found in metrics.items()}
    drawn = groups_drawn(like.scored)
    for index, name in enumerate(others, start=1):
        differences = numbers[name] - numbers[first]
        differences = np.where(abs(differences) <= TIE, 0.0, differences)
        *by_class, overall = _differences(differences, intervals_of_means(differences, drawn))
        models[index] = replace(
            models[index],
            differences=dict(zip(like.classes, by_class, strict=True)),
            differences_over_classes=overall,
            differences_where_present=_differences_where_present(differences[:, :-1], by_class, like, drawn),
        )
    dices = {name: found.mean_over_cases_and_classes.dice for name, found in metrics.items()}
    present = {
        name: found.basis_over_classes.mean_where_present.dice
        for name, found in metrics.items()
        if found.basis_over_classes.mean_where_present
    }
    return Comparison(
        truth=str(truth),
        cases=tuple(case.case for case in like.cases),
        unit=like.unit,
        volume_unit=like.volume_unit,
        tolerance=like.tolerance,
        policy=like.policy,
        bootstrap=like.bootstrap,
        labels=like.labels,
        models=tuple(models),
        highest=_highest(dices),
        highest_where_present=_highest(present),
        by=like.by,
        groups=tuple(group.case for group in like.groups),
        left_out=like.left_out,
    )


def _numbers(metrics: Metrics) -> np.ndarray:
    """(cases, classes and their mean, COMPARED)."""
    numbers = numbers_of(metrics.scored)
    numbers[..., -1] = abs(numbers[..., -1])
    return with_mean_over_classes(numbers, counted_classes(list(metrics.classes), metrics.left_out))


def _differences_where_present(
    differences: np.ndarray, everywhere: Sequence[dict[str, Difference]], metrics: Metrics, drawn: Sequence[str] | None
) -> dict[str, dict[str, Difference] | None]:
    """Of each class, over what has it in the truth; `everywhere` are the differences over all."""
    has = np.array(
        [[found.empty in (None, "prediction") for found in case.classes.values()] for case in metrics.scored]
    )
    intervals = intervals_where(differences, has, drawn)
    found: dict[str, dict[str, Difference] | None] = dict.fromkeys(metrics.classes)
    for index, name in enumerate(metrics.classes):
        if has[:, index].all():
            found[name] = everywhere[index]
        elif has[:, index].any():
            found[name] = _difference_by_measure(differences[has[:, index], index], intervals[index])
    return found


def _highest(dices: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(name for name, dice in dices.items() if dice >= max(dices.values()) - TIE)


def _differences(
    differences: np.ndarray, intervals: Sequence[Sequence[Interval | None]]
) -> list[dict[str, Difference]]:
    """Differences of each class by measure, from (cases, classes, COMPARED)."""
    return [_difference_by_measure(differences[:, index], around) for index, around in enumerate(intervals)]


def _difference_by_measure(differences: np.ndarray, intervals: Sequence[Interval | None]) -> dict[str, Difference]:
    """Differences by measure, from (cases, COMPARED)."""
    return {name: _difference(name, differences[:, place], intervals[place]) for place, name in enumerate(COMPARED)}


def _difference(name: str, paired: np.ndarray, interval: Interval | None) -> Difference:
    better = paired if name in HIGHER_IS_BETTER else -paired
    wins, losses = (int(np.count_nonzero(side > 0)) for side in (better, -better))
    return Difference(float(paired.mean()), interval, _wilcoxon(paired), wins, len(paired) - wins - losses, losses)


def _wilcoxon(paired: np.ndarray) -> float:
    from scipy.stats import wilcoxon

    if not np.any(paired):
        return 1.0
    return float(wilcoxon(paired).pvalue)
