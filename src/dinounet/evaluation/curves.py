"""Curves of a training run as SVG that takes its colours from the page around it."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 300
"""A longer curve is drawn as the means of so many stretches."""

INK = "#012345"
"""Stands for the colour of the page's text, which the page fills in."""

VALIDATION = "#d55e00"
"""Of the validation loss."""


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
