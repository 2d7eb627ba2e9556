"""nnU-Net's trainers that train Dino U-Net: they put its network, patch and batch into nnU-Net's own plan."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.file_path_utilities import get_output_folder

from dinounet.backbones.frozen import build_backbone
from dinounet.backbones.registry import SIDE, find_variant, memory_at, usual_precision, with_facts
from dinounet.backbones.weights import fill_backbone
from dinounet.data.dataset import read_dataset
from dinounet.errors import ConfigError
from dinounet.io import read_json
from dinounet.nnunet.network import WEIGHTS, PlannedDinoUNet, architecture_of, find_configuration, names_dinounet
from dinounet.planning.data_plan import LARGEST_PATCH, PATCH_STEP, plan_data
from dinounet.schema.base import to_record
from dinounet.schema.network import NetworkConfig
from dinounet.schema.recipe import RECIPES, STEPS_AN_EPOCH, Recipe, RecipeName
from dinounet.training.step import learning_rate_at, make_optimizer

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


EPOCHS, STEPS = "DINOUNET_EPOCHS", "DINOUNET_STEPS_AN_EPOCH"
"""Environment variables: a training's length where the recipe's is not wanted; nnU-Net's commands have no flag."""

VALIDATION = 5
"""Steps of training for each step of validation, as nnU-Net has 250 and 50."""


class DinoUNetTrainer(nnUNetTrainer):  # type: ignore[misc]
    """Trains Dino U-Net by our default recipe: `dinounet train`'s, docs/recipes.md.

    The plan is nnU-Net's own; `plan_network` puts the network into it, before nnU-Net keeps it beside the checkpoints.

    Raises:
        UserError: the plan is of volumes, or an environment variable is wrong.
    """

    recipe_name: RecipeName = "default"

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 -- nnU-Net's own default
    ) -> None:
        folder = get_output_folder(plans["dataset_name"], type(self).__name__, plans["plans_name"], configuration)
        plans = plan_network(plans, dataset_json, configuration, Path(folder))
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch = int(read_number(STEPS, STEPS_AN_EPOCH))
        self.num_val_iterations_per_epoch = max(1, self.num_iterations_per_epoch // VALIDATION)
        self.num_epochs = int(read_number(EPOCHS, max(1, RECIPES[self.recipe_name].length // STEPS_AN_EPOCH)))
        self.recipe = replace(
            RECIPES[self.recipe_name],
            steps=self.num_epochs * self.num_iterations_per_epoch,
            batch=self.configuration_manager.batch_size,
        )
        self.initial_lr = self.recipe.learning_rate
        self.weight_decay = self.recipe.weight_decay
        self.oversample_foreground_percent = self.recipe.foreground
        self.enable_deep_supervision = self.recipe.deep_supervision
        self.save_every = 1  # a default training has four epochs, and trained tensors are small

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> torch.nn.Module:
        """The network by its plan, by whichever name a version of dinounet has written there."""
        return PlannedDinoUNet(
            num_input_channels,
            num_output_channels,
            enable_deep_supervision,
            **configuration_manager.network_arch_init_kwargs,
        )

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Optimizer of the trained parameters, and what sets its learning rate."""
        optimizer = make_optimizer(self.network, self.recipe)
        return optimizer, LearningRate(optimizer, self.recipe, self.num_iterations_per_epoch)

    def _build_loss(self) -> Any:
        """nnU-Net's, but every scale counts: it leaves out the last of a U-Net's many, and here there are three."""
        loss = super()._build_loss()
        if self.enable_deep_supervision:
            loss.weight_factors = tuple(weight / 7 for weight in (4, 2, 1))
        return loss

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A step at its own learning rate."""
        self.lr_scheduler.begin_step()
        return super().train_step(batch)

    def _do_i_compile(self) -> bool:
        """Only where it is asked for: compiling the adapter was tried nowhere."""
        return "nnUNet_compile" in os.environ and super()._do_i_compile()

    def plot_network_architecture(self) -> None:
        """Nothing: nnU-Net's drawing needs a package that no longer works."""


class DinoUNetPaperTrainer(DinoUNetTrainer):
    """Trains Dino U-Net as the published code does: SGD, poly, 200 epochs, no deep supervision."""

    recipe_name: RecipeName = "paper"


class LearningRate:
    """Sets the learning rate before every step: `step` is what nnU-Net calls once an epoch.

    Args:
        optimizer: whose rate it is.
        recipe: its schedule, of as many steps as the training has.
        steps_an_epoch: of the training.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Recipe, steps_an_epoch: int) -> None:
        self.optimizer, self.recipe, self.steps_an_epoch = optimizer, recipe, steps_an_epoch
        self.done = 0

    def step(self, epoch: int) -> None:
        """An epoch begins, counted from 0."""
        self.done = epoch * self.steps_an_epoch
        self._set()

    def begin_step(self) -> None:
        """A step begins."""
        self._set()
        self.done += 1

    def _set(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.done, self.recipe, self.steps_an_epoch)
