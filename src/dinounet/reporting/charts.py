"""Charts of the report as SVG: curves of training, distributions of measures, the reliability diagram."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dinounet.evaluation.metrics import write_number
from dinounet.schema.metrics import WORDS, Calibration, Empty, Metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    """Name of the class."""

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
    """Ticks of the axis: position in percent, and label."""

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


POINTS = 300
"""A longer curve is drawn as the means of so many stretches."""

INK = "#012345"
"""Stands for the colour of the page's text, which the page fills in."""

VALIDATION = "#d55e00"
"""Colour of the validation loss."""


@dataclass(frozen=True)
class Curve:
    """A line over steps."""

    name: str
    """What it is."""

    colour: str
    """As CSS writes it."""

    steps: tuple[float, ...]
    """Rising."""

    values: tuple[float, ...]
    """One a step."""

    @property
    def last(self) -> float:
        """The value that it ends at."""
        return self.values[-1]


@dataclass(frozen=True)
class Chart:
    """Curves that share their axes."""

    title: str
    """What is drawn."""

    curves: tuple[Curve, ...]
    """At least one."""

    svg: str
    """An element to stand within a page; it holds no text but numbers and the names of the axes."""


def make_charts(log: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> list[Chart]:
    """Charts of the loss and of the validation Dice of each class; what the log doesn't hold is left out.

    Args:
        log: entries with `step` and `loss`, and entries with `step`, `validation_loss` and `validation_dice` by class.
        colours: of the classes.
    """
    losses = [
        _shorten(_collect("training loss", "currentcolor", [(entry, entry.get("loss")) for entry in log])),
        _collect("validation loss", VALIDATION, [(entry, entry.get("validation_loss")) for entry in log]),
    ]
    dice = [
        _collect(name, colour, [(entry, (entry.get("validation_dice") or {}).get(name)) for entry in log])
        for name, colour in colours.items()
    ]
    last_step = max((curve.steps[-1] for curve in (*losses, *dice) if curve.steps), default=1.0)
    charts = []
    for title, curves, limits in (("Loss", losses, None), ("Validation Dice", dice, (0.0, 1.0))):
        filled = tuple(curve for curve in curves if curve.values)
        if filled:
            charts.append(Chart(title, filled, _draw(title, filled, limits, last_step)))
    return charts


def _collect(name: str, colour: str, entries: Sequence[tuple[Mapping[str, Any], Any]]) -> Curve:
    points = [
        (float(entry["step"]), float(value))
        for entry, value in entries
        if "step" in entry and value is not None and math.isfinite(value)
    ]
    return Curve(name, colour, tuple(step for step, _ in points), tuple(value for _, value in points))


def _shorten(curve: Curve) -> Curve:
    if len(curve.values) <= POINTS:
        return curve
    steps, values = (
        tuple(float(part.mean()) for part in np.array_split(np.asarray(numbers), POINTS))
        for numbers in (curve.steps, curve.values)
    )
    return Curve(f"{curve.name} (means of {len(curve.values) / POINTS:.3g} steps)", curve.colour, steps, values)


def _draw(title: str, curves: Sequence[Curve], limits: tuple[float, float] | None, last_step: float) -> str:
    def draw(axes: Axes) -> None:
        for curve in curves:
            colour = INK if curve.colour == "currentcolor" else curve.colour
            marker = "o" if len(curve.values) <= 40 else ""
            axes.plot(curve.steps, curve.values, color=colour, linewidth=1.3, marker=marker, markersize=2.6)
        axes.set_xlim(0, last_step)
        if limits:
            axes.set_ylim(*limits)
        axes.set_xlabel("step", color=INK)
        axes.set_ylabel(title.rsplit(" ", 1)[-1].replace("Loss", "loss"), color=INK)

    ends = ", ".join(f"{curve.name} {curve.last:.3f}" for curve in curves)
    return draw_svg(draw, title, f"{title} against step, at the end: {ends}")


def draw_svg(draw: Callable[[Axes], None], name: str, label: str, size: tuple[float, float] = (4.8, 2.7)) -> str:
    """An SVG element to stand within a page, whose ink is that of the text around it.

    Args:
        draw: draws on the axes, in `INK` what is to have the page's ink.
        name: unlike that of any other drawing on the page.
        label: what is to be seen, for those who can't.
        size: in inches; as an element it is as wide as its place.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.tick_params(color=INK, labelcolor=INK, width=0.6, length=3)
        axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set(color=INK, linewidth=0.6, alpha=0.5)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True)
    return _embed(file.getvalue(), name, label)


def _embed(svg: str, name: str, label: str) -> str:
    """Make a file's SVG an element of a page: what is drawn, in its font, with names like no other drawing's."""
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None
    drawn = svg[svg.index(">", svg.index("<svg")) + 1 :]
    drawn = re.sub(r"<(metadata|style)\b.*?</\1>| font-family: [^;]*;", "", drawn, flags=re.DOTALL)
    drawn = drawn.replace("xlink:href", "href").replace(INK, "currentcolor")
    prefix = name.lower().replace(" ", "-")
    drawn = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{prefix}-", drawn)
    return f'<svg role="img" aria-label="{html.escape(label)}" {view_box.group()}>{drawn.strip()}'


LINE = "#0072b2"


def draw_reliability(calibration: Calibration) -> str:
    """Accuracy against confidence, over bars of how many decisions each bin holds; an SVG element."""
    points = [
        (one.confidence, one.accuracy)
        for one in calibration.bins
        if one.confidence is not None and one.accuracy is not None
    ]

    def draw(axes: Axes) -> None:
        for one in calibration.bins:
            share = one.count / calibration.count
            axes.bar(one.low, share, one.high - one.low, align="edge", color=INK, alpha=0.13, edgecolor="none")
        axes.plot((0, 1), (0, 1), color=INK, linewidth=0.8, linestyle=":")
        axes.plot(*zip(*points, strict=True), color=LINE, linewidth=1.3, marker="o", markersize=3.5)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.set_xlabel("confidence", color=INK)
        axes.set_ylabel("share that is right", color=INK)

    words = ", ".join(f"{accuracy:.2f} at {confidence:.2f}" for confidence, accuracy in points)
    return draw_svg(draw, "Reliability", f"Share of decisions that is right, by confidence: {words}", (3.6, 3.4))
