"""Which cases, which network, which patch and batch: what is decided between a dataset and the first step."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from dinounet.data.dataset import Dataset
from dinounet.data.pairs import Case
from dinounet.data.splits import FOLDS, Fold, by_group
from dinounet.errors import ConfigError
from dinounet.files import join_some
from dinounet.network.backbone import FrozenBackbone
from dinounet.network.build import Network, build_network
from dinounet.network.dinounet import DinoUNet
from dinounet.network.initialisation import initialise_he
from dinounet.plans import Plan
from dinounet.progress import say
from dinounet.training.memory import fit_to_memory, measure_step


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
        say("folds", f"{dataset.name} has one case, or one group of cases: it is all trained on, and none is watched")
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


def check_plan(plan: Plan, dataset: Dataset) -> None:
    """An edited plan must still be one for this dataset."""
    names = tuple(channel.name for channel in plan.data.channels)
    if dataset.channels not in (None, names) or dataset.labels not in (None, plan.data.labels):
        raise ConfigError(
            f"the plan is for channels {list(names)} and labels {plan.data.labels}, but {dataset.name} has "
            f"{list(dataset.channels or names)} and {dataset.labels}; plan anew"
        )
    if dataset.meaning not in (None, plan.data.meaning):
        raise ConfigError(f"the plan has other regions, colours or another ignore label than {dataset.name}; plan anew")
    if plan.data.test_cases != dataset.test_cases:
        raise ConfigError(
            f"the plan holds out {join_some(plan.data.test_cases) or 'no case'}, and not what --test names; plan anew "
            "with that --test, or leave it out"
        )


def fit_plan(
    plan: Plan,
    frozen: FrozenBackbone | None,
    device: Literal["cpu", "cuda", "mps"],
    precision: Literal["fp32", "bf16", "fp16"],
    *,
    patch_is_given: bool,
    batch_is_given: bool,
) -> tuple[Plan, Network]:
    """Build the planned network and take a trial step; the plan comes back with patch and batch that memory allows.

    Raises:
        UserError: not even one patch fits, and it was given, or it can't be smaller.
    """
    network = build_planned(plan, frozen)
    memory = measure_step(network, plan, device, precision)
    fitted = fit_to_memory(plan, memory, patch_is_given=patch_is_given, batch_is_given=batch_is_given)
    return fitted, network if fitted.network == plan.network else build_planned(fitted, frozen)


def build_planned(plan: Plan, frozen: FrozenBackbone | None) -> Network:
    """The planned network with its initial values, which the recipe's seed decides."""
    torch.manual_seed(plan.recipe.seed)
    network = build_network(plan.network, frozen)
    if plan.recipe.initialisation == "he":
        initialise_he(network)
    if plan.data.channel_projection is not None and isinstance(network, DinoUNet):
        network.channel_projection = torch.tensor(plan.data.channel_projection)
    return network
