"""What a training session is asked for, and whether that agrees with what a plan or an interrupted run has decided.

Whatever is given is done or refused: an argument that contradicts a plan isn't passed over for the plan's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from dinounet.backbones.hub import source_of
from dinounet.backbones.registry import find_variant, usual_precision
from dinounet.data.dataset import Dataset, parse_channels, read_dataset
from dinounet.data.splits import hold_out, read_test_list
from dinounet.errors import ConfigError
from dinounet.io import require_folder
from dinounet.planning.planner import choose_any_recipe, require_fields, with_groups
from dinounet.schema.labels import parse_labels
from dinounet.schema.network import NetworkConfig
from dinounet.schema.plan import Fold, GroupBy, GroupRule, Plan, read_plan
from dinounet.schema.recipe import CHECKPOINT_MINUTES, Architecture, Recipe, RecipeName, TrackerName
from dinounet.schema.run import RunRecord
from dinounet.system import Device, Precision, choose_precision, choose_training_device
from dinounet.training.logging import require_trackers

OF_PLAN = ("recipe", "network", "backbone", "taps", "backbone_scale", "backbone_precision", "patch")
"""Options that a plan decides, beside the fields of its recipe."""

OF_RUN = ("fold", "group", "precision", "deterministic")
"""Options that a run keeps as they were given."""


@dataclass(frozen=True)
class TrainOptions:
    """The arguments of `dinounet.train`, which documents them; None: not given, so that a plan or a run decides.

    Raises:
        UserError: a number is out of range, the cache can't be made, or a tracker isn't installed.
    """

    recipe: Recipe | RecipeName | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    network: Architecture | None = None
    backbone: str | None = None
    taps: tuple[int, int, int, int] | None = None
    backbone_scale: float | None = None
    backbone_precision: Literal["auto", "fp32", "bf16", "int8"] | None = None
    weights: str | None = None
    plan: Path | None = None
    patch: tuple[int, int] | None = None
    fold: Fold | None = None
    test: Path | None = None
    group: GroupRule | None = None
    labels: str | None = None
    channels: str | None = None
    device: Device | None = None
    precision: Precision | None = None
    micro_batch_size: int | Literal["auto"] | None = None
    offload: bool | None = None
    cache: Path | None = None
    deterministic: bool | None = None
    checkpoint_minutes: float = CHECKPOINT_MINUTES
    track: tuple[TrackerName, ...] | None = None
    notes: tuple[str, ...] = ()
    """Of the caller, for the run's record."""

    def __post_init__(self) -> None:
        require_fields(self.changes)
        if isinstance(self.recipe, Recipe):
            choose_any_recipe(self.recipe, self.changes)  # which has none beside it
        if isinstance(self.micro_batch_size, int) and self.micro_batch_size < 1:
            raise ConfigError(f"--micro-batch-size is {self.micro_batch_size}; it must be at least 1")
        if not 0 <= self.checkpoint_minutes < math.inf:
            raise ConfigError(f"--checkpoint-minutes is {self.checkpoint_minutes:g}; it must be a number of at least 0")
        if self.cache is not None:
            require_folder(self.cache, "--cache")
        require_trackers(self.track or ())

    @property
    def of_plan(self) -> dict[str, Any]:
        """The options that a plan decides, fields of its recipe among them."""
        return {**{name: getattr(self, name) for name in OF_PLAN}, **self.changes}

    @property
    def of_backbone(self) -> dict[str, Any]:
        """What was given of the backbone's part of a network's configuration, by the configuration's names."""
        given = {name: getattr(self, name) for name in ("taps", "backbone_scale", "backbone_precision")}
        return {name: None if value == "auto" else value for name, value in given.items() if value is not None}


def require_backbone(architecture: Architecture, options: TrainOptions, changes: Mapping[str, Any]) -> None:
    """Raise a ConfigError if a U-Net is given options of a backbone, or of what it always does.

    Args:
        architecture: of the network.
        options: of the session.
        changes: fields of the recipe that were given.
    """
    names = ("backbone", "backbone_scale", "backbone_precision", "taps", "weights", "offload")
    flags = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) not in (None, False)]
    if architecture == "unet" and flags:
        raise ConfigError(f"a U-Net has no backbone; leave {' and '.join(flags)} out, or --network unet")
    if architecture == "unet" and "deep_supervision" in changes:
        raise ConfigError("a U-Net always has deep supervision, as nnU-Net's; leave --deep-supervision out")


