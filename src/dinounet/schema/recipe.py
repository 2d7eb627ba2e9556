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
    """Named recipe that this one is based on; "paper" also plans spacing, slices and patch in its own way."""

    steps: Positive = 1000
    """Number of optimizer steps."""

    epochs: Positive | None = None
    """Training length in epochs of 250 steps, as in nnU-Net, instead of steps."""

    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Training length in minutes, instead of steps; the learning rate then follows the elapsed time."""

    batch_size: Positive = 2
    """Batch size: the number of patches per optimizer step."""

    optimizer: OptimizerName = "adamw"
    """Optimizer; sgd is used with Nesterov momentum."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate, after warm-up and before it decays to zero."""

    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Weight decay."""

    momentum: Share = 0.99
    """Momentum of sgd."""

    schedule: Schedule = "cosine"
    """Learning rate decay: cosine at every step, or poly (power 0.9) once in 250 steps, as in nnU-Net."""

    warmup: Annotated[int, Field(ge=0)] = 15
    """Number of warm-up steps, in which the learning rate rises from zero."""

    initialisation: Initialisation = "pytorch"
    """Initial weights of FAPM, upsampling and decoder: pytorch (its defaults, as published), or he, as in nnU-Net."""

    deep_supervision: bool = True
    """Whether the loss includes outputs at 1/2 and 1/4 resolution; it always does for a U-Net, as in nnU-Net."""

    max_grad_norm: Annotated[float, Field(gt=0)] = 12.0
    """Maximum norm of the gradient, which is clipped beyond."""

    foreground_fraction: Annotated[float, Field(ge=0, le=1)] = 0.33
    """Fraction of a batch's patches that are centred on foreground."""

    augmentation: Augmentation = "nnunet"
    """Augmentation of training patches: all of nnU-Net's (nnunet), mirroring only (flip), or none."""

    cache_features: CacheFeatures = "off"
    """Whether to compute the backbone's features of a fixed set of tiles once, instead of at every step; auto: if this
    saves half of a step."""

    feature_variants: Positive = 1
    """Number of intensity augmentations of each tile and view, for cached features with the augmentation nnunet."""

    eval_interval: Positive = 100
    """Number of steps between validations."""

    ema_decay: Share = 0.0
    """Decay of an exponential moving average of the weights, such as 0.999, which then becomes the model; 0: no
    averaging."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of initial weights, patches and drop path."""

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
