"""`dinounet evaluate`: predictions against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from dinounet.evaluation.evaluate import Metrics


def evaluate(
    predictions: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PREDICTIONS")],
    truth: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TRUTH")],
    /,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    *,
    labels: str | None = None,
) -> Metrics:
    """Compare predictions with the truth: Dice and HD95 of every class in every case, and their means.

    Args:
        predictions: Folder of masks.
        truth: Folder of masks by the same names; formats may differ.
        output: File for the metrics as JSON; by default metrics.json among the predictions.
        labels: Classes as background=0,lesion=1, or of a truth in colours background=#000000,lesion=#ff0000 (the name
            ignore stands for pixels to leave out); by default as the predictions' or the dataset's own record tells.

    Returns:
        The metrics.
    """
    predictions, truth = Path(predictions), Path(truth)  # Python users may give strings
    import sys

    from dinounet.evaluation.evaluate import evaluate_folders, find_masks, print_table
    from dinounet.evaluation.labels import find_labels
    from dinounet.files import METRICS, require_file
    from dinounet.progress import progress, say

    found = find_labels(predictions, truth, labels)
    path = Path(output) if output else predictions / METRICS
    require_file(path)
    with progress("evaluating", len(find_masks(truth, find_masks(predictions)))) as advance:
        metrics = evaluate_folders(
            predictions, truth, found.labels, path, lambda _: advance(),
            regions=found.regions, ignore=found.ignore, colours=found.colours,
        )  # fmt: skip
    if sys.stdout.isatty():
        from rich.console import Console

        print_table(metrics, Console())
    mean = metrics.mean_over_cases_and_classes
    say(
        "evaluated",
        f"mean foreground Dice {mean.dice:.3f}, HD95 {mean.hd95:.2f} {metrics.unit}; "
        f"{metrics.remark_on_ignored}all of it in {path}",
        dice=mean.dice,
        hd95=mean.hd95,
        unit=metrics.unit,
        ignored_pixels=metrics.ignored_pixels,
        metrics=str(path),
    )
    return metrics
