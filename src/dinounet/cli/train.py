"""`dinounet train`: from a dataset to a trained run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from dinounet.cli.recipe_flags import NAMED, NO_CHANGES, RecipeFlags
from dinounet.device import Device, Precision
from dinounet.network.config import NetworkConfig
from dinounet.plans import CHECKPOINT_MINUTES, Architecture, Recipe, RecipeName, TrackerName


def train(
    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")],
    /,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    *,
    recipe: Annotated[Recipe | RecipeName, NAMED] = "default",
    changes: Annotated[Mapping[str, Any], tyro.conf.arg(name="", constructor=RecipeFlags)] = NO_CHANGES,
    network: Architecture = "dinounet",
    backbone: str = NetworkConfig.backbone,
    weights: str = "hub",
    plan: Path | None = None,
    patch: tuple[int, int] | None = None,
    fold: int = 0,
    labels: str | None = None,
    device: Device = "auto",
    precision: Precision = "auto",
    micro_batch: int | None = None,
    deterministic: bool = False,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    track: tuple[TrackerName, ...] = (),
    resume: bool = False,
) -> Path:
    """Train Dino U-Net on a dataset: look at the data, plan, cache, train.

    Args:
        data: Folder with images/ and masks/, or with pairs such as a.png and a_mask.png, or an nnU-Net dataset; or a
            CSV file with the columns image, mask and, for what belongs together, group.
        output: Folder of the run; but for --resume it must not exist yet.
        recipe: How to train: default (docs/recipes.md tells why), or paper (what the published code does, which also
            plans spacing, slices, patch and batch its way). From Python also a `Recipe`.
        changes: Of a named recipe, what is to be otherwise; on the command line a flag each.
        network: What to train; unet is nnU-Net's, a baseline without a backbone.
        backbone: Frozen backbone, as listed by `dinounet info`.
        weights: The backbone's: hub (Hugging Face Hub), a safetensors file, or random.
        plan: An edited plan.json to train by; backbone, recipe and patch are taken from it.
        patch: Rows and columns of a patch; by default what covers the median slice, at most 512.
        fold: Which of the dataset's splits; -1 trains on all cases.
        labels: Of plain masks, what their numbers stand for, as background=0,lesion=255; by default told by the masks.
        device: Where to compute.
        precision: How precisely; auto is bf16 where the device computes with it natively.
        micro_batch: Patches that go through the network together, fewer than --batch where memory is short; gradients
            add up. By default the whole batch, halved when memory runs out.
        deterministic: Only operations that give the same numbers again, to the bit, on the same machine.
        checkpoint_minutes: Time between two checkpoints; what a kill may cost.
        track: Who else is told of the progress: tensorboard (files in the run's folder), wandb (its server, unless
            WANDB_MODE=offline), mlflow (the run's folder, unless MLFLOW_TRACKING_URI is set).
        resume: Go on with a run that was interrupted, as it was planned.

    Returns:
        The run's folder.
    """
    data, output = Path(data), Path(output)  # Python users may give strings
    from dinounet.data.dataset import parse_labels
    from dinounet.network.weights import source_of
    from dinounet.plans import read_plan
    from dinounet.training.session import resume_run, start_run

    # what stands at its default is not asked for: a plan or an interrupted run decides it
    asked_recipe = None if recipe == "default" else recipe
    asked_backbone = None if backbone == NetworkConfig.backbone else backbone
    asked_network = None if network == "dinounet" else network
    changes = dict(changes)
    if resume:
        resume_run(
            data, output, device=device, recipe=asked_recipe, **changes, network=asked_network,
            backbone=asked_backbone, patch=patch, fold=fold or None,
            plan=read_plan(Path(plan)) if plan else None,
            labels=parse_labels(labels) if labels else None,
            weights=None if weights == "hub" else source_of(weights),
            precision=None if precision == "auto" else precision, deterministic=deterministic or None,
            micro_batch=micro_batch, track=track, checkpoint_minutes=checkpoint_minutes,
        )  # fmt: skip
    else:
        start_run(
            data, output, recipe=asked_recipe, changes=changes, architecture=asked_network, backbone=asked_backbone,
            patch=patch, fold=fold, labels=labels, plan_file=Path(plan) if plan else None, weights=weights,
            device=device, precision=precision, micro_batch=micro_batch, deterministic=deterministic, track=track,
            checkpoint_minutes=checkpoint_minutes,
        )  # fmt: skip
    return output
