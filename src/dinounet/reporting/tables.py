"""Metrics on a terminal, readable at 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from dinounet.evaluation.comparison import COMPARED
from dinounet.evaluation.means import describe_basis
from dinounet.evaluation.metrics import title_of, write_interval, write_number
from dinounet.schema.comparison import Comparison
from dinounet.schema.metrics import NAMES, WORDS, Interval, Metrics, count_empties, describe_empties

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


OF_EVERY_CASE = ("dice", "nsd", "hd95", "assd")
"""Measures that have room at 80 columns; the CSV has them all."""


def print_table(metrics: Metrics, console: Console) -> None:
    """Print every case, or group, and class, the means of all measures, what these rest on, and the policy."""
    from rich.text import Text

    table = _table(metrics.by, "class")
    for name in OF_EVERY_CASE:
        table.add_column(title_of(name, metrics), justify="right", no_wrap=True)
    table.add_column("")
    for case in metrics.scored:
        for index, (name, found) in enumerate(case.classes.items()):
            numbers = [write_number(measure, getattr(found, measure)) for measure in OF_EVERY_CASE]
            remark = WORDS[found.empty] if found.empty else ""
            table.add_row(Text("" if index else case.case), Text(name), *numbers, remark)
    console.print(table)

    table = _table("", "measure")
    for title in ("mean", "95 % interval"):
        table.add_column(title, justify="right", no_wrap=True)
    groups = {f"{name}, mean over {_count(metrics)}": mean for name, mean in metrics.mean_over_cases.items()}
    groups[f"mean over {metrics.by}s and classes"] = metrics.mean_over_cases_and_classes
    for group, mean in groups.items():
        for index, name in enumerate(NAMES):
            number = write_number(name, getattr(mean, name))
            interval = write_interval(name, mean.intervals[name], metrics.by)
            table.add_row(Text("" if index else group), title_of(name, metrics), number, interval)
        table.add_section()
    console.print(table)
    console.print(_bases(metrics))
    console.print(describe_basis(metrics), highlight=False, markup=False)
    remark = metrics.remark_on_ignored.replace("; ", ". ")
    sentences = describe_tolerance(metrics), describe_calibration(metrics), metrics.bootstrap, metrics.policy
    text = " ".join(filter(None, (*sentences, describe_empties(metrics), describe_by(metrics))))
    console.print(f"{remark}{text}", style="dim", highlight=False, markup=False)


def _bases(metrics: Metrics) -> Table:
    """What the mean Dice of each class rests on."""
    from rich.text import Text

    table = _table("")
    for title in (f"{metrics.by}s\nwith it", "Dice there", "false\nalarms", "all-back-\nground", "above that"):
        table.add_column(title, justify="right", no_wrap=True)
    rows = {**metrics.basis, **({"all": metrics.basis_over_classes} if len(metrics.basis) > 1 else {})}
    for name, basis in rows.items():
        there = basis.mean_where_present
        dice = f"{write_number('dice', there.dice)}\n{_around(there.intervals['dice'], metrics)}" if there else ""
        above = f"{write_number('dice', basis.above_floor, '+')}\n{_around(basis.above_floor_interval, metrics)}"
        alarms = f"{basis.false_alarms} of {basis.absent}"
        table.add_row(Text(name), str(basis.present), dice, alarms, write_number("dice", basis.floor), above)
    return table


def _around(interval: Interval | None, metrics: Metrics) -> str:
    return write_interval("dice", interval, metrics.by)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the models, the means of all measures, and the differences to the first model, class by class."""
    first = comparison.models[0]
    console.print(_models(comparison))
    # of a single class the mean over classes is the same again
    scopes = list(first.mean_over_cases) if len(first.mean_over_cases) > 1 else []
    for scope in (*scopes, None):
        heading = f"{scope}, mean over {_count(comparison)}" if scope else f"mean over {comparison.by}s and classes"
        console.print(heading, style="bold", highlight=False, markup=False)
        console.print(_means(comparison, scope))
        console.print(f"difference to {first.name}", style="bold", highlight=False, markup=False)
        console.print(_differences(comparison, scope))
    text = (
        f"{describe_tolerance(comparison)} {comparison.bootstrap} p: Wilcoxon's signed-rank test, two-sided, not "
        f"corrected for the number of comparisons; same: no {comparison.by} differs. {comparison.policy}"
    )
    console.print(describe_winners(comparison), style="bold", highlight=False, markup=False)
    console.print(text, style="dim", highlight=False, markup=False)


