"""Dino U-Net in nnU-Net's plan: the network that it names, and the patch and batch that fit."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from dinounet.backbones.frozen import build_backbone
from dinounet.backbones.registry import SIDE, find_variant, memory_at, usual_precision, with_facts
from dinounet.backbones.weights import fill_backbone
from dinounet.data.dataset import read_dataset
from dinounet.errors import ConfigError, WeightsError
from dinounet.io import read_json
from dinounet.network.dinounet import DinoUNet
from dinounet.planning.data_plan import LARGEST_PATCH, PATCH_STEP, plan_data
from dinounet.schema.base import Migrations, record, to_record
from dinounet.schema.migrations import resolve_backbone
from dinounet.schema.network import BackboneRecord, NetworkConfig

CONFIGURATION = "2d"
NETWORK_CLASS = f"{__name__}.PlannedDinoUNet"
"""What names this network in a plan."""

NETWORK_CLASSES = (NETWORK_CLASS, "dinounet.integrations.nnunet.network.PlannedDinoUNet")
"""What names it in plans of any version."""

STRIDES = ((1, 1), (2, 2), (2, 2), (2, 2))
"""Where nnU-Net reads at which scales there are logits: all but the last, so 1, 1/2 and 1/4."""

WEIGHTS = "DINOUNET_WEIGHTS"
"""Environment variable: a backbone's file or folder of weights, where a plan of another machine names one."""

FROM_NNUNET = ("in_channels", "num_classes", "deep_supervision")
"""Fields of the network's configuration that nnU-Net decides, from the dataset and the trainer."""


@record
class PlannedNetwork:
    """What a plan's `arch_kwargs` hold.

    Raises:
        ConfigError: another version of dinounet wrote them.
    """

    network: dict[str, Any]
    """Of the network's configuration all but what nnU-Net decides."""

    weights: str
    """Where the backbone's weights come from: hub, random, or a file or folder."""

    sha256: str
    """Of the backbone's numbers; others are refused."""

    seed: int = 0
    """Of random weights."""

    channel_projection: tuple[tuple[float, ...], ...] | None = None
    """Three mixtures of the channels, which the backbone sees, where there are neither one nor three."""

    strides: tuple[tuple[int, int], ...] = STRIDES
    """Read by nnU-Net alone."""

    format: Literal[2] = 2
    """Version of these keys."""

    MIGRATIONS: ClassVar[Migrations] = {1: resolve_backbone}

    def configure(self, channels: int, outputs: int, deep_supervision: bool = False) -> NetworkConfig:
        """The configuration for a dataset of so many channels and outputs."""
        decided = dict(zip(FROM_NNUNET, (channels, outputs, deep_supervision), strict=True))
        return to_record(NetworkConfig, {**self.network, **decided}, where="the plan's network")


def find_configuration(planned: Any, where: str, configuration: str = CONFIGURATION) -> Mapping[str, Any]:
    """A configuration of slices in a plan of nnU-Net's.

    Args:
        planned: content of the plan.
        where: it comes from.
        configuration: its name in the plan.

    Raises:
        ConfigError: it is of volumes, or not there.
    """
    if configuration.startswith("3d"):
        raise ConfigError(f"the configuration {configuration} is of volumes, and Dino U-Net segments slices; use 2d")
    parts = planned.get("configurations", {}) if isinstance(planned, Mapping) else {}
    if configuration not in parts:
        raise ConfigError(f"{where} has no configuration {configuration} but {', '.join(parts) or 'none'}; use 2d")
    part: Mapping[str, Any] = parts[configuration]
    return part


def names_dinounet(part: Any) -> bool:
    """Whether a plan's configuration is of this network."""
    return isinstance(part, Mapping) and part.get("architecture", {}).get("network_class_name") in NETWORK_CLASSES


def read_arguments(arguments: Any) -> PlannedNetwork:
    """A plan's `arch_kwargs`, read strictly.

    Raises:
        ConfigError: a key is unknown, missing or wrong, or another version of dinounet wrote them.
    """
    return to_record(PlannedNetwork, arguments, where="the plan's arch_kwargs")


