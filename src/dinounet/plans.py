"""The plan: every decision of a run in one file that a person can read and edit, `plan.json`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from dinounet.data.augmentation import Augmentation
from dinounet.data.dataset import Dataset
from dinounet.data.plan import DataPlan, plan_data
from dinounet.errors import ConfigError
from dinounet.files import read_record
from dinounet.network.config import NetworkConfig
from dinounet.network.variants import find_variant
from dinounet.progress import progress

FORMAT = 1

STEPS_AN_EPOCH = 250
"""nnU-Net's."""


@dataclass(frozen=True)
class Recipe:
    """How the network is trained."""

    steps: int = 1000
    """Optimizer steps."""

    epochs: int | None = None
    """Length in epochs of 250 steps, nnU-Net's, instead of steps."""

    minutes: float | None = None
    """Length in minutes of training, instead of steps: the schedule follows the clock."""

    batch: int = 2
    """Patches a step."""

    learning_rate: float = 1e-3
    """Of AdamW, after warm-up and before the cosine takes it to zero."""

    weight_decay: float = 1e-4
    """Of AdamW."""

    warmup: int = 15
    """Steps over which the learning rate rises from zero."""

    clip: float = 12.0
    """Largest norm of the gradient."""

    foreground: float = 0.33
    """Share of a batch's patches that are centred on foreground."""

    augmentation: Augmentation = "nnunet"
    """What happens to patches before they are learned from."""

    validate_every: int = 100
    """Steps between two looks at the validation cases."""

    average: float = 0.0
    """Decay of an exponential moving average of the weights, such as 0.999, which then is the model; 0: none."""

    seed: int = 0
    """Of initial values, patches and drop path."""

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch": 1, "validate_every": 1, "warmup": 0, "seed": 0, "weight_decay": 0}
        for name, smallest in least.items():
            if not smallest <= getattr(self, name) < math.inf:
                raise ConfigError(f"recipe.{name} is {getattr(self, name)}; it must be a number of at least {smallest}")
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError(f"recipe.epochs is {self.epochs}; it must be at least 1")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ConfigError(f"recipe.minutes is {self.minutes}; it must be a number of more than 0")
        if self.epochs is not None and self.minutes is not None:
            raise ConfigError("recipe has both epochs and minutes; choose one length")
        if not 0 <= self.average < 1:
            raise ConfigError(f"recipe.average is {self.average}; it must be from 0 up to, not including, 1")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"recipe.{name} is {getattr(self, name)}; it must be a number of more than 0")
        if self.seed >= 2**32:
            raise ConfigError(f"recipe.seed is {self.seed}; it must be below 2**32")
        if not 0 <= self.foreground <= 1:
            raise ConfigError(f"recipe.foreground is {self.foreground}; it must be from 0 to 1")

    @property
    def duration(self) -> str:
        """The length in words."""
        return f"{self.length} steps" if self.minutes is None else f"{self.minutes:g} minutes"

    @property
    def length(self) -> int:
        """Optimizer steps of the whole training, unless it is measured in minutes."""
        return self.steps if self.epochs is None else self.epochs * STEPS_AN_EPOCH


@dataclass(frozen=True)
class Plan:
    """All of it."""

    data: DataPlan
    """From a file to a patch."""

    network: NetworkConfig
    """From a patch to logits."""

    recipe: Recipe
    """From logits to a trained network."""

    format: int = FORMAT
    """Version of this file's keys."""

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ConfigError(
                f"format is {self.format} but this version of dinounet reads {FORMAT}; use another version"
            )
        if self.network.in_channels != len(self.data.channels):
            raise ConfigError(
                f"network.in_channels is {self.network.in_channels} but data names {len(self.data.channels)} channels"
            )
        outputs = self.data.meaning.outputs
        if self.network.num_classes != len(outputs):
            what = "labels" if self.data.regions is None else "regions"
            raise ConfigError(f"network.num_classes is {self.network.num_classes} but data names {len(outputs)} {what}")


def make_plan(data: DataPlan, recipe: Recipe, backbone: str) -> Plan:
    """Join what the data asks for with a recipe and a backbone."""
    network = NetworkConfig(backbone=backbone, in_channels=len(data.channels), num_classes=len(data.meaning.outputs))
    return Plan(data, network, recipe)


def plan_dataset(dataset: Dataset, recipe: Recipe, backbone: str, patch: tuple[int, int] | None = None) -> Plan:
    """Look at every case of a dataset, telling how far that is, and plan.

    Raises:
        DataError: what is wrong with the images and masks, all together.
        ConfigError: no backbone has that name.
    """
    find_variant(backbone)  # before the pixels, which take longer
    with progress("looking at the data", len(dataset.cases)) as advance:
        return make_plan(plan_data(dataset, patch, on_case=advance), recipe, backbone)


def read_plan(path: Path) -> Plan:
    """Read a plan, strictly."""
    return read_record(Plan, path, what="the plan of a run")
