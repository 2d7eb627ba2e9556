"""How far means can be trusted, given the cases that there are.

The percentile bootstrap (Efron, doi:10.1214/aos/1176344552) over cases: cases are drawn anew with replacement, all
measures and classes of one together, since those of one case depend on each other. Where it is known which cases are of
one group, such as a patient, whole groups are drawn, for the same reason. Percentile rather than BCa, which has no
answer where all cases are alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dinounet.evaluation.records import Interval

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
