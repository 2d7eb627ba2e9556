"""The plan of a run: recipe, network and fold, joined with what the data asks for."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from dinounet.console import progress, say
from dinounet.data.dataset import Dataset
from dinounet.data.layouts import Case
from dinounet.data.splits import FOLDS, by_group
from dinounet.errors import ConfigError
from dinounet.planning.data_plan import plan_data
from dinounet.schema.network import NetworkConfig, plan_unet
from dinounet.schema.plan import DataPlan, Fold, Plan
from dinounet.schema.recipe import IN_MEMORY, RECIPES, Recipe, RecipeName

PATCH = (512, 512)
SLICE_AXIS = 0
LARGEST_SHARE = 0.05
"""Share of all the dataset's pixels in one batch."""
LEAST_BATCH = 2


def plan_as_published(data: DataPlan) -> DataPlan:
    """Slices along the first axis, and a spacing at which the median slice has 512 x 512 pixels.

    Images that don't know their spacing count as 1 apart, as in nnU-Net's reader of flat images, if none knows it.
    """
    seen = data.fingerprint
    spacing = seen.median_spacing or (1.0, 1.0, 1.0)
    rows, columns = (
        distance * length / side
        for distance, length, side in zip(spacing[1:], seen.median_shape[1:], PATCH, strict=True)
    )
    unknown = None if seen.median_spacing and not seen.cases_without_spacing else 1.0
    return replace(data, slice_axis=SLICE_AXIS, spacing=(rows, columns), unknown_spacing=unknown)


def largest_batch(data: DataPlan) -> int:
    """nnU-Net's rule for 2D: as many patches as a plain U-Net takes in 8 GB, 5 % of the dataset's pixels at most.

    The dataset counts with every case as large as the median one, whose slices have 512 x 512 pixels.
    """
    seen = data.fingerprint
    pixels = seen.cases * seen.median_shape[SLICE_AXIS] * math.prod(PATCH)
    return max(LEAST_BATCH, min(IN_MEMORY, round(pixels * LARGEST_SHARE / math.prod(data.patch))))


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
        recipe = replace(recipe, batch_size=largest_batch(data))
    lengths = [name for name in ("steps", "epochs", "max_minutes") if changes.get(name) is not None]
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


def decides_batch(recipe: Recipe | RecipeName, changes: Mapping[str, Any]) -> bool:
    """Whether the batch is asked for, so that it isn't what the device has room for."""
    return recipe != "default" or "batch_size" in changes


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


def make_plan(data: DataPlan, recipe: Recipe, network: NetworkConfig | None) -> Plan:
    """Join what the data asks for with a recipe and a network, by default nnU-Net's U-Net for the patch."""
    channels, outputs = len(data.channels), len(data.labels.outputs)
    if network is None:
        return Plan(data, plan_unet(data.patch, in_channels=channels, num_classes=outputs), recipe)
    deep = recipe.deep_supervision
    return Plan(data, replace(network, in_channels=channels, num_classes=outputs, deep_supervision=deep), recipe)


def plan_dataset(
    dataset: Dataset,
    recipe: Recipe | RecipeName,
    network: NetworkConfig | None,
    patch: tuple[int, int] | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
) -> Plan:
    """Look at every case of a dataset, telling how far that is, and plan.

    Args:
        dataset: what to look at.
        recipe: one with every decision made, or a name.
        network: Dino U-Net, whose channels and outputs the dataset decides; None for nnU-Net's U-Net.
        patch: rows and columns; by default what covers the median slice, or the recipe's.
        changes: fields of a named recipe that are to be other than it says.

    Raises:
        DataError: what is wrong with the images and masks, all together.
        ConfigError: no recipe has that name, or a change is none.
    """
    base: RecipeName = choose_any_recipe(recipe, changes or {}).base
    with progress("looking at the data", len(dataset.cases) + len(dataset.held_out)) as advance:
        data = plan_data(dataset, patch or (PATCH if base == "paper" else None), on_case=advance)
    if base == "paper":
        data = plan_as_published(data)
    if not isinstance(recipe, Recipe):
        recipe = choose_recipe(recipe, changes or {}, data)
    return make_plan(data, recipe, network)


def require_fold(dataset: Dataset, fold: Fold | None) -> None:
    """Raise a ConfigError if there is no such fold."""
    if fold in (None, "all"):
        return
    if not dataset.splits:
        raise ConfigError(
            f"{dataset.name} has one case, or one group of cases, which can't be split; train on it, without "
            "validation, by --fold all"
        )
    if not 0 <= int(fold) < len(dataset.splits):
        raise ConfigError(
            f"{dataset.name} has {len(dataset.splits)} folds, numbered from 0, and no fold {fold}; "
            "choose another, or --fold all to train on all cases"
        )


def choose_fold(dataset: Dataset, fold: Fold | None) -> Fold:
    """The fold to train: what was asked for, or else the first; where nothing can be split, all cases.

    Raises:
        ConfigError: there is no such fold.
    """
    require_fold(dataset, fold)
    units = len(by_group(dataset.cases))
    kind = "groups of cases" if units < len(dataset.cases) else "cases"
    if fold == "all":
        return fold
    if not dataset.splits:
        say("folds", f"{dataset.name} has one case, or one group of cases: all of it is trained on, without validation")
        return "all"
    if len(dataset.splits) == units < FOLDS:
        say("folds", f"{dataset.name} has {units} {kind}, so there are {units} folds and not {FOLDS}", folds=units)
    return fold or 0


def split(dataset: Dataset, fold: Fold) -> tuple[list[Case], list[Case]]:
    """Training and validation cases."""
    if fold == "all":
        return list(dataset.cases), []
    train_names, validation_names = dataset.splits[fold]
    by_name = {case.name: case for case in dataset.cases}
    return [by_name[name] for name in train_names], [by_name[name] for name in validation_names]


def with_groups(plan: Plan, dataset: Dataset) -> Plan:
    """A plan with the groups that the dataset was read with, and the sentences about them."""
    groups = replace(plan.data.groups, by=dataset.group, remarks_on_files=dataset.remarks)
    return replace(plan, data=replace(plan.data, groups=groups))
