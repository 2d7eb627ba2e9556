"""How Dice and HD95 spread over the cases: a strip of dots a class, each dot a case, over a box of the middle half.

Places are in percent of the strip's width, so that the page can draw it at any width with text of one size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dinounet.evaluation.digits import write_number
from dinounet.evaluation.records import WORDS, Empty, Metrics

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

ONE_EMPTY = ("truth", "prediction")


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
        name: [
            (case.case, float(getattr(case.classes[name], key)), case.classes[name].empty) for case in metrics.scored
        ]
        for name in metrics.classes
    }
    # a distance that the policy sets to the image's diagonal would squeeze all others into a corner
    measured = [value for found in cases.values() for _, value, empty in found if empty not in ONE_EMPTY]
    band = bool(unit) and len(measured) < len(metrics.scored) * len(cases)
    steps = _steps(max(measured, default=0.0)) if unit else [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    width = 100.0 - BAND if band else 100.0

    def place(value: float, empty: Empty | None = None) -> float:
        if band and (empty in ONE_EMPTY or value > steps[-1]):
            return 100.0 - BAND / 3
        return min(value / steps[-1], 1.0) * width

    strips = [_make_strip(name, found, place, unit) for name, found in cases.items()]
    ticks = tuple((place(step), f"{step:g}") for step in steps)
    return Distribution(f"{title} ({unit})" if unit else title, ticks, band, tuple(strips))


def _make_strip(
    name: str, cases: Sequence[tuple[str, float, Empty | None]], place: Callable[..., float], unit: str
) -> Strip:
    """The strip of cases, of which each has a name, a value, and where the class is empty. Only distances have a unit,
    and of them the largest is the worst."""
    ordered = sorted(cases, key=lambda case: (-case[1] if unit else case[1], case[0]))
    shown = ordered[:MOST_DOTS]
    across = [place(value, empty) for _, value, empty in shown]
    dots = [
        Dot(x, y, f"{case}: {_tell(value, unit)}" + (f", {WORDS[empty]}" if empty else ""), empty in ONE_EMPTY)
        for x, y, (case, value, empty) in zip(across, _lanes(across), shown, strict=True)
    ]
    worst, best = (f"{_tell(value, unit)} in {case}" for case, value, _ in (ordered[0], ordered[-1]))
    words = f"worst {worst}, best {best}"
    if ordered[0][1] == ordered[-1][1]:
        words = worst if len(cases) == 1 else f"all {_tell(ordered[0][1], unit)}"
    if len(cases) < FEWEST:
        return Strip(name, words, tuple(dots), None)
    low, middle, high = np.percentile([value for _, value, _ in cases], (25, 50, 75)).tolist()
    words = f"median {_tell(middle, unit)}, middle half {_tell(low, unit)} to {_tell(high, unit)}, {words}"
    return Strip(name, words, tuple(dots), (place(low), place(middle), place(high)))


def _tell(value: float, unit: str) -> str:
    return f"{write_number('hd95', value)} {unit}" if unit else write_number("dice", value)


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
