"""Whether what is asked for agrees with what a plan or an interrupted run has decided, and with itself.

Whatever is given is done or refused: an argument that contradicts a plan isn't passed over for the plan's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from dinounet.backbones.registry import find_variant, usual_precision
from dinounet.data.dataset import Dataset, read_dataset
from dinounet.errors import ConfigError
from dinounet.io import require_folder
from dinounet.planning.planner import with_groups
from dinounet.schema.network import NetworkConfig
from dinounet.schema.plan import GroupBy, Plan
from dinounet.schema.recipe import Architecture, Recipe, TrackerName
from dinounet.schema.run import RunRecord
from dinounet.system import Device, choose_precision, choose_training_device
from dinounet.training.logging import require_trackers


def check_options(
    micro_batch: int | None, checkpoint_minutes: float, track: tuple[TrackerName, ...], cache: Path | None
) -> None:
    """Check what can be told to be wrong before anything is looked at.

    Raises:
        UserError: a number is out of range, the cache can't be made, or a tracker isn't installed.
    """
    if micro_batch is not None and micro_batch < 1:
        raise ConfigError(f"--micro-batch is {micro_batch}; it must be at least 1")
    if not 0 <= checkpoint_minutes < math.inf:
        raise ConfigError(f"--checkpoint-minutes is {checkpoint_minutes:g}; it must be a number of at least 0")
    if cache is not None:
        require_folder(cache, "--cache")
    require_trackers(track)


def require_backbone(architecture: Architecture, asked: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Raise a ConfigError if something is asked of the backbone of a network that has none, or of what it always does.

    Args:
        architecture: of the network.
        asked: arguments about its backbone; None and False say nothing.
        changes: fields of the recipe that were given.
    """
    flags = [f"--{name.replace('_', '-')}" for name, value in asked.items() if value not in (None, False)]
    if architecture == "unet" and flags:
        raise ConfigError(f"a U-Net has no backbone; leave {' and '.join(flags)} out, or --network unet")
    if architecture == "unet" and "deep_supervision" in changes:
        raise ConfigError("a U-Net always has deep supervision, as nnU-Net's; leave --deep-supervision out")


def require_agreement(asked: Mapping[str, Any], held: Mapping[str, Any], told: str, remedy: str) -> None:
    """Make sure that what is asked for is what a plan or a run holds.

    Args:
        asked: arguments of `dinounet.train` that were given, by their names; None says nothing.
        held: what stands for them there.
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


def held_by(plan: Plan) -> dict[str, Any]:
    """What a plan holds of the arguments of `dinounet.train` that decide it."""
    network = plan.network
    variant = find_variant(network.backbone) if isinstance(network, NetworkConfig) else None
    return {
        **asdict(plan.recipe),
        "recipe": plan.recipe.base,
        "network": network.architecture,
        "backbone": getattr(network, "backbone", None),
        "taps": variant and (getattr(network, "taps", None) or variant.taps),
        "backbone_scale": getattr(network, "backbone_scale", None),
        "backbone_precision": getattr(network, "precision_of_backbone", None),
        "patch": plan.data.patch,
    }


def require_as_started(
    data: Path, output: Path, record: RunRecord, device: Device | None, asked: Mapping[str, Any]
) -> None:
    """Raise a ConfigError if a run was started with other options than these, which `dinounet.train` names."""
    plan, asked = record.plan, dict(asked)
    started_with = {
        **held_by(plan),
        "plan": plan,
        "fold": record.fold,
        "test": record.data.test_cases,
        "group": plan.data.groups.by,
        "labels": plan.data.meaning.as_given,
        "channels": tuple(channel.name for channel in plan.data.channels),
        "precision": record.precision,
        "weights": record.backbone and record.backbone.weights,
        "deterministic": record.deterministic,
    }
    if asked.get("test") is not None:
        asked["test"] = read_dataset(data, test=asked["test"], group=plan.data.groups.by).test_cases
    if asked.get("plan") is not None:  # which doesn't decide on features, and may leave it to the data what a group is
        as_read = read_dataset(data, test=record.data.test_cases, group=asked["plan"].data.groups.by)
        asked["plan"] = with_groups(replace(asked["plan"], features=plan.features), as_read)
    if asked.get("group") is not None:
        for options in (asked, started_with):
            options["group"] = read_dataset(data, test=record.data.test_cases, group=options["group"]).group
    if asked.get("precision") == "auto":
        asked["precision"] = choose_precision("auto", choose_training_device(device or record.device))
    told, remedy = f"{output} was started with another", "resume it without that option, or train anew"
    require_agreement(resolve(asked, plan), started_with, told, remedy)


def require_groups(by: GroupBy, dataset: Dataset, told: str) -> None:
    """Make sure that what a plan says of groups makes those that a dataset was read with.

    Args:
        by: what the plan says.
        dataset: as it was read.
        told: the beginning of the sentence if they differ.

    Raises:
        ConfigError: they differ.
    """
    if by not in ("auto", dataset.group) and not (by == "column" and dataset.group == "none"):
        raise ConfigError(f"{told}; change data.groups.by there, or leave --group out")


def as_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments about the backbone as fields of a NetworkConfig."""
    return {name: None if value == "auto" else value for name, value in options.items()}


def resolve(asked: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """The arguments, of which "auto" is what it stands for with the plan's backbone."""
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
