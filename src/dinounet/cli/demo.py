"""`dinounet demo`: the whole way on real images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from dinounet.schema.arguments import UNSET, Default, checked


@checked
def demo(
    *,
    output: Path = Path("dinounet-demo"),
    weights: Annotated[str, Default("hub")] = UNSET,
    resume: bool = False,
) -> Path:
    """Train, predict, evaluate and report on real brain images (ICBM 152), in minutes and without a download.

    Args:
        output: Folder for dataset, run, predictions and report; but for --resume it must not exist yet.
        weights: The backbone's: hub (where it can't be reached: random, and said so), a file or folder, or random.
        resume: Go on with a demo that was interrupted.

    Returns:
        The report's path.
    """
    import shlex
    import shutil

    from dinounet.cli.evaluate import evaluate
    from dinounet.cli.predict import predict
    from dinounet.cli.report import report
    from dinounet.console import say
    from dinounet.errors import Interrupted, UserError
    from dinounet.io import require_new
    from dinounet.pipeline import DATASET, train_demo, write_demo_dataset

    data, run, predictions = output / DATASET, output / "run", output / "predictions"
    if not resume:
        require_new(output, what="the demo")
    elif not data.exists():
        raise UserError(f"{output} holds no demo to go on with; leave --resume out")
    try:
        if not data.exists():
            say("demo", f"writing {data}: slabs of the ICBM 152 average brain", dataset=str(data))
            write_demo_dataset(data)
        train_demo(data, run, weights or None)
        shutil.rmtree(predictions, ignore_errors=True)  # of a demo that was interrupted here
        predict(run, [data / "imagesTs"], predictions, probabilities=True)
        evaluate(predictions, data / "labelsTs")
    except (Interrupted, KeyboardInterrupt) as stop:
        where = str(stop).split(";")[0] or "stopped"
        again = shlex.join(["dinounet", "demo", "-o", str(output), "--resume"])
        raise Interrupted(f"{where}; go on with: {again}") from None
    images = data / "imagesTs"
    return report(
        predictions, data / "labelsTs", output / "report.html", images=images, run=run, title="Dino U-Net demo"
    )
