"""The report: one HTML file that shows what was trained on what, how well it segments, and where it fails."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinounet.data.images import colours_of
from dinounet.evaluation.means import describe_basis, warn_of_floor
from dinounet.evaluation.metrics import title_of, write_interval, write_number
from dinounet.io import atomic_write
from dinounet.reporting.case_images import CONFUSED, ERRORS, CasePicture
from dinounet.reporting.charts import MOST_DOTS, draw_reliability, make_charts, make_distributions
from dinounet.reporting.tables import describe_by, describe_tolerance
from dinounet.schema.metrics import NAMES, WORDS, Metrics, describe_empties, worst_first

LOW_DICE = 0.5
"""Dice under which a class counts as badly found."""


@dataclass(frozen=True)
class Failure:
    """One class of one case."""

    case: str
    """Its name, or the group's."""

    name: str
    """Name of the class."""

    dice: float
    """0 where only one of the masks is empty."""


def find_failures(metrics: Metrics) -> dict[str, list[Failure]]:
    """Failures by kind, each in one kind only, worst case first; a kind that there is none of has an empty list."""
    found: dict[str, list[Failure]] = {
        "Missed entirely": [],
        "Found where there is nothing": [],
        f"Found, with a Dice under {LOW_DICE}": [],
    }
    missed, invented, low = found.values()
    for case in worst_first(metrics.scored):
        for name, one in case.classes.items():
            failure = Failure(case.case, name, one.dice)
            if one.empty == "prediction":
                missed.append(failure)
            elif one.empty == "truth":
                invented.append(failure)
            elif one.dice < LOW_DICE:
                low.append(failure)
    return found


TEMPLATE, STYLE, SCRIPT = "report.html.jinja", "report.css", "report.js"

MOST_LISTED, MOST_OPEN = 20, 30
"""Failures of a kind that are listed at once, and cases up to which their table stands open; more are folded away."""

FACTS = {
    "Data": {
        "{}": "data.name",
        "training cases: {}": "data.training_cases",
        "validation cases: {}": "data.validation_cases",
        "fold: {}": "fold",
    },
    "Backbone, frozen": {
        "{}": "backbone.name",
        "weights: {}": "backbone.weights",
        "licence: {}": "backbone.licence",
        "parameters: {}": "frozen_parameters",  # 0 of a U-Net, which has none
    },
    "Network, trained": {
        "{}": "plan.network.architecture",
        "parameters: {}": "trained_parameters",
        "channels in: {}": "plan.network.in_channels",
        "outputs (classes with background, or regions): {}": "plan.network.num_classes",
    },
    "Training": {
        "{}": "status",
        "steps done: {}": "steps_done",
        "planned: {}": "duration",
        "recipe: {}": "plan.recipe.base",
        "optimizer: {}": "plan.recipe.optimizer",
        "patches per step: {}": "plan.recipe.batch_size",
        "learning rate: {}": "plan.recipe.learning_rate",
        "seed: {}": "plan.recipe.seed",
    },
    "Computed": {"on {}": "device", "in {}": "precision", "seconds: {}": "seconds", "started: {}": "started"},
}
"""What a reader asks of a run first: the words, and the key under which its record holds the answer."""


def write_report(
    path: Path,
    *,
    title: str,
    metrics: Metrics,
    pictures: Sequence[CasePicture] = (),
    run: Mapping[str, Any] | None = None,
    log: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
) -> None:
    """Write the report.

    Args:
        path: of the HTML file.
        title: stands at its head.
        metrics: of every case.
        pictures: of the worst cases, worst first.
        run: the content of `run.json`; keys that it lacks are left out.
        log: the lines of `log.jsonl`.
        notes: sentences that a reader must not miss; the run's own are added.
    """
    import jinja2

    run = run or {}
    made = {
        "Command": shlex.join(run.get("command", ())),
        "Versions": _join(run.get("versions", {})),
        "Machine": _join(run.get("machine", {})),
    }
    colours = colours_of(metrics.classes)
    anchors = {picture.case: f"case-{index}" for index, picture in enumerate(pictures, start=1)}
    rows = {case.case: f"row-{index}" for index, case in enumerate(metrics.worst_first, start=1)}
    group_rows = {group.case: f"group-{index}" for index, group in enumerate(worst_first(metrics.groups), start=1)}
    files = importlib.resources.files(__package__)
    style, script = (files.joinpath(name).read_text(encoding="utf-8") for name in (STYLE, SCRIPT))
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: files.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["data_uri"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode()
    html = environment.get_template(TEMPLATE).render(
        title=title,
        style=style,
        script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        notes=list(dict.fromkeys(filter(None, (warn_of_floor(metrics), *notes, *run.get("notes", ()))))),
        metrics=metrics,
        anchors=anchors,
        anchors_of_scored={**rows, **anchors} if metrics.by == "case" else group_rows,
        rows=rows,
        group_rows=group_rows,
        columns={name: title_of(name, metrics) for name in NAMES},
        worst_first=worst_first,
        write_number=write_number,
        write_interval=write_interval,
        tolerance=describe_tolerance(metrics),
        reliability=draw_reliability(metrics.calibration) if metrics.calibration else None,
        distributions=make_distributions(metrics),
        failures=find_failures(metrics),
        most_dots=MOST_DOTS,
        most_listed=MOST_LISTED,
        most_open=MOST_OPEN,
        pictures=pictures,
        charts=make_charts(log, colours),
        colours=colours,
        errors={name: colour for name, colour in ERRORS.items() if len(colours) > 1 or name != CONFUSED},
        words=WORDS,
        empties=describe_empties(metrics),
        basis=describe_basis(metrics),
        described_by=describe_by(metrics),
        facts={name: text for name, parts in FACTS.items() if (text := _tell(run, parts))},
        record=list(_flatten(run)),
        made={name: text for name, text in made.items() if text},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _tell(run: Mapping[str, Any], parts: Mapping[str, str]) -> str:
    """The parts that the record can fill, as one phrase."""
    found = {words: _at(run, key) for words, key in parts.items()}
    return " · ".join(words.format(_write(value)) for words, value in found.items() if value is not None)


def _at(run: Mapping[str, Any], key: str) -> Any:
    """What stands under a dotted key; None if nothing does."""
    value: Any = run
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _write(value: Any) -> str:
    """A value for reading: of a list how many it has, of a large number its groups of three."""
    if isinstance(value, list | tuple):
        return str(len(value))
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000:
        return f"{value:,}".replace(",", "\u202f")
    return str(value)


def _flatten(content: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Every key of the record, dotted, and its value."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{before}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{before}{key}", ", ".join(map(str, value))
        else:
            yield f"{before}{key}", str(value)


def _join(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())
