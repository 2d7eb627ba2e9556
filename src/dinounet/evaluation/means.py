"""Means over cases with bootstrap intervals, and the cases that each mean rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np

from dinounet.errors import ConfigError
from dinounet.evaluation.metrics import POLICY, write_number
from dinounet.io import read_json, summarize
from dinounet.schema.base import to_record
from dinounet.schema.labels import Labels
from dinounet.schema.metrics import (
    NAMES,
    Basis,
    Calibration,
    CaseMetrics,
    EmptyCounts,
    Interval,
    MeanMetrics,
    Metrics,
    group_of,
)

RESAMPLES = 2000
SEED = 0


def describe_bootstrap(over: str) -> str:
    """How intervals came about, in a sentence for their readers; `over` is what was drawn: cases or groups."""
    return f"Intervals: 95 %, percentile bootstrap over {over}, {RESAMPLES:,} resamples, seed {SEED}."


AT_ONCE = 100
"""Resamples; with thousands of cases more would fill the memory."""

ENDS = (2.5, 97.5)
"""Percentiles at which an interval begins and ends."""


def sums_by_group(numbers: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Sums over the cases of each group: (cases, ...) to (groups, ...)."""
    _, places = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    sums = np.zeros((places.max() + 1, *numbers.shape[1:]))
    np.add.at(sums, places, numbers)
    return sums


