"""`dinounet evaluate`: predictions against the truth."""

from __future__ import annotations

from pathlib import Path

from dinounet.evaluation.evaluate import TOLERANCE
from dinounet.schema.arguments import checked
from dinounet.schema.metrics import By, Metrics


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
            predictions, truth, found.labels, path, lambda _: advance(),
            regions=found.regions, ignore=found.ignore, colours=found.colours, tolerance=tolerance, by=by,
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
