"""The plan: every decision of a run in one file that a person can read and edit, `plan.json`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from dinounet.arguments import check_fields
from dinounet.data.augmentation import Augmentation
from dinounet.data.dataset import Dataset
from dinounet.data.paper import IN_MEMORY, PATCH, largest_batch, plan_as_published
from dinounet.data.plan import DataPlan, plan_data
from dinounet.errors import ConfigError
from dinounet.files import read_record
from dinounet.network.config import NetworkConfig, UNetConfig, plan_unet
from dinounet.progress import progress

FORMAT = 1

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


def choose_recipe(name: RecipeName, changes: Mapping[str, Any], data: DataPlan | None = None) -> Recipe:
    """A named recipe with some fields changed; what it lets the data decide is decided once the data is given.

    Raises:
        ConfigError: there is no such recipe or field, a value is out of range, or a change would change nothing.
    """
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}; choose {' or '.join(RECIPES)}")
    require_fields(changes)
    recipe = RECIPES[name]
    if name == "paper" and data is not None:
        recipe = replace(recipe, batch=largest_batch(data))
    lengths = [name for name in ("steps", "epochs", "minutes") if changes.get(name) is not None]
    if len(lengths) > 1:
        raise ConfigError(f"recipe has both {' and '.join(lengths)}; choose one length")
    chosen = replace(recipe, **changes)
    unused = {
        "momentum": (chosen.optimizer != "sgd", "sgd's, and the optimizer is adamw"),
        "feature_variants": (
            chosen.cache_features == "off" or chosen.augmentation != "nnunet",
            "of cached features, whose intensities nnU-Net's augmentation changes",
        ),
    }
    for field, (is_unused, why) in unused.items():
        if field in changes and is_unused:
            raise ConfigError(f"recipe.{field} is {why}; leave it out, or choose that too")
    return chosen


SHARE_OF_MEMORY = 0.8
"""Of what is free; the rest is for the processes that prepare patches, and for what no trial foresees."""


def decides_batch(recipe: Recipe | RecipeName, changes: Mapping[str, Any]) -> bool:
    """Whether the batch is asked for, so that it isn't what the device has room for."""
    return recipe != "default" or "batch" in changes


@dataclass(frozen=True)
class StepMemory:
    """What a training step takes, in bytes, by a trial step."""

    device: Literal["cpu", "cuda", "mps"]
    """Where it was tried."""

    free: int
    """There, before the step."""

    fixed: int
    """Gradients and the optimizer's state, whatever the batch."""

    a_pixel: float
    """Of a patch, forward and backward."""

    def patches(self, patch: tuple[int, int]) -> int:
        """How many patches may go through the network together."""
        return int((SHARE_OF_MEMORY * self.free - self.fixed) / (self.a_pixel * math.prod(patch)))

    def needed(self, patch: tuple[int, int]) -> float:
        """How much should be free for one patch."""
        return (self.fixed + self.a_pixel * math.prod(patch)) / SHARE_OF_MEMORY


@dataclass(frozen=True)
class FeatureChoice:
    """Whether the backbone's features are cached, where that was asked for, or to be found out."""

    cached: bool
    """Whether training reads them from the disk."""

    why: str
    """In words."""

    bytes: int
    """On disk, for the training and validation cases together."""

    backbone_share: float | None = None
    """Of the time of a step without cache; None if it was not measured."""


@dataclass(frozen=True)
class Plan:
    """All of it."""

    data: DataPlan
    """From a file to a patch."""

    network: NetworkConfig | UNetConfig
    """From a patch to logits; its architecture says which network it is."""

    recipe: Recipe
    """From logits to a trained network."""

    memory: StepMemory | None = None
    """What a step takes, which patch and batch must fit into."""

    features: FeatureChoice | None = None
    """Whether they are cached; a run finds it out anew."""

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
        if isinstance(self.network, NetworkConfig) and self.network.deep_supervision != self.recipe.deep_supervision:
            raise ConfigError("network.deep_supervision and recipe.deep_supervision differ; make them equal")
        if isinstance(self.network, UNetConfig) and self.recipe.cache_features == "on":
            raise ConfigError("a U-Net has no backbone whose features could be cached; leave out --cache-features")
        outputs = self.data.meaning.outputs
        if self.network.num_classes != len(outputs):
            what = "labels" if self.data.regions is None else "regions"
            raise ConfigError(f"network.num_classes is {self.network.num_classes} but data names {len(outputs)} {what}")


def require_fields(changes: Mapping[str, Any]) -> None:
    """Raise a ConfigError if a recipe has no field of some name; the nearest is told."""
    known = [field.name for field in fields(Recipe) if field.name != "base"]
    for key in changes:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            raise ConfigError(f"a recipe has no {key!r}; did you mean {near[0]!r}?")


def choose_any_recipe(recipe: Recipe | RecipeName, changes: Mapping[str, Any]) -> Recipe:
    """A recipe with every decision made, which has no changes beside it, or a named one with some.

    Raises:
        ConfigError: as `choose_recipe`, or there are changes beside a whole recipe.
    """
    if not isinstance(recipe, Recipe):
        return choose_recipe(recipe, changes)
    if changes:
        raise ConfigError(
            f"changes ({', '.join(changes)}) are of a named recipe, and a Recipe is given; change its fields instead"
        )
    return recipe


def make_plan(
    data: DataPlan,
    recipe: Recipe,
    backbone: str,
    architecture: Architecture = "dinounet",
    backbone_options: Mapping[str, Any] | None = None,
) -> Plan:
    """Join what the data asks for with a recipe and a network; a U-Net has no backbone, and no options of one."""
    network: NetworkConfig | UNetConfig
    channels, outputs = len(data.channels), len(data.meaning.outputs)
    if architecture == "unet":
        network = plan_unet(data.patch, in_channels=channels, num_classes=outputs)
    else:
        network = NetworkConfig(
            backbone=backbone,
            in_channels=channels,
            num_classes=outputs,
            deep_supervision=recipe.deep_supervision,
            **(backbone_options or {}),
        )
    return Plan(data, network, recipe)


def plan_dataset(
    dataset: Dataset,
    recipe: Recipe | RecipeName,
    backbone: str,
    patch: tuple[int, int] | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
    architecture: Architecture = "dinounet",
    backbone_options: Mapping[str, Any] | None = None,
) -> Plan:
    """Look at every case of a dataset, telling how far that is, and plan.

    Args:
        dataset: what to look at.
        recipe: one with every decision made, or a name.
        backbone: of Dino U-Net.
        patch: rows and columns; by default what covers the median slice, or the recipe's.
        changes: fields of a named recipe that are to be other than it says.
        architecture: which network.
        backbone_options: `taps` and `backbone_scale` of Dino U-Net, where they are asked for.

    Raises:
        DataError: what is wrong with the images and masks, all together.
        ConfigError: no backbone or recipe has that name, or a change is none.
    """
    NetworkConfig(backbone=backbone, **(backbone_options or {}))  # before the pixels, which take longer
    base: RecipeName = choose_any_recipe(recipe, changes or {}).base
    with progress("looking at the data", len(dataset.cases) + len(dataset.held_out)) as advance:
        data = plan_data(dataset, patch or (PATCH if base == "paper" else None), on_case=advance)
    if base == "paper":
        data = plan_as_published(data)
    if not isinstance(recipe, Recipe):
        recipe = choose_recipe(recipe, changes or {}, data)
    return make_plan(data, recipe, backbone, architecture, backbone_options)


def read_plan(path: Path) -> Plan:
    """Read a plan, strictly."""
    return read_record(Plan, path, what="the plan of a run")
