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
    """Write results as one self-contained HTML page: training settings, curves, tables, and pictures, worst case first.

    Args:
        predictions: Folder of predicted masks.
        truth: Folder of ground-truth masks with the same names.
        output: HTML file to write.
        images: Folder of the images.
        run: Folder written by `dinounet train`, for the learning curves and the training settings.
        metrics: File written by `dinounet evaluate`, by default metrics.json in the folder of predictions.
        title: Title of the page.
        pictures: Number of cases to show as pictures, worst first; the tables contain all cases.

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
    """Compare models on the same cases: metrics, paired differences to the first, Wilcoxon's p, wins and losses.

    All predictions are evaluated anew, as by `dinounet evaluate`. The cost of training and prediction is included if
    the folders' prediction.json and the runs named in it are available.

    Args:
        predictions: At least two folders of masks, or NAME=FOLDER to give a model another name than its folder's.
        truth: Folder of ground-truth masks with the same names; formats may differ.
        output: JSON file for the comparison.
        labels: Classes such as background=0,lesion=1; by default read from the predictions' or the dataset's own files.
        tolerance: Tolerance of NSD: the distance at which surfaces still count as equal, in mm, or in pixels if the
            spacing is unknown.
        by: Unit to score: each case, or each group, such as the slices of a patient, with its pixels pooled.
        groups: CSV file with the columns case and group. Confidence intervals are then computed over groups, since
            cases of a group are not independent. --by group does not need it for a run's validation masks if the
            dataset has groups, nor if the ground truth has one folder per group.

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
    """Compare predictions with the ground truth: overlap and surface distances per class and case, and their means.

    Reports Dice, IoU, precision, recall, HD95, ASSD (average symmetric surface distance), NSD (surface Dice at a
    tolerance) and volume difference, in mm if the spacing is known, else in pixels. Beside each mean it reports the
    mean over the cases that contain the class, the false alarms in the others, and the score of an all-background
    prediction.

    Args:
        predictions: Folder of predicted masks.
        truth: Folder of ground-truth masks with the same names; formats may differ.
        output: JSON file for the metrics, by default metrics.json in the folder of predictions. A CSV file of the same
            name is written beside it.
        labels: Classes such as background=0,lesion=1, or background=#000000,lesion=#ff0000 if the ground truth is in
            colours (pixels of a class named ignore are left out); by default read from the predictions' or the
            dataset's own files.
        tolerance: Tolerance of NSD: the distance at which surfaces still count as equal, in mm, or in pixels if the
            spacing is unknown.
        by: Unit to score: each case, or each group, such as the slices of a patient, with its pixels pooled.
        groups: CSV file with the columns case and group. Confidence intervals are then computed over groups, since
            cases of a group are not independent. --by group does not need it for a run's validation masks if the
            dataset has groups, nor if the ground truth has one folder per group.

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
