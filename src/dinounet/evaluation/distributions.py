"""How Dice and HD95 spread over the cases: a strip of dots a class, each dot a case, over a box of the middle half.

Places are in percent of the strip's width, so that the page can draw it at any width with text of one size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dinounet.evaluation.records import WORDS, Metrics

MOST_DOTS = 200
"""Of a class; with more cases the worst ones are dots, and the box still stands for all."""

FEWEST = 5
"""Cases from which on a median and quartiles say something that the dots don't."""

DOT = 1.8
"""Share of the strip's width that a dot takes where it is narrowest, in percent; nearer ones go above or below."""

LANES = (0, -8, 8, -16, 16)
"""How far above or below the middle a dot may go, in CSS pixels."""

BAND = 9.0
"""Share of the width, in percent, that is kept for cases without a distance to measure."""


@dataclass(frozen=True)
class Dot:
    """One case."""

    x: float
    """Place across, in percent."""

    y: int
    """Place below the middle, in CSS pixels."""

    text: str
    """The case and its value, in words."""

    empty: bool
    """Whether one of the masks is empty, so that the value is the policy's."""


@dataclass(frozen=True)
class Strip:
    """One class."""

    name: str
    """Of the class."""

    words: str
    """What the strip shows, for those who can't see it."""

    dots: tuple[Dot, ...]
    """The cases, worst first."""

    box: tuple[float, float, float] | None
    """First quartile, median and third quartile, in percent across; None with few cases."""


@dataclass(frozen=True)
class Distribution:
    """The strips of all classes on one axis."""

    title: str
    """What is drawn, with its unit."""

    ticks: tuple[tuple[float, str], ...]
    """Of the axis: place in percent, and what is written there."""

    band: bool
    """Whether cases whose one mask is empty stand beside the axis, in a band of their own."""

    strips: tuple[Strip, ...]
    """One a class."""


def make_distributions(metrics: Metrics) -> list[Distribution]:
    """Distributions of Dice and of HD95 by class."""
    return [_spread(metrics, "dice", "Dice", ""), _spread(metrics, "hd95", "HD95", metrics.unit)]


def _spread(metrics: Metrics, key: str, title: str, unit: str) -> Distribution:
    cases = {
        name: [(case.case, getattr(case.classes[name], key), case.classes[name].empty) for case in metrics.cases]
        for name in metrics.classes
    }
    # a distance that the policy sets to the image's diagonal would squeeze all others into a corner
    measured = [value for found in cases.values() for _, value, empty in found if empty in (None, "both")]
    band = bool(unit) and len(measured) < len(metrics.cases) * len(cases)
    steps = _steps(max(measured, default=0.0)) if unit else [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    scale = (100.0 - BAND * band) / steps[-1]

    def place(value: float) -> float:
        return min(value, steps[-1]) * scale if not band or value <= steps[-1] else 100.0 - BAND / 3

    worst_first = -1 if unit else 1
    strips = []
    for name, found in cases.items():
        shown = sorted(found, key=lambda one: (worst_first * one[1], one[0]))[:MOST_DOTS]
        across = [100.0 - BAND / 3 if band and empty in ("truth", "prediction") else place(v) for _, v, empty in shown]
        dots = [
            Dot(x, y, f"{case}: {_tell(v, unit)}{f', {WORDS[empty]}' if empty else ''}", empty not in (None, "both"))
            for x, y, (case, v, empty) in zip(across, _lanes(across), shown, strict=True)
        ]
        best = max(found, key=lambda one: worst_first * one[1])
        words = [f"{how} {_tell(v, unit)} in {case}" for how, (case, v, _) in (("worst", shown[0]), ("best", best))]
        box = None
        if len(found) >= FEWEST:
            low, middle, high = (float(part) for part in np.percentile([value for _, value, _ in found], (25, 50, 75)))
            box = place(low), place(middle), place(high)
            words = [f"median {_tell(middle, unit)}", f"middle half {_tell(low, unit)} to {_tell(high, unit)}", *words]
        if len(found) == 1:
            words = [words[0].removeprefix("worst ")]
        strips.append(Strip(name, ", ".join(words), tuple(dots), box))
    ticks = tuple((step * scale, f"{step:g}") for step in steps)
    return Distribution(f"{title} ({unit})" if unit else title, ticks, band, tuple(strips))


def _tell(value: float, unit: str) -> str:
    return f"{value:.2f} {unit}" if unit else f"{value:.3f}"


def _steps(largest: float) -> list[float]:
    """Round numbers from 0 to at least the largest."""
    if largest <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(largest / 5))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * 5 >= largest)
    return [index * step for index in range(math.ceil(largest / step - 1e-9) + 1)]


def _lanes(across: Sequence[float]) -> list[int]:
    """The lane of each dot: the nearest to the middle that has room, or the middle if none has."""
    lanes = [0] * len(across)
    ends = dict.fromkeys(LANES, -math.inf)
    for index in sorted(range(len(across)), key=lambda index: across[index]):
        lane = next((lane for lane in LANES if across[index] - ends[lane] >= DOT), 0)
        lanes[index], ends[lane] = lane, across[index]
    return lanes
