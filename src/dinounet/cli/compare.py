"""`dinounet compare`: models side by side on the same cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinounet.evaluation.evaluate import TOLERANCE
from dinounet.schema.arguments import checked
from dinounet.schema.comparison import Comparison, Origin
from dinounet.schema.metrics import By


@checked
def compare(
    predictions: list[str],
    /,
    truth: Path,
    output: Path | None = None,
    *,
    labels: str | None = None,
    tolerance: float = TOLERANCE,
    by: By = "case",
    groups: Path | None = None,
) -> Comparison:
    """Compare models on the same cases: measures, paired differences to the first, Wilcoxon's p, wins and losses.

    All are evaluated afresh, as by `dinounet evaluate`. Also tells what training and prediction cost, as far as the
    folders' prediction.json and the runs that they name know.

    Args:
        predictions: Two folders of masks or more, or NAME=FOLDER to name a model otherwise than its folder.
        truth: Folder of masks by the same names; formats may differ.
        output: File for all of it as JSON.
        labels: Classes as background=0,lesion=1; by default as the predictions' or the dataset's own record tells.
        tolerance: How far apart surfaces count as the same for NSD, in mm, or in pixels where no spacing is known.
        by: What is scored: each case, or each group, such as the slices of a patient, with its pixels pooled.
        groups: CSV file with the columns case and group. Intervals are then over groups, since cases of a group depend
            on each other. By group, it isn't needed for a run's validation masks if the dataset has groups, nor where
            the truth has a folder for each group.

    Returns:
        The comparison.
    """
    import sys
    from dataclasses import asdict

    from dinounet.console import progress, say
    from dinounet.evaluation.comparison import common_labels, compare_models, evaluate_models, pair_models
    from dinounet.evaluation.groups import find_absent_in_any, find_at_the_detector
    from dinounet.evaluation.metrics import write_number
    from dinounet.io import require_file, write_json
    from dinounet.reporting.tables import describe_winners, print_comparison

    folders = _name_folders([str(folder) for folder in predictions])
    path = Path(output) if output else None
    if path:
        require_file(path)
    pairs = pair_models(folders, truth, by, Path(groups) if groups is not None else None)
    known = common_labels(folders, truth, labels)
    left_out = find_absent_in_any(folders, known)
    shadows = {name for folder in folders.values() for name in find_at_the_detector(folder)}
    with progress("comparing", sum(len(cases) for cases, _ in pairs.values())) as advance:
        metrics = evaluate_models(pairs, known, tolerance, lambda _: advance(), by, left_out, shadows)
    comparison = compare_models(metrics, folders, truth, {name: _origin(folder) for name, folder in folders.items()})
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, comparison)
    if sys.stdout.isatty():
        from rich.console import Console

        print_comparison(comparison, Console())
    means = [
        f"{model.name} {write_number('dice', model.mean_over_cases_and_classes.dice)}" for model in comparison.models
    ]
    scored = f"{len(comparison.groups)} groups" if by == "group" else f"{len(comparison.cases)} cases"
    say(
        "compared",
        f"mean foreground Dice over {scored}: {', '.join(means)}"
        + (f"; all of it in {path}" if path else "")
        + f". {describe_winners(comparison)}",
        models=[asdict(model) for model in comparison.models],
        unit=comparison.unit,
        volume_unit=comparison.volume_unit,
        tolerance=comparison.tolerance,
        by=comparison.by,
        cases=len(comparison.cases),
        groups=len(comparison.groups),
        left_out=comparison.left_out,
        highest=comparison.highest,
        highest_where_present=comparison.highest_where_present,
        comparison=path,
    )
    return comparison


def _name_folders(given: Sequence[str]) -> dict[str, Path]:
    """The folders by their names, or by those that are given to them."""
    from dinounet.errors import ConfigError

    if len(given) < 2:
        raise ConfigError(f"there is nothing to compare {' '.join(given)}; give two folders of predictions")
    folders: dict[str, Path] = {}
    for text in given:
        name, sign, folder = text.partition("=")
        if not sign or Path(text).is_dir():
            name, folder = Path(text).resolve().name, text
        if not name or not folder:
            raise ConfigError(f"{text!r} names no model and its folder; write NAME=FOLDER, or the folder alone")
        if name in folders:
            raise ConfigError(
                f"{folders[name]} and {folder} are both named {name}; give them names: first={folders[name]} "
                f"second={folder}"
            )
        folders[name] = Path(folder)
    return folders


def _origin(folder: Path) -> Origin:
    """What the folder's own record and its runs' tell of what it cost, folds added up; any may be gone."""
    from dinounet.io import PREDICTION
    from dinounet.schema.run import RECORD

    prediction = _content(folder / PREDICTION)
    models = prediction.get("models")
    known = [model for model in models if isinstance(model, Mapping)] if isinstance(models, list) else []
    records = [_content(Path(str(model.get("run"))) / RECORD) for model in known]
    parameters = _sum(records, "trained_parameters")
    seconds, images = (_sum([prediction], key) for key in ("seconds", "images"))
    return Origin(
        trained_parameters=None if parameters is None else int(parameters),
        training_seconds=_sum(records, "seconds"),
        seconds_per_image=seconds / images if seconds and images else None,
    )


def _content(path: Path) -> Mapping[str, Any]:
    from dinounet.errors import UserError
    from dinounet.io import read_json

    try:
        content = read_json(path, what="a record")
    except UserError:
        return {}
    return content if isinstance(content, Mapping) else {}


def _sum(records: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Over all of them; None where there is none, or one doesn't tell."""
    numbers = [number for record in records if isinstance(number := record.get(key), int | float)]
    return float(sum(numbers)) if numbers and len(numbers) == len(records) else None
