"""The recipe: how a network is trained, by name or field by field."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from dinounet.errors import ConfigError
from dinounet.schema.base import Positive, record

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

Share: TypeAlias = Annotated[float, Field(ge=0, lt=1)]


@record
class Recipe:
    """How the network is trained."""

    base: RecipeName = "default"
    """Named recipe that it started from; "paper" also plans spacing, slices and patch in its own way."""

    steps: Positive = 1000
    """Optimizer steps."""

    epochs: Positive | None = None
    """Training length in epochs of 250 steps, nnU-Net's, instead of steps."""

    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Training length in minutes, instead of steps: the schedule follows the clock."""

    batch_size: Positive = 2
    """Patches of a step."""

    optimizer: OptimizerName = "adamw"
    """Optimizer; sgd is with Nesterov momentum."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate, after warm-up and before the schedule."""

    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Weight decay of the optimizer."""

    momentum: Share = 0.99
    """Momentum of sgd."""

    schedule: Schedule = "cosine"
    """How the learning rate falls: cosine at every step, or poly (power 0.9) once in 250 steps, as nnU-Net's."""

    warmup: Annotated[int, Field(ge=0)] = 15
    """Steps over which the learning rate rises from zero."""

    initialisation: Initialisation = "pytorch"
    """Initial values of FAPM, enlargement and decoder: PyTorch's, as published, or he, as nnU-Net's."""

    deep_supervision: bool = True
    """Whether the decoder's outputs at 1/2 and 1/4 of the size learn as well; a U-Net's always do, as nnU-Net's."""

    max_grad_norm: Annotated[float, Field(gt=0)] = 12.0
    """Norm to which larger gradients are clipped."""

    foreground_fraction: Annotated[float, Field(ge=0, le=1)] = 0.33
    """Fraction of a batch's patches that are centred on foreground."""

    augmentation: Augmentation = "nnunet"
    """Augmentation of training patches."""

    cache_features: CacheFeatures = "off"
    """Whether the backbone's features of a fixed set of tiles are cached; auto: where that saves half of a step."""

    feature_variants: Positive = 1
    """With cached features: how often the intensities of each tile and view are changed, if augmentation is nnunet."""

    eval_interval: Positive = 100
    """Steps between two validations."""

    ema_decay: Share = 0.0
    """Decay of an exponential moving average of the weights, such as 0.999, which then is the model; 0: none."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of initial values, patches and drop path."""

    PLACE: ClassVar[str] = "recipe"

    def __post_init__(self) -> None:
        if self.epochs is not None and self.max_minutes is not None:
            raise ConfigError("recipe has both epochs and max_minutes; choose one length")

    @property
    def duration(self) -> str:
        """The length in words."""
        return f"{self.length} steps" if self.max_minutes is None else f"{self.max_minutes:g} minutes"

    @property
    def length(self) -> int:
        """Optimizer steps of the whole training, unless it is measured in minutes."""
        return self.steps if self.epochs is None else self.epochs * STEPS_AN_EPOCH


RECIPES: dict[RecipeName, Recipe] = {
    "default": Recipe(),
    "paper": Recipe(
        base="paper",
        steps=200 * 250,
        batch_size=IN_MEMORY,  # at the most: the dataset may ask for less
        optimizer="sgd",
        learning_rate=1e-3,
        weight_decay=3e-5,
        momentum=0.99,
        schedule="poly",
        warmup=0,
        deep_supervision=False,
        eval_interval=250,
    ),
}
"""The recipes by name."""
