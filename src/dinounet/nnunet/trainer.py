"""nnU-Net's trainer with our recipes: its data, augmentation, loss and validation; our optimizer, schedule and length.

nnU-Net looks at the names of a trainer's arguments, and keeps them in its checkpoints: they must be its own.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.file_path_utilities import get_output_folder

from dinounet.nnunet.network import (
    PlannedDinoUNet,
    plan_network,
    read_number,
)
from dinounet.schema.recipe import RECIPES, STEPS_AN_EPOCH, Recipe, RecipeName
from dinounet.training.step import learning_rate_at, make_optimizer

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
            batch_size=self.configuration_manager.batch_size,
        )
        self.initial_lr = self.recipe.learning_rate
        self.weight_decay = self.recipe.weight_decay
        self.oversample_foreground_percent = self.recipe.foreground_fraction
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