def architecture_of(
    network: NetworkConfig, backbone: BackboneRecord, seed: int, projection: tuple[tuple[float, ...], ...] | None
) -> dict[str, Any]:
    """What stands under `architecture` in a plan."""
    kept = {name: value for name, value in asdict(network).items() if name not in FROM_NNUNET}
    planned = PlannedNetwork(kept, backbone.weights, backbone.sha256, seed, projection)
    return {
        "network_class_name": NETWORK_CLASS,
        "arch_kwargs": asdict(planned),
        "_kw_requires_import": [],
    }


class PlannedDinoUNet(DinoUNet):
    """Dino U-Net, called as nnU-Net calls its networks.

    Shapes: (B, C, H, W) -> logits (B, K, H, W), or while `decoder.deep_supervision` is set, which nnU-Net does, a
    list at 1, 1/2 and 1/4, in evaluation mode too. `state_dict()`, and so a checkpoint, holds the trained tensors only.

    Args:
        input_channels: C.
        num_classes: K.
        deep_supervision: whether to start with the list.
        arguments: `PlannedNetwork`, from the plan.

    Raises:
        ConfigError: the plan is of another version, or contradicts itself.
        WeightsError: the backbone's weights can't be had, or are not those that the plan was made with.
    """

    def __init__(self, input_channels: int, num_classes: int, deep_supervision: bool = False, **arguments: Any) -> None:
        planned = read_arguments(arguments)
        config = planned.configure(input_channels, num_classes, deep_supervision)
        weights = os.environ.get(WEIGHTS) or planned.weights
        backbone = build_backbone(config)
        found = fill_backbone(backbone, config.backbone, weights, planned.seed)
        if found.sha256 != planned.sha256:
            raise WeightsError(
                f"the weights from {found.weights} are not those of the plan (sha256 {found.sha256[:12]}, not "
                f"{planned.sha256[:12]}); name the right ones by the environment variable {WEIGHTS}, or train a new run"
            )
        super().__init__(config, backbone)
        if planned.channel_projection is not None:
            self.channel_projection = torch.tensor(planned.channel_projection)
        self.decoder.deep_supervision = deep_supervision  # type: ignore[assignment]  # nnU-Net sets it too

    @property
    def supervises(self) -> bool:
        """As nnU-Net has it, in both modes."""
        return bool(self.decoder.deep_supervision)


NETWORK = "DINOUNET_NETWORK"
"""Environment variable: fields of the network's configuration as JSON, such as {"backbone": "dinov3_vitb16"}."""

MEMORY = "DINOUNET_MEMORY"
"""Environment variable: GB that training may take, from which the batch follows; 8 as in nnU-Net."""

RAW = "nnUNet_raw"
"""Environment variable of nnU-Net's: the folder of its datasets."""

DATASET_SHARE = 0.05
"""Of all pixels a batch holds at most so many, as in nnU-Net."""

LEAST_BATCH = 2
"""nnU-Net's; before it is undercut, the patch is made smaller."""

LEAST_PATCH = 64
"""Side below which a patch is not made smaller."""


def plan_network(plans: dict[str, Any], dataset: Mapping[str, Any], configuration: str, folder: Path) -> dict[str, Any]:
    """A plan of nnU-Net's with Dino U-Net as the network of one of its configurations.

    A plan that names it already stays as it is. Folds of one model are of one network, so that the plan in the model's
    folder decides once a fold has been trained there, and else the environment variables.

    Args:
        plans: content of nnU-Net's plan.
        dataset: content of its `dataset.json`.
        configuration: name of the configuration, 2d.
        folder: of the trained model, which need not be there.

    Raises:
        ConfigError: the configuration is of volumes or isn't there, or a variable is wrong or contradicts the folder.
        WeightsError: the backbone's weights can't be had.
    """
    part = find_configuration(plans, f"the plan {plans.get('plans_name')}", configuration)
    if names_dinounet(part):
        return plans
    asked = _asked_for()
    if (folder / "plans.json").is_file():
        trained = read_json(folder / "plans.json", what="a plan of nnU-Net's")
        before = find_configuration(trained, str(folder / "plans.json"), configuration)
        network = before["architecture"].get("arch_kwargs", {}).get("network", {})
        if any(network.get(name) != value for name, value in asked.items()):
            raise ConfigError(f"{folder} is of another network than {NETWORK} names; unset that, or move the folder")
        own = {name: before[name] for name in ("architecture", "patch_size", "batch_size")}
    else:
        own = _plan(plans, part, dataset, asked)
    return {**plans, "configurations": {**plans["configurations"], configuration: {**part, **own}}}