def resample_sums(numbers: np.ndarray) -> np.ndarray:
    """Sums over rows that are drawn anew, as many as there are, with replacement: (rows, columns) to (2000, columns).

    Equally many rows are always drawn alike, so that what is computed from several such sums is paired.
    """
    rows = len(numbers)
    generator = np.random.default_rng(SEED)
    shares = np.full(rows, 1 / rows)
    return np.concatenate([generator.multinomial(rows, shares, AT_ONCE) @ numbers for _ in range(RESAMPLES // AT_ONCE)])


def intervals_of_means(numbers: np.ndarray, groups: Sequence[str] | None = None) -> list[list[Interval | None]]:
    """Where the mean over the cases lies with a confidence of 95 %; None where there is one case, or group, only.

    Args:
        numbers: (cases, classes, measures).
        groups: of each case, to draw groups instead of cases.

    Returns:
        A list of measures for each class.
    """
    cases, classes, measures = numbers.shape
    flat = np.concatenate([numbers.reshape(cases, -1), np.ones((cases, 1))], axis=1)
    if groups is not None:
        flat = sums_by_group(flat, groups)
    if len(flat) < 2:
        return [[None] * measures for _ in range(classes)]
    sums = resample_sums(flat)
    low, high = np.percentile(sums[:, :-1] / sums[:, -1:], ENDS, axis=0).reshape(2, classes, measures).tolist()
    return [list(zip(*ends, strict=True)) for ends in zip(low, high, strict=True)]


def intervals_where(
    numbers: np.ndarray, where: np.ndarray, groups: Sequence[str] | None = None
) -> list[list[Interval | None]]:
    """As `intervals_of_means`, of each class over some cases only: `where` is (cases, classes).

    Cases are drawn from all, so that it is left to chance too how many of them count.
    """
    cases, classes, measures = numbers.shape
    flat = np.concatenate([np.where(where[..., None], numbers, 0.0).reshape(cases, -1), where], axis=1)
    if groups is not None:
        flat = sums_by_group(flat, groups)
    counts = flat[:, -classes:]
    several = (counts > 0).sum(axis=0) > 1  # of one alone every resample gives the same number
    if len(flat) < 2:
        return [[None] * measures for _ in range(classes)]
    sums = resample_sums(flat)
    counts = sums[:, -classes:, None]
    means = sums[:, :-classes].reshape(-1, classes, measures) / np.where(counts > 0, counts, np.nan)
    return [
        [interval_of(means[:, index, measure]) if several[index] else None for measure in range(measures)]
        for index in range(classes)
    ]


def interval_of(resampled: np.ndarray) -> Interval | None:
    """Where a number lies with a confidence of 95 %, from its values in the resamples; those that are NaN, which had no
    value, are left out, and of none there is no interval."""
    known = resampled[~np.isnan(resampled)]
    if not known.size:
        return None
    low, high = np.percentile(known, ENDS).tolist()
    return low, high


FEWEST = 5
"""Cases, or groups, that must have a class for an interval to tell whether its result is above the floor."""

ROUNDING = 1e-9
"""Up to this difference two means of Dice are the same."""

Above = Literal["clearly", "not clearly", "too few cases"]


def summarise(
    cases: Sequence[CaseMetrics],
    known: Labels,
    tolerance: float,
    calibration: Calibration | None = None,
    *,
    groups: Sequence[CaseMetrics] = (),
    left_out: Mapping[str, str] | None = None,
) -> Metrics:
    """Means with intervals, and counts, over cases, which must all have the same classes and units.

    Args:
        cases: each with its group where that is known; intervals are then resampled over groups.
        known: what the numbers in masks stand for.
        tolerance: of NSD.
        calibration: of the probabilities.
        groups: pooled, to be scored instead of the cases.
        left_out: classes that are not to be in the means over classes, and why; not all of them.
    """
    names, left_out = list(known.foreground), dict(left_out or {})
    scored = groups or cases
    drawn = groups_drawn(scored)
    numbers = numbers_of(scored)
    with_overall = with_mean_over_classes(numbers, counted_classes(names, left_out))
    *means, overall = [
        _mean_metrics(mean, around)
        for mean, around in zip(with_overall.mean(axis=0), intervals_of_means(with_overall, drawn), strict=True)
    ]
    empties = {
        name: EmptyCounts(
            *(sum(case.classes[name].empty == where for case in scored) for where in ("both", "truth", "prediction"))
        )
        for name in names
    }
    basis, basis_over_classes = rest_on(scored, left_out)
    over = "groups of cases" if groups or drawn else "cases"
    return Metrics(
        known, POLICY, describe_bootstrap(over), tolerance, tuple(cases), dict(zip(names, means, strict=True)),
        overall, empties, basis, basis_over_classes, "group" if groups else "case", tuple(groups), left_out,
        calibration=calibration,
    )  # fmt: skip


def rest_on(cases: Sequence[CaseMetrics], left_out: Mapping[str, str] | None = None) -> tuple[dict[str, Basis], Basis]:
    """What the means of each class rest on, and those over the classes that are not left out."""
    names = list(cases[0].classes)
    counted = counted_classes(names, left_out or {})
    numbers = numbers_of(cases)
    empty = np.array([[found.empty or "" for found in case.classes.values()] for case in cases])
    present = np.isin(empty, ("", "prediction"))
    alarms = empty == "truth"
    volumes = np.where(alarms, numbers[..., NAMES.index("volume_difference")], 0.0)

    # of each case what is added up, in columns: measures where the class is, how often it is, and Dice above the floor
    there = np.where(present[..., None], numbers, 0.0)
    above = numbers[..., NAMES.index("dice")] - ~present
    above = with_mean_over_classes(above, counted)
    parts = [there.reshape(len(cases), -1), present, above, np.ones((len(cases), 1))]
    columns = np.concatenate(parts, axis=1, dtype=np.float64)
    drawn = groups_drawn(cases)
    columns = columns if drawn is None else sums_by_group(columns, drawn)
    ends = np.cumsum([part.shape[1] for part in parts])[:-1]

    def means_of(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means where present, (..., classes + 1, measures), and Dice above the floor; NaN where nothing is."""
        there, counts, above, total = np.split(sums, ends, axis=-1)
        has = counts > 0
        of_classes = there.reshape(*counts.shape, -1) / np.where(has, counts, np.nan)[..., None]
        some = has[..., counted].sum(axis=-1)[..., None]
        any_class = np.concatenate([has, some > 0], axis=-1)  # without, there is nothing to be better in
        overall = np.nansum(of_classes[..., counted, :], axis=-2) / np.where(some, some, np.nan)
        return np.concatenate([of_classes, overall[..., None, :]], axis=-2), np.where(any_class, above / total, np.nan)

    where_present, _ = means_of(columns.sum(axis=0))
    resampled = means_of(resample_sums(columns)) if len(columns) > 1 else None
    # of a class that only one case or group has, every resample gives the same number
    has = columns[:, ends[0] : ends[1]] > 0
    drawn_with = [*has.sum(axis=0).tolist(), int(np.count_nonzero(has[:, counted].any(axis=1)))]

    def basis(index: int, of: Sequence[int]) -> Basis:
        means: MeanMetrics | None = None
        if present[:, of].any():
            around: list[Interval | None] = [None] * len(NAMES)
            if resampled and drawn_with[index] > 1:
                around = [interval_of(values) for values in resampled[0][:, index].T]
            means = _mean_metrics(where_present[index], around)
        false_alarms = int(np.count_nonzero(alarms[:, of]))
        return Basis(
            present=int(np.count_nonzero(present[:, of])),
            mean_where_present=means,
            absent=int(np.count_nonzero(~present[:, of])),
            false_alarms=false_alarms,
            false_alarm_volume=float(volumes[:, of].sum()) / false_alarms if false_alarms else None,
            floor=float(np.mean(~present[:, of])),
            above_floor=float(above[:, index].mean()),
            above_floor_interval=interval_of(resampled[1][:, index]) if resampled else None,
            drawn=drawn_with[index],
        )

    return {name: basis(index, [index]) for index, name in enumerate(names)}, basis(len(names), counted)


def numbers_of(cases: Sequence[CaseMetrics]) -> np.ndarray:
    """All measures as an array: (cases, classes, NAMES)."""
    return np.array(
        [[[getattr(found, name) for name in NAMES] for found in case.classes.values()] for case in cases], np.float64
    )


def with_mean_over_classes(numbers: np.ndarray, counted: Sequence[int]) -> np.ndarray:
    """(cases, classes, ...) to (cases, classes + 1, ...): beside the classes the mean over those that count."""
    return np.concatenate([numbers, numbers[:, counted].mean(axis=1, keepdims=True)], axis=1)


def is_above_floor(basis: Basis) -> Above:
    """Whether a result is above an all-background prediction's: the interval of the difference lies above 0.

    Where fewer than 5 cases, or groups, have the class, the bootstrap doesn't tell; not above is then only what isn't
    so at all.
    """
    if basis.above_floor <= ROUNDING:
        return "not clearly"
    if basis.drawn < FEWEST or basis.above_floor_interval is None:
        return "too few cases"
    return "clearly" if basis.above_floor_interval[0] > ROUNDING else "not clearly"


def warn_of_floor(metrics: Metrics, name: str = "This result") -> str:
    """That a result, or in which classes, isn't clearly above an all-background prediction's; empty if it is."""
    found, overall = metrics.basis_over_classes, metrics.mean_over_cases_and_classes
    if is_above_floor(found) == "not clearly":
        return (
            f"{name} is not clearly above what an all-background prediction would score on the same "
            f"{metrics.by}s: mean Dice {write_number('dice', overall.dice)} against "
            f"{write_number('dice', found.floor)}{_write_difference(found)}."
        )
    low = [
        f"{one} (Dice {write_number('dice', metrics.mean_over_cases[one].dice)} against "
        f"{write_number('dice', basis.floor)})"
        for one, basis in metrics.basis.items()
        if basis.present and is_above_floor(basis) == "not clearly"
    ]
    if not low:
        return ""
    return (
        f"{name} is not clearly above what an all-background prediction would score on the same "
        f"{metrics.by}s in {summarize(low)}."
    )


def describe_basis(metrics: Metrics) -> str:
    """What the mean Dice over classes rests on, and whether it is clearly above the floor, as sentences."""
    basis, by = metrics.basis_over_classes, metrics.by
    several = len(metrics.basis) - len(metrics.left_out) > 1
    pairs = f"pairs of {by} and class" if several else f"{by}s"
    there = (
        f"Mean Dice over the {by}s that have the class: {write_number('dice', basis.mean_where_present.dice)} "
        f"({basis.present} {pairs})."
        if basis.mean_where_present
        else f"No {by} has the class."
    )
    alarms = f"False alarms: {basis.false_alarms} of {basis.absent} {pairs} without it." if basis.absent else ""
    above = is_above_floor(basis)
    floor = f"An all-background prediction would score {write_number('dice', basis.floor)}{_write_difference(basis)}."
    floor = "" if above == "not clearly" else floor
    what = "group" if metrics.groups or any(case.group is not None for case in metrics.cases) else "case"
    few = (
        f"Too few {what}s have a class ({basis.drawn}) to tell how clearly the result is above that."
        if above == "too few cases"
        else ""
    )
    nowhere = summarize([name for name, one in metrics.basis.items() if not one.present])
    nowhere = f"No {by} has {nowhere}." if nowhere and basis.present else ""
    out = "; ".join(f"{name} ({why})" for name, why in metrics.left_out.items())
    left_out = f"Not in the means over classes: {out}." if out else ""
    return " ".join(filter(None, (there, nowhere, alarms, floor, few, warn_of_floor(metrics), left_out)))


def _write_difference(basis: Basis) -> str:
    if basis.above_floor_interval is None:
        return ""
    low, high = (write_number("dice", end, "+") for end in basis.above_floor_interval)
    return f" (difference {write_number('dice', basis.above_floor, '+')}, 95 % interval {low} to {high})"


def counted_classes(names: Sequence[str], left_out: Mapping[str, str]) -> list[int]:
    """The places of the classes that means are over."""
    counted = [index for index, name in enumerate(names) if name not in left_out]
    if not counted:
        raise ConfigError(f"all classes ({', '.join(names)}) are left out of the means; leave one in")
    return counted


def groups_drawn(cases: Sequence[CaseMetrics]) -> list[str] | None:
    """The group of each case, if groups are to be drawn anew instead of cases."""
    return [group_of(case) for case in cases] if any(case.group is not None for case in cases) else None


def _mean_metrics(mean: np.ndarray, around: Sequence[Interval | None]) -> MeanMetrics:
    return MeanMetrics(**dict(zip(NAMES, mean.tolist(), strict=True)), intervals=dict(zip(NAMES, around, strict=True)))


def read_metrics(path: Path) -> Metrics:
    """Read what `dinounet evaluate` wrote; files of format 2 lack what means rest on, which their cases tell.

    Raises:
        DataError: the file is missing or no JSON.
        ConfigError: it is of an unknown format, or has been changed.
    """
    content = read_json(path, what="what `dinounet evaluate` wrote")
    if isinstance(content, dict) and content.get("format") == 2 and isinstance(content.get("cases"), list):
        cases = [to_record(CaseMetrics, case, where=f"{path}: cases[{i}]") for i, case in enumerate(content["cases"])]
        by_class, overall = rest_on(cases)
        basis = {name: asdict(one) for name, one in by_class.items()}
        content = {**content, "format": 3, "basis": basis, "basis_over_classes": asdict(overall)}
    return to_record(Metrics, content, where=str(path))