def require_agreement(asked: Mapping[str, Any], held: Mapping[str, Any], told: str, remedy: str) -> None:
    """Raise a ConfigError if a given option differs from what a plan or a run has decided.

    Args:
        asked: arguments of `dinounet.train` by their names; None: not given.
        held: the plan's or run's values, by the same names.
        told: the beginning of the sentence if something differs; the argument's name follows.
        remedy: its end, of what to do.

    Raises:
        ConfigError: something differs.
    """
    for name, value in asked.items():
        wanted, there = value, held[name]
        if isinstance(value, Recipe):
            wanted, there = _differing(asdict(value), {field: held[field] for field in asdict(value)})
        elif isinstance(value, Plan):
            parts = [{field.name: getattr(plan, field.name) for field in fields(Plan)} for plan in (value, there)]
            wanted, there = (f"another {', '.join(part)}" if part else part for part in _differing(*parts))
            there = there and "its own"
        if value is not None and wanted != there:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{told} {name} ({_tell(there)}) than {flag} asks for ({_tell(wanted)}); {remedy}")


def decisions_of(plan: Plan) -> dict[str, Any]:
    """The values in a plan that arguments of `dinounet.train` decide, by the arguments' names."""
    network = plan.network
    return {
        **asdict(plan.recipe),
        "recipe": plan.recipe.base,
        "network": network.architecture,
        "backbone": getattr(network, "backbone", None),
        "taps": getattr(network, "taps", None),
        "backbone_scale": getattr(network, "backbone_scale", None),
        "backbone_precision": getattr(network, "backbone_precision", None),
        "patch": plan.data.patch,
    }


def dataset_reader(data: Path, record: RunRecord) -> Callable[[GroupBy], Dataset]:
    """A function that reads a run's dataset, grouped by the run's own rule or another one; by each of them once."""
    return cache(lambda by: read_dataset(data, test=record.data.test_cases, group=by))


def require_as_started(
    read: Callable[[GroupBy], Dataset], output: Path, record: RunRecord, options: TrainOptions
) -> None:
    """Raise a ConfigError if a run was started with other options than these.

    Args:
        read: of `dataset_reader`; called only where an option is about the cases.
        output: the run's folder.
        record: what it holds.
        options: what is asked for.
    """
    plan, groups = record.plan, record.plan.data.groups
    asked = {**options.of_plan, **{name: getattr(options, name) for name in OF_RUN}}
    started_with = {
        **decisions_of(plan),
        "plan": plan,
        "fold": record.fold,
        "test": record.data.test_cases,
        "group": groups.by,
        "labels": plan.data.labels.as_cli,
        "channels": tuple(channel.name for channel in plan.data.channels),
        "precision": record.precision,
        "weights": record.backbone and record.backbone.weights,
        "deterministic": record.deterministic,
    }
    asked["weights"] = options.weights and source_of(options.weights)
    asked["labels"] = parse_labels(options.labels) if options.labels else None
    asked["channels"] = parse_channels(options.channels) if options.channels else None
    if options.test is not None:
        dataset = read(groups.by)
        every = sorted((*dataset.cases, *dataset.held_out), key=lambda case: case.name)
        held_out = hold_out(every, read_test_list(options.test), dataset.group)[1]
        asked["test"] = tuple(case.name for case in held_out)
    if options.plan is not None:  # which doesn't decide on features, and may leave it to the data what a group is
        given = read_plan(options.plan)
        asked["plan"] = with_groups(replace(given, features=plan.features), read(given.data.groups.by))
    if options.group is not None:
        for found in (asked, started_with):
            found["group"] = read(found["group"]).group
    if options.precision == "auto":
        device = options.device or record.device
        asked["precision"] = choose_precision("auto", choose_training_device(device))
    told, remedy = f"{output} was started with another", "resume it without that option, or train a new run"
    require_agreement(resolve(asked, plan), started_with, told, remedy)


def require_groups(by: GroupBy, dataset: Dataset, told: str) -> None:
    """Raise a ConfigError if a plan groups cases in another way than a dataset was read with.

    Args:
        by: what the plan says.
        dataset: as it was read.
        told: the beginning of the sentence if they differ.

    Raises:
        ConfigError: they differ.
    """
    if by not in ("auto", dataset.group) and not (by == "column" and dataset.group == "none"):
        raise ConfigError(f"{told}; change data.groups.by there, or leave --group out")


def resolve(asked: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """The arguments, with "auto" replaced by what it stands for with the plan's backbone."""
    if asked.get("backbone_precision") != "auto" or not isinstance(plan.network, NetworkConfig):
        return dict(asked)
    return {**asked, "backbone_precision": usual_precision(find_variant(plan.network.backbone))}


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    names = [name for name in one if one[name] != other[name]]
    return {name: one[name] for name in names}, {name: other[name] for name in names}


def _tell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_tell(part)}" for name, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else "none" if value is None else str(value)