def _asked_for() -> dict[str, Any]:
    """What the environment says of the network."""
    text = os.environ.get(NETWORK) or "{}"
    asked = None
    with suppress(ValueError):
        asked = json.loads(text)
    if not isinstance(asked, dict):
        raise ConfigError(f'{NETWORK} is {text!r}; write it as {{"backbone": "dinov3_vitb16"}}')
    return asked


def _plan(
    plans: Mapping[str, Any], part: Mapping[str, Any], dataset: Mapping[str, Any], asked: dict[str, Any]
) -> dict[str, Any]:
    network = to_record(NetworkConfig, with_facts(asked), where=NETWORK)
    backbone = fill_backbone(build_backbone(network), network.backbone, os.environ.get(WEIGHTS) or "hub")
    variant = find_variant(network.backbone)
    weights_alone = variant.frozen * (2 if usual_precision(variant) == "bf16" else 4) / 1e9
    median = part["median_image_size_in_voxels"]
    there = read_number(MEMORY, 8.0)
    patch, batch = fit(median, (memory_at(variant, network.backbone_scale)[1], weights_alone), there)
    volume = plans["configurations"].get("3d_fullres", {}).get("median_image_size_in_voxels", [1, *median])
    most = round(math.prod(volume) * dataset["numTraining"] * DATASET_SHARE / math.prod(patch))
    projection = None
    if len(dataset["channel_names"]) not in (1, 3):  # nnU-Net's fingerprint has no components of the channels
        raw = os.environ.get(RAW)
        if not raw:
            raise ConfigError(f"{RAW} is not set; the channels' components are computed from the images there")
        projection = plan_data(read_dataset(Path(raw, plans["dataset_name"]))).channel_projection
    architecture = architecture_of(network, backbone, 0, projection)
    return {
        "architecture": json.loads(json.dumps(architecture)),  # lists, as it is read again
        "patch_size": list(patch),
        "batch_size": max(LEAST_BATCH, min(batch, most)),
    }


def fit(median: Sequence[float], memory: tuple[float, float], there: float) -> tuple[tuple[int, int], int]:
    """Patch and batch that fit into `there` GB.

    The patch covers the median slice up to 512 pixels a side; where two don't fit, the side that covers most is cut.

    Args:
        median: rows and columns of the median slice.
        memory: GB that one patch of 512 x 512 takes in training, and the weights alone.
        there: GB.
    """
    whole, fixed = memory
    a_pixel = (whole - fixed) / SIDE**2
    sides = [min(LARGEST_PATCH, math.ceil(side / PATCH_STEP) * PATCH_STEP) for side in median]

    def fitting() -> int:
        return int((there - fixed) / (a_pixel * math.prod(sides)))

    while fitting() < LEAST_BATCH and max(sides) > LEAST_PATCH:
        shares = [
            side / whole_side if side > LEAST_PATCH else 0 for side, whole_side in zip(sides, median, strict=True)
        ]
        sides[shares.index(max(shares))] -= PATCH_STEP
    return (sides[0], sides[1]), max(fitting(), LEAST_BATCH)


def read_number(variable: str, default: float) -> float:
    """The number in an environment variable.

    Raises:
        ConfigError: it is none, or less than 1.
    """
    text = os.environ.get(variable) or str(default)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 1 <= number < math.inf:
        raise ConfigError(f"{variable} is {text!r}; it must be a number of at least 1")
    return number
