"""The recipe: how a network is trained, by name or field by field."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dinounet.errors import ConfigError
from dinounet.schema.arguments import check_fields

Augmentation = Literal["nnunet", "flip", "none"]
"""nnunet: all of it; flip: mirror images only; none."""

IN_MEMORY = 13
"""What the published code's planner finds for 512 x 512 and 2 to 14 classes (nnunetv2 2.8's: 12, to 19); we keep it for
more, where it finds less."""


STEPS_AN_EPOCH = 250
"""nnU-Net's."""
CHECKPOINT_MINUTES = 1.0
"""Time between two checkpoints of a run, up to a step; nothing that decides its result."""
OptimizerName = Literal["adamw", "sgd"]
Schedule = Literal["cosine", "poly"]
Initialisation = Literal["pytorch", "he"]
Architecture = Literal["dinounet", "unet"]
CacheFeatures = Literal["auto", "on", "off"]
TrackerName = Literal["tensorboard", "wandb", "mlflow"]
RecipeName = Literal["default", "paper"]
"""default: what measured best here (docs/recipes.md); paper: what the published code does, data side included."""


@dataclass(frozen=True)
class Recipe:
    """How the network is trained."""

    base: RecipeName = "default"
    """Named recipe that it started from; "paper" also plans spacing, slices and patch in its own way."""

    steps: int = 1000
    """Optimizer steps."""

    epochs: int | None = None
    """Length in epochs of 250 steps, nnU-Net's, instead of steps."""

    minutes: float | None = None
    """Length in minutes of training, instead of steps: the schedule follows the clock."""

    batch: int = 2
    """Patches a step."""

    optimizer: OptimizerName = "adamw"
    """What moves the weights; sgd is Nesterov's."""

    learning_rate: float = 1e-3
    """After warm-up and before the schedule takes it to zero."""

    weight_decay: float = 1e-4
    """Pull of the weights towards zero."""

    momentum: float = 0.99
    """Of sgd."""

    schedule: Schedule = "cosine"
    """How the learning rate falls: cosine at every step, or poly (power 0.9) once in 250 steps, as nnU-Net's."""

    warmup: int = 15
    """Steps over which the learning rate rises from zero."""

    initialisation: Initialisation = "pytorch"
    """Initial values of FAPM, enlargement and decoder: PyTorch's, as published, or he, as nnU-Net's."""

    deep_supervision: bool = True
    """Whether the decoder's outputs at 1/2 and 1/4 of the size learn as well; a U-Net's always do, as nnU-Net's."""

    clip: float = 12.0
    """Largest norm of the gradient."""

    foreground: float = 0.33
    """Share of a batch's patches that are centred on foreground."""

    augmentation: Augmentation = "nnunet"
    """What happens to patches before they are learned from."""

    cache_features: CacheFeatures = "off"
    """Whether the backbone sees a fixed set of tiles once, and not in training; auto: where it saves half a step."""

    feature_variants: int = 1
    """With cached features: how often the intensities of each tile and view are changed, if augmentation is nnunet."""

    validate_every: int = 100
    """Steps between two looks at the validation cases."""

    average: float = 0.0
    """Decay of an exponential moving average of the weights, such as 0.999, which then is the model; 0: none."""

    seed: int = 0
    """Of initial values, patches and drop path."""

    def __post_init__(self) -> None:
        check_fields(self, "recipe")
        least = {
            "steps": 1,
            "batch": 1,
            "validate_every": 1,
            "feature_variants": 1,
            "warmup": 0,
            "seed": 0,
            "weight_decay": 0,
        }
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
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"recipe.momentum is {self.momentum}; it must be from 0 up to, not including, 1")
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


RECIPES: dict[RecipeName, Recipe] = {
    "default": Recipe(),
    "paper": Recipe(
        base="paper",
        steps=200 * 250,
        batch=IN_MEMORY,  # at the most: the dataset may ask for less
        optimizer="sgd",
        learning_rate=1e-3,
        weight_decay=3e-5,
        momentum=0.99,
        schedule="poly",
        warmup=0,
        deep_supervision=False,
        validate_every=250,
    ),
}
"""The recipes by name."""
