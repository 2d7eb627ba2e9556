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
    """Train Dino U-Net on a dataset: look at the data, plan, cache, train, and report on the cases kept from training.

    Args:
        data: Folder with images/ and masks/, or with pairs such as a.png and a_mask.png, or an nnU-Net dataset; or a
            CSV file with the columns image, mask and, for what belongs together, group.
        output: Folder of the run, by default runs/ and the dataset's name; but for --resume it must not exist yet.
        recipe: How to train: default (docs/recipes.md tells why), or paper (what the published code does, which also
            plans spacing, slices, patch and batch its way). From Python also a `Recipe`.
        changes: Of a named recipe, what is to be otherwise; on the command line a flag each.
        network: What to train; unet is nnU-Net's, a baseline without a backbone.
        backbone: Frozen backbone, as listed by `dinounet info`, or timm:NAME.
        taps: Four of its blocks to read, counted from 0; by default its usual ones.
        backbone_scale: How many times finer its grid is than usual, from 1 to 4: it sees the image so much larger, at
            the cost that `dinounet info backbones --backbone-scale` tells.
        backbone_precision: How its weights are held: fp32, bf16 in half the memory, int8 in a quarter; auto is bf16 for
            7B and fp32 for all others. It decides the features, so prediction follows it.
        weights: The backbone's: hub (Hugging Face Hub), random, or a file or folder: safetensors in the names of timm,
            transformers or Meta, or Meta's .pth.
        plan: An edited plan.json to train by; backbone, recipe and patch are taken from it.
        patch: Rows and columns of a patch; by default what covers the median slice, at most 512.
        fold: Which of the dataset's splits, from 0; all trains on every case and watches none. By default 0, or all
            where there is but one case or group.
        test: Text file that names, a line each, cases or groups (such as patients) to hold out for a test: they are
            neither learned from nor watched, and decide on nothing (their pixels are compared with the others').
        group: What keeps cases, such as a patient's, on one side of a fold: folder (their images lie in one), name
            (equal before _slice, _z or _frame and a number), patient (DICOM's PatientID, or BIDS's sub-), none; auto is
            the patient if the files tell, else five or more folders or names of several cases each. A table's column
            group decides where there is one.
        labels: Of plain masks, what their numbers (background=0,lesion=255) or colours (background=#000000,
            lesion=#ff0000) stand for; by default told by the masks.
        channels: Of plain images, the channels' names, such as T1,T2, which decide the normalisation as in nnU-Net: CT,
            rgb (0 to 1, then ImageNet's statistics), rescale_to_0_1, rgb_to_0_1, noNorm; others by mean and deviation.
        device: Where to compute.
        precision: How precisely; auto is bf16 where the device computes with it natively.
        micro_batch_size: Patches that go through the network together, whose gradients add up; auto is the whole batch,
            or as many as a trial step shows that there is memory for.
        offload: Leave the backbone's weights on the disk and bring each block as it computes: slower, in little memory.
        cache: Folder for preprocessed slices, which runs may share, also at the same time; by default the run has its
            own. It holds the patients' pixels: remove it when no run needs it.
        deterministic: Only operations that give the same numbers again, to the bit, on the same machine.
        checkpoint_minutes: Time between two checkpoints; what a kill may cost.
        track: Experiment tracking: tensorboard (files in the run's folder), wandb (its server, unless
            WANDB_MODE=offline), mlflow (the run's folder, unless MLFLOW_TRACKING_URI is set).
        resume: Go on with a run that was interrupted, as it was planned.
        report: Whether to segment the fold's validation cases in the end, and to write metrics and report.html.

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