def _models(comparison: Comparison) -> Table:
    from rich.text import Text

    table = _table("model")
    for title in ("parameters trained", "training time", "seconds an image", "missed"):
        table.add_column(title, justify="right")
    for model in comparison.models:
        origin = model.origin
        table.add_row(
            Text(model.name),
            "unknown" if origin.trained_parameters is None else f"{origin.trained_parameters:,}",
            "unknown" if origin.training_seconds is None else str(timedelta(seconds=round(origin.training_seconds))),
            "unknown" if origin.seconds_per_image is None else f"{origin.seconds_per_image:.2f}",
            str(count_empties(model.empties).prediction),
        )
    return table


def _means(comparison: Comparison, scope: str | None) -> Table:
    """Table of means, of a class or, with scope None, over all classes."""
    from rich.text import Text

    table = _table("measure", "model")
    for title in ("mean", "95 % interval"):
        table.add_column(title, justify="right", no_wrap=True)
    for name in NAMES:
        for index, model in enumerate(comparison.models):
            mean = model.mean_over_cases[scope] if scope else model.mean_over_cases_and_classes
            number = write_number(name, getattr(mean, name))
            interval = write_interval(name, mean.intervals[name], comparison.by)
            table.add_row("" if index else title_of(name, comparison), Text(model.name), number, interval)
    return table


def _differences(comparison: Comparison, scope: str | None) -> Table:
    """Table of differences, of a class or, with scope None, over all classes."""
    from rich.text import Text

    table = _table("measure", "model")
    table.columns[0].no_wrap = True
    for title in ("difference", "95 % interval", "p", "wins/\nties/\nlosses"):
        table.add_column(title, justify="right", no_wrap=True)
    for name in COMPARED:
        for index, model in enumerate(comparison.models[1:]):
            found = model.differences[scope] if scope and model.differences else model.differences_over_classes
            assert found is not None
            one, title = found[name], "" if index else title_of(name, comparison)
            number, interval = write_number(name, one.mean, "+"), write_interval(name, one.interval, comparison.by)
            p = "1, same" if one.ties == one.wins + one.ties + one.losses else f"{one.p:.3g}"
            table.add_row(title, Text(model.name), number, interval, p, f"{one.wins}/{one.ties}/{one.losses}")
    return table


def describe_tolerance(metrics: Metrics | Comparison) -> str:
    """Which tolerance NSD has, in a sentence."""
    return f"NSD is the share of the surfaces that is within {metrics.tolerance:g} {metrics.unit} of the other."


def describe_winners(comparison: Comparison) -> str:
    """Which model has which highest mean, and which isn't clearly above an all-background prediction, in words."""
    dices, present = {}, {}
    for model in comparison.models:
        dices[model.name] = write_number("dice", model.mean_over_cases_and_classes.dice)
        if model.basis_over_classes.mean_where_present:
            present[model.name] = write_number("dice", model.basis_over_classes.mean_where_present.dice)
    floor = write_number("dice", comparison.models[0].basis_over_classes.floor)
    by = comparison.by
    out = "; ".join(f"{name} ({why})" for name, why in comparison.left_out.items())
    return " ".join(
        [
            f"Highest mean Dice over all {by}s: {_name_highest(comparison.highest, dices)}; an all-background "
            f"prediction would score {floor}.",
            f"Highest over the {by}s that have the class: {_name_highest(comparison.highest_where_present, present)}."
            if present
            else f"No {by} has a class.",
            *(model.warning for model in comparison.models if model.warning),
            *([f"Not in the means over classes, of any model: {out}."] if out else []),
        ]
    )


def _name_highest(names: Sequence[str], dices: Mapping[str, str]) -> str:
    """The models with the highest mean, and those of the others."""
    others = [f"{name} {dice}" for name, dice in dices.items() if name not in names]
    same = f"all the same ({dices[names[0]]})" if not others and len(names) > 1 else ""
    return same or f"{' and '.join(names)} {dices[names[0]]}" + (f" ({', '.join(others)})" if others else "")


def describe_by(metrics: Metrics | Comparison) -> str:
    """What was scored, if not each case, in a sentence."""
    if metrics.by == "case":
        return ""
    return (
        f"Scored by group: the pixels of {len(metrics.cases)} cases are pooled in {len(metrics.groups)} groups, and so "
        "are the distances between their surfaces, which are measured within each case."
    )


def describe_calibration(metrics: Metrics) -> str:
    """How far probabilities can be trusted, in a sentence; empty where none were kept."""
    if metrics.calibration is None:
        return ""
    return (
        f"The probabilities' expected calibration error is {metrics.calibration.ece:.4f} over "
        f"{metrics.calibration.count:,} decisions."
    )


def _count(metrics: Metrics | Comparison) -> str:
    number = len(metrics.groups if metrics.by == "group" else metrics.cases)
    return f"{number} {metrics.by}{'s' if number > 1 else ''}"


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(*columns, box=SIMPLE_HEAD)
