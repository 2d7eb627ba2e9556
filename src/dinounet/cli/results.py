"""`dinounet evaluate`, `dinounet compare` and `dinounet report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinounet.evaluation.evaluate import TOLERANCE
from dinounet.schema.arguments import checked
from dinounet.schema.comparison import Comparison, Origin
from dinounet.schema.metrics import By, Metrics


@checked
def report(
    predictions: Path,
    truth: Path,
    /,
    output: Path,
    *,
    images: Path,
    run: Path | None = None,
    metrics: Path | None = None,
    title: str = "Dino U-Net",
    pictures: int = 12,
) -> Path:
    """Put results into one self-contained HTML page: what was trained, curves, tables, and pictures, worst case first.

    Args:
        predictions: Folder of masks.
        truth: Folder of masks by the same names.
        output: The page.
        images: Folder of the images.
        run: Folder that `dinounet train` wrote, for the curves and for what was trained on what.
        metrics: What `dinounet evaluate` wrote; by default metrics.json among the predictions.
        title: Of the page.
        pictures: Cases to picture, worst first; the tables hold all.

    Returns:
        The page's path.
    """
    from dinounet.console import say
    from dinounet.evaluation.means import read_metrics
    from dinounet.io import METRICS, require_file
    from dinounet.reporting.case_images import make_pictures
    from dinounet.reporting.report import write_report
    from dinounet.schema.run import read_log, read_run, tell

    require_file(output)
    path = Path(metrics) if metrics else predictions / METRICS
    found = read_metrics(path)
    write_report(
        output,
        title=title,
        metrics=found,
        pictures=make_pictures(found, predictions, truth, images, pictures),
        run=tell(read_run(Path(run))) if run else None,
        log=read_log(Path(run)) if run else [],
    )
    say("report", f"open {output}", report=str(output))
    return output


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


@checked
def evaluate(
    predictions: Path,
    truth: Path,
    /,
    output: Path | None = None,
    *,
    labels: str | None = None,
    tolerance: float = TOLERANCE,
    by: By = "case",
    groups: Path | None = None,
) -> Metrics:
    """Compare predictions with the truth: overlap and distances of every class in every case, and their means.

    Measures Dice, IoU, precision, recall, HD95, ASSD (average symmetric surface distance), NSD (surface Dice at a
    tolerance) and volume difference, in mm where the spacing is known and else in pixels. Beside the means stand those
    over the cases that have the class, false alarms in the others, and what all background would score.

    Args:
        predictions: Folder of masks.
        truth: Folder of masks by the same names; formats may differ.
        output: File for the metrics as JSON; by default metrics.json among the predictions. A CSV file of the same name
            goes beside it.
        labels: Classes as background=0,lesion=1, or of a truth in colours background=#000000,lesion=#ff0000 (the name
            ignore stands for pixels to leave out); by default as the predictions' or the dataset's own record tells.
        tolerance: How far apart surfaces count as the same for NSD, in mm, or in pixels where no spacing is known.
        by: What is scored: each case, or each group, such as the slices of a patient, with its pixels pooled.
        groups: CSV file with the columns case and group. Intervals are then over groups, since cases of a group depend
            on each other. By group, it isn't needed for a run's validation masks if the dataset has groups, nor where
            the truth has a folder for each group.

    Returns:
        The metrics.
    """
    import sys
    from dataclasses import asdict

    from dinounet.console import progress, say
    from dinounet.errors import ConfigError
    from dinounet.evaluation.evaluate import evaluate_folders, find_masks
    from dinounet.evaluation.groups import find_labels
    from dinounet.evaluation.means import describe_basis, warn_of_floor
    from dinounet.evaluation.metrics import write_number
    from dinounet.io import METRICS, require_file
    from dinounet.reporting.tables import print_table
    from dinounet.schema.metrics import NAMES, count_empties

    cases = len(find_masks(truth, find_masks(predictions)))  # before their labels, of which a missing folder has none
    found = find_labels(predictions, truth, labels)
    path = Path(output) if output else predictions / METRICS
    if path.suffix == ".csv":
        raise ConfigError(f"{path} is where the table goes; name the JSON file with -o, and a CSV goes beside it")
    require_file(path)
    require_file(path.with_suffix(".csv"))
    with progress("evaluating", cases) as advance:
        metrics = evaluate_folders(
            predictions, truth, found, path, lambda _: advance(),
            tolerance=tolerance, by=by,
            groups=Path(groups) if groups is not None else None,
        )  # fmt: skip
    if sys.stdout.isatty():
        from rich.console import Console

        print_table(metrics, Console())
    mean, basis, warning = metrics.mean_over_cases_and_classes, metrics.basis_over_classes, warn_of_floor(metrics)
    there = basis.mean_where_present
    say(
        "evaluated",
        f"mean foreground Dice{' by group' * (by == 'group')} {write_number('dice', mean.dice)}, "
        f"HD95 {write_number('hd95', mean.hd95)} {metrics.unit}, NSD {write_number('nsd', mean.nsd)}; "
        f"{metrics.remark_on_ignored}all of it in {path} and {path.with_suffix('.csv').name}. "
        f"{describe_basis(metrics)}",
        **{name: getattr(mean, name) for name in NAMES},
        unit=metrics.unit,
        volume_unit=metrics.volume_unit,
        tolerance=metrics.tolerance,
        by=metrics.by,
        cases=len(metrics.cases),
        groups=len(metrics.groups),
        dice_where_present=there.dice if there else None,
        present=basis.present,
        absent=basis.absent,
        false_alarms=basis.false_alarms,
        floor=basis.floor,
        warning=warning or None,
        empties=asdict(count_empties(metrics.empties)),
        ignored_pixels=metrics.ignored_pixels,
        calibration_error=metrics.calibration.ece if metrics.calibration else None,
        metrics=str(path),
    )
    return metrics
