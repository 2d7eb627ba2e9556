"""Metrics on a terminal, readable at 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dinounet.evaluation.metrics import NAMES
from dinounet.evaluation.records import WORDS, Interval, Metrics, describe_empties

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

TITLES = {
    "dice": "Dice",
    "iou": "IoU",
    "nsd": "NSD",
    "precision": "precision",
    "recall": "recall",
    "hd95": "HD95",
    "assd": "ASSD",
    "volume_difference": "volume difference",
}
"""What people call the measures."""

OF_EVERY_CASE = ("dice", "nsd", "hd95", "assd")
"""Measures that have room at 80 columns; the CSV has them all."""


def print_table(metrics: Metrics, console: Console) -> None:
    """Print every case and class, the means of all measures, the policy and how often it applied."""
    from rich.text import Text

    units = {name: unit_of(name, metrics) for name in NAMES}
    table = _table("case", "class")
    for name in OF_EVERY_CASE:
        table.add_column(TITLES[name] + (f" ({units[name]})" if units[name] else ""), justify="right", no_wrap=True)
    table.add_column("")
    for case in metrics.cases:
        for index, (name, found) in enumerate(case.classes.items()):
            numbers = [write_number(measure, getattr(found, measure)) for measure in OF_EVERY_CASE]
            remark = WORDS[found.empty] if found.empty else ""
            table.add_row(Text("" if index else case.case), Text(name), *numbers, remark)
    console.print(table)

    table = _table("", "measure")
    for title in ("mean", "95 % interval"):
        table.add_column(title, justify="right", no_wrap=True)
    groups = {f"{name}, mean over {_count(metrics)}": mean for name, mean in metrics.mean_over_cases.items()}
    groups["all, mean over cases and classes"] = metrics.mean_over_cases_and_classes
    for group, mean in groups.items():
        for index, name in enumerate(NAMES):
            title = TITLES[name] + (f" ({units[name]})" if units[name] else "")
            number = write_number(name, getattr(mean, name))
            table.add_row(Text("" if index else group), title, number, write_interval(name, mean.intervals[name]))
        table.add_section()
    console.print(table)
    remark = metrics.remark_on_ignored.replace("; ", ". ")
    text = f"{remark}{describe_tolerance(metrics)} {metrics.bootstrap} {metrics.policy} {describe_empties(metrics)}"
    console.print(text, style="dim", highlight=False, markup=False)


def describe_tolerance(metrics: Metrics) -> str:
    """Which tolerance NSD has, in a sentence."""
    return f"NSD is the share of the surfaces that is within {metrics.tolerance:g} {metrics.unit} of the other."


def unit_of(name: str, metrics: Metrics) -> str:
    """A measure's unit; empty for shares."""
    return {"hd95": metrics.unit, "assd": metrics.unit, "volume_difference": metrics.volume_unit}.get(name, "")


def write_number(name: str, number: float) -> str:
    """A measure with the digits that matter."""
    return f"{number:.2f}" if name in ("hd95", "assd", "volume_difference") else f"{number:.3f}"


def write_interval(name: str, interval: Interval | None) -> str:
    """From where to where; of one case there is none."""
    return "one case only" if interval is None else " to ".join(write_number(name, end) for end in interval)


def _count(metrics: Metrics) -> str:
    return f"{len(metrics.cases)} case{'s' if len(metrics.cases) > 1 else ''}"


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(*columns, box=SIMPLE_HEAD)
