"""How far means can be trusted, given the cases that there are.

The percentile bootstrap (Efron, doi:10.1214/aos/1176344552) over cases: cases are drawn anew with replacement, all
measures and classes of one together, since those of one case depend on each other. Percentile rather than BCa, which
has no answer where all cases are alike.
"""

from __future__ import annotations

import numpy as np

RESAMPLES = 2000
SEED = 0
BOOTSTRAP = f"Intervals: 95 %, percentile bootstrap over cases, {RESAMPLES:,} resamples, seed {SEED}."
"""How intervals came about, in a sentence for their readers."""

AT_ONCE = 100
"""Resamples; with thousands of cases more would fill the memory."""


def intervals_of_means(numbers: np.ndarray) -> list[list[tuple[float, float] | None]]:
    """Where the mean over the cases lies with a confidence of 95 %; None where there is one case only.

    Args:
        numbers: (cases, classes, measures).

    Returns:
        A list of measures for each class.
    """
    cases, classes, measures = numbers.shape
    if cases < 2:
        return [[None] * measures for _ in range(classes)]
    generator = np.random.default_rng(SEED)
    flat, shares = numbers.reshape(cases, -1), np.full(cases, 1 / cases)
    means = np.concatenate(
        [generator.multinomial(cases, shares, AT_ONCE) @ flat / cases for _ in range(RESAMPLES // AT_ONCE)]
    )
    low, high = np.percentile(means, [2.5, 97.5], axis=0).reshape(2, classes, measures).tolist()
    return [list(zip(*ends, strict=True)) for ends in zip(low, high, strict=True)]
