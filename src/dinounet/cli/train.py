"""`dinounet train` and `dinounet demo`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from dinounet.backbones.registry import DEFAULT
from dinounet.schema.arguments import UNSET, Default, checked, given
from dinounet.schema.network import NetworkConfig
from dinounet.schema.plan import Fold, GroupRule
from dinounet.schema.recipe import CHECKPOINT_MINUTES, Architecture, Recipe, RecipeName, TrackerName
from dinounet.system import Device, Precision


@checked
def demo(
    *,
    output: Path = Path("dinounet-demo"),
    weights: Annotated[str, Default("hub")] = UNSET,
    resume: bool = False,
) -> Path:
    """Train, predict, evaluate and report on real brain images (ICBM 152), in minutes, without downloading a dataset.

    Args:
        output: Folder for dataset, run, predictions and report; it must not exist yet, except with --resume.
        weights: Source of the backbone's weights: hub (random, with a warning, if the Hub cannot be reached), a file or
            folder, or random.
        resume: Continue an interrupted demo.

    Returns:
        The report's path.
    """
    import shlex
    import shutil

    from dinounet.cli.predict import predict
    from dinounet.cli.results import evaluate, report
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


@checked
def train(
    data: Path,
    /,
    output: Path | None = None,
    *,
    recipe: Annotated[Recipe | RecipeName, Default("default")] = UNSET,
    changes: Mapping[str, Any] = {},
    network: Annotated[Architecture, Default("dinounet")] = UNSET,
    backbone: Annotated[str, Default(DEFAULT)] = UNSET,
    taps: tuple[int, int, int, int] | None = None,
    backbone_scale: Annotated[float, Default(NetworkConfig.backbone_scale)] = UNSET,
    backbone_precision: Annotated[Literal["auto", "fp32", "bf16", "int8"], Default("auto")] = UNSET,
    weights: Annotated[str, Default("hub")] = UNSET,
    plan: Path | None = None,
    patch: tuple[int, int] | None = None,
    fold: Fold | None = None,
    test: Path | None = None,
    group: Annotated[GroupRule, Default("auto")] = UNSET,
    labels: str | None = None,
    channels: str | None = None,
    device: Annotated[Device, Default("auto")] = UNSET,
    precision: Annotated[Precision, Default("auto")] = UNSET,
    micro_batch_size: Annotated[int | Literal["auto"], Default("auto")] = UNSET,
    offload: Annotated[bool, Default(False)] = UNSET,
    cache: Path | None = None,
    deterministic: Annotated[bool, Default(False)] = UNSET,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    track: Annotated[tuple[TrackerName, ...], Default(())] = UNSET,
    resume: bool = False,
    report: bool = True,
) -> Path:
    """Train Dino U-Net on a dataset: check the data, plan, cache, train, and report on the held-out cases.

    Args:
        data: Folder with images/ and masks/, or with pairs such as a.png and a_mask.png, or an nnU-Net dataset; or a
            CSV file with the columns image, mask and, optionally, group, for cases that belong together.
        output: Folder of the run, by default runs/ and the dataset's name; it must not exist yet, except with --resume.
        recipe: Training recipe: default (explained in docs/recipes.md) or paper (that of the published code, which also
            determines spacing, slices, patch and batch). In Python also a `Recipe`.
        changes: Fields of the named recipe to override; on the command line, one flag each.
        network: Network to train; unet is nnU-Net's 2D U-Net, a baseline without a backbone.
        backbone: Frozen backbone: a name listed by `dinounet info`, or timm:NAME.
        taps: Indices of the four backbone blocks whose features are used, counted from 0; by default the backbone's
            usual ones.
        backbone_scale: Factor from 1 to 4 by which images are enlarged for the backbone, which makes its feature grid
            finer; `dinounet info backbones --backbone-scale FACTOR` lists the cost.
        backbone_precision: Precision in which the backbone's weights are stored: fp32, bf16 (half the memory) or int8
            (a quarter); auto is bf16 for 7B and fp32 for all others. The features depend on it, so prediction uses the
            same.
        weights: Source of the backbone's weights: hub (Hugging Face Hub), random, or a file or folder: safetensors with
            the key names of timm, transformers or Meta, or Meta's .pth.
        plan: Edited plan.json to train with; backbone, recipe and patch are taken from it.
        patch: Rows and columns of a patch; by default large enough to cover the median slice, at most 512.
        fold: Index of the cross-validation fold, counted from 0; all trains on every case, without validation. By
            default 0, or all if there is only one case or group.
        test: Text file of held-out test cases or groups (such as patients), one per line: they are used neither for
            training nor for validation and affect no decision (their pixels are only compared with those of other
            cases, to find duplicates).
        group: How to recognise cases that must stay in the same fold, such as a patient's: folder (images in the same
            folder), name (names that are equal before _slice, _z or _frame and a number), patient (DICOM's PatientID,
            or BIDS's sub-), or none; auto uses patients if the files identify them, else folders or names if at least
            five contain several cases each. A table's column group takes precedence.
        labels: Meaning of the masks' values (background=0,lesion=255) or colours (background=#000000,lesion=#ff0000),
            for masks without a dataset.json; inferred from the masks by default.
        channels: Names of the images' channels, such as T1,T2, for images without a dataset.json. As in nnU-Net, they
            determine the normalisation: CT, rgb (0 to 1, then ImageNet's statistics), rescale_to_0_1, rgb_to_0_1,
            noNorm; any other name means each image's mean and standard deviation.
        device: Device to compute on.
        precision: Numerical precision; auto is bf16 on devices that support it natively.
        micro_batch_size: Number of patches per forward pass; their gradients are accumulated over the batch. auto is
            the whole batch, or as many patches as fit into memory according to a trial step.
        offload: Keep the backbone's weights on disk and load each block when it is computed: slower, but in little
            memory.
        cache: Folder for preprocessed slices, which several runs may share, also at the same time; by default inside
            the run's folder. It contains the patients' pixels: remove it when no run needs it any more.
        deterministic: Use only operations that reproduce results bit for bit on the same machine.
        checkpoint_minutes: Minutes between two checkpoints: the most that is lost when the process is killed.
        track: Experiment trackers to report to: tensorboard (files in the run's folder), wandb (its server, unless
            WANDB_MODE=offline), mlflow (the run's folder, unless MLFLOW_TRACKING_URI is set).
        resume: Continue an interrupted run, as it was planned.
        report: Segment the fold's validation cases after training, and write metrics and report.html.

    Returns:
        The run's folder.
    """
    from dinounet.errors import Interrupted
    from dinounet.pipeline import lacks_review, review_run
    from dinounet.schema.run import read_run
    from dinounet.system import dist_info
    from dinounet.training.options import TrainOptions, dataset_reader, require_as_started
    from dinounet.training.session import resume_hint, resume_run, start_run

    output = output or Path("runs", data.stem if data.suffix == ".csv" else data.resolve().name)
    options = TrainOptions(**given(
        recipe=recipe, changes=changes, network=network, backbone=backbone, taps=taps, backbone_scale=backbone_scale,
        backbone_precision=backbone_precision, weights=weights, plan=plan, patch=patch, fold=fold, test=test,
        group=group, labels=labels, channels=channels, device=device, precision=precision,
        micro_batch_size=micro_batch_size, offload=offload, cache=cache, deterministic=deterministic,
        checkpoint_minutes=checkpoint_minutes, track=track,
    ))  # fmt: skip
    if not resume:
        dataset = start_run(data, output, options)
    elif report and lacks_review(output):  # it was the review that was interrupted
        record = read_run(output)
        read = dataset_reader(data, record)
        require_as_started(read, output, record, options)
        dataset = read(record.plan.data.groups.by)
    else:
        dataset = resume_run(data, output, options)
    if report and dist_info().rank == 0:  # one of several processes does
        try:
            review_run(dataset, output)
        except KeyboardInterrupt:
            raise Interrupted(f"trained, but stopped before the report; {resume_hint(data, output)}") from None
    return output
