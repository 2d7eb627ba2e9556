"""`dinounet report`: results as one page."""

from __future__ import annotations

from pathlib import Path

from dinounet.schema.arguments import checked


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
    from dinounet.io import METRICS, require_file
    from dinounet.reporting.case_images import make_pictures
    from dinounet.reporting.report import write_report
    from dinounet.schema.metrics import read_metrics
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
