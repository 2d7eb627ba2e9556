"""Runs of nnU-Net's as bundles: what Dino U-Net learned in nnU-Net predicts without it.

The plan says which network it is and which backbone it stands on; checkpoints hold the trained tensors. They are read
as those of the published network are, as tensors and plain values (`dinounet.sharing.published`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dinounet.data.plan import DataPlan
from dinounet.errors import ConfigError, DataError, WeightsError
from dinounet.files import read_json, require_new
from dinounet.inference.bundle import BundledNetwork, BundleRecord, hash_file
from dinounet.inference.models import is_bundle
from dinounet.integrations.nnunet.environment import CONFIGURATION, NETWORK_CLASS, check_planned
from dinounet.integrations.nnunet.network import PlannedNetwork, read_arguments
from dinounet.network.config import NetworkConfig
from dinounet.network.dinounet import DinoUNet
from dinounet.network.provenance import BackboneRecord
from dinounet.network.published import mismatches
from dinounet.network.variants import find_variant
from dinounet.progress import say
from dinounet.run import now, versions
from dinounet.sharing.export import without_path, write_bundle
from dinounet.sharing.published import (
    ONLY_MEDIAN,
    arguments_of,
    import_checkpoint,
    read_checkpoint,
    read_nnunet_plan,
    require_same,
    tell_checkpoint,
    whole_tensors,
)

FINAL = "checkpoint_final.pth"

BORDER = (
    "nnU-Net cuts off a border of zeros before it measures an image, and dinounet does not: where images have one, "
    "their masks differ"
)
"""Of networks that see each case by its own mean and deviation, or darkest and brightest pixel."""


def import_trained(
    trained: Path, output: Path, plans: Path | None = None, dataset: Path | None = None, licence: str | None = None
) -> Path:
    """Make a bundle of a checkpoint, or of all folds in a folder, that nnU-Net trained, or that was published.

    Args:
        trained: a checkpoint, the folder of a fold, or that of a trained model with its folds.
        output: a new folder, or a bundle, which is replaced but for what was written into its model card.
        plans: nnU-Net's `plans.json`, by default the one in the model's folder.
        dataset: nnU-Net's `dataset.json`, by default the one in the model's folder.
        licence: that is given to the trained weights.

    Raises:
        UserError: there is no checkpoint, a checkpoint holds more than numbers, is of another network or of volumes, or
            doesn't fit the plan.
    """
    checkpoints = _find(trained)
    plans = plans or _beside(checkpoints[0], "plans.json", "--plans")
    dataset = dataset or _beside(checkpoints[0], "dataset.json", "--dataset")
    planned = read_json(plans, what="nnU-Net's plan")
    if not _is_ours(planned):
        if len(checkpoints) > 1:
            raise ConfigError(
                f"{trained} holds several folds of the published network; import one checkpoint at a time"
            )
        return import_checkpoint(checkpoints[0], plans, dataset, output, licence)
    if not is_bundle(output):
        require_new(output, what="the bundle")
    return _import(checkpoints, planned, plans, dataset, output, licence)


def _import(
    checkpoints: Sequence[Path], planned: Any, plans: Path, dataset: Path, output: Path, licence: str | None
) -> Path:
    described = read_json(dataset, what="nnU-Net's description of the data")
    held = [read_checkpoint(path) for path in checkpoints]
    names = {str(arguments_of(one).get("configuration", CONFIGURATION)) for one in held}
    if len(names) > 1:
        raise ConfigError(f"the checkpoints are of several configurations, {', '.join(sorted(names))}; import one")
    (configuration,) = names
    part = check_planned(planned, str(plans), configuration)
    network = read_arguments(part["architecture"].get("arch_kwargs"))
    data = read_nnunet_plan(planned, described, plans, dataset, configuration)
    data = replace(data, channel_projection=network.channel_projection)
    config = network.configure(len(data.channels), len(data.meaning.outputs))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        files: list[Path] = []
        for path, one in zip(checkpoints, held, strict=True):
            require_same(arguments_of(one), planned, described, path)
            _require_shapes(one["network_weights"], config, path)
            files.append(folder / str(len(files)))
            save_file(whole_tensors(one["network_weights"]), files[-1])
        backbone = without_path(_backbone(config, network))
        record = BundleRecord(
            data=data,
            networks=tuple(
                BundledNetwork(config, hash_file(file), backbone, training=None, seed=network.seed) for file in files
            ),
            postprocessing=None,
            made=now(),
            versions=versions(),
            licence=licence,
            origin=f"Trained in nnU-Net ({'; '.join(map(tell_checkpoint, held))}); {ONLY_MEDIAN}",
        )
        tell_border(data)
        return write_bundle(output, record, files)


def tell_border(data: DataPlan) -> None:
    """Say where nnU-Net and dinounet differ, if these images can show it."""
    if any(channel.normalisation in ("zscore", "rescale_to_0_1") for channel in data.channels):
        say("border", BORDER)


def _find(trained: Path) -> list[Path]:
    """The checkpoints that are meant: the file, the fold's, or those of all numbered folds, or else of fold_all."""
    if not trained.is_dir():
        return [trained]
    if (trained / FINAL).is_file():
        return [trained / FINAL]
    folds = sorted(trained.glob(f"fold_*/{FINAL}"))
    folds = [path for path in folds if path.parent.name != "fold_all"] or folds
    if not folds:
        raise DataError(f"{trained} holds no {FINAL}, and no fold_0/{FINAL}; finish the training, or name a checkpoint")
    return folds


def _beside(checkpoint: Path, name: str, flag: str) -> Path:
    """A file in the folder of a trained model, which a checkpoint lies in, or in a folder of."""
    for folder in (checkpoint.parent, checkpoint.parent.parent):
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"there is no {name} beside {checkpoint} or its folder; name it by {flag}")


def _is_ours(planned: Any) -> bool:
    parts = planned.get("configurations") if isinstance(planned, dict) else None
    return isinstance(parts, dict) and any(
        isinstance(part, dict) and part.get("architecture", {}).get("network_class_name") == NETWORK_CLASS
        for part in parts.values()
    )


def _backbone(config: NetworkConfig, network: PlannedNetwork) -> BackboneRecord:
    """What the network stands on, as its plan says."""
    is_random = network.weights == "random"
    licence = "none (random weights)" if is_random else find_variant(config.backbone).licence
    return BackboneRecord(config.backbone, network.weights, network.sha256, licence, config.precision_of_backbone)


def _require_shapes(weights: dict[str, torch.Tensor], config: NetworkConfig, path: Path) -> None:
    """Raise a WeightsError unless these are the tensors of the network that the plan names."""
    with torch.device("meta"):
        expected = DinoUNet(config).state_dict()
    problems = mismatches(expected, weights)
    if problems:
        listed = "; ".join(f"{len(keys)} {kind}, as {', '.join(keys[:3])}" for kind, keys in problems.items())
        raise WeightsError(f"{path} is not of the network that its plan names ({listed}); give the plan in its folder")
