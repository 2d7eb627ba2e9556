"""Dino U-Net as a plan of nnU-Net's names it: built from JSON, with the backbone filled and known by its hash.

nnU-Net finds a network's class by the plan's `architecture.network_class_name` and calls it with the plan's
`arch_kwargs`. So its stock commands train and predict with this one wherever dinounet is installed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Literal

import torch

from dinounet.backbones.frozen import build_backbone
from dinounet.backbones.weights import fill_backbone
from dinounet.errors import ConfigError, WeightsError
from dinounet.network.dinounet import DinoUNet
from dinounet.schema.base import Migrations, record, to_record
from dinounet.schema.migrations import resolve_backbone
from dinounet.schema.network import BackboneRecord, NetworkConfig

CONFIGURATION = "2d"
NETWORK_CLASS = f"{__name__}.PlannedDinoUNet"
"""What names this network in a plan."""

NETWORK_CLASSES = (NETWORK_CLASS, "dinounet.integrations.nnunet.network.PlannedDinoUNet")
"""What names it in plans of any version."""

STRIDES = ((1, 1), (2, 2), (2, 2), (2, 2))
"""Where nnU-Net reads at which scales there are logits: all but the last, so 1, 1/2 and 1/4."""

WEIGHTS = "DINOUNET_WEIGHTS"
"""Environment variable: a backbone's file or folder of weights, where a plan of another machine names one."""

FROM_NNUNET = ("in_channels", "num_classes", "deep_supervision")
"""Fields of the network's configuration that nnU-Net decides, from the dataset and the trainer."""


@record
class PlannedNetwork:
    """What a plan's `arch_kwargs` hold.

    Raises:
        ConfigError: another version of dinounet wrote them.
    """

    network: dict[str, Any]
    """Of the network's configuration all but what nnU-Net decides."""

    weights: str
    """Where the backbone's weights come from: hub, random, or a file or folder."""

    sha256: str
    """Of the backbone's numbers; others are refused."""

    seed: int = 0
    """Of random weights."""

    channel_projection: tuple[tuple[float, ...], ...] | None = None
    """Three mixtures of the channels, which the backbone sees, where there are neither one nor three."""

    strides: tuple[tuple[int, int], ...] = STRIDES
    """Read by nnU-Net alone."""

    format: Literal[2] = 2
    """Version of these keys."""

    MIGRATIONS: ClassVar[Migrations] = {1: resolve_backbone}

    def configure(self, channels: int, outputs: int, deep_supervision: bool = False) -> NetworkConfig:
        """The configuration for a dataset of so many channels and outputs."""
        decided = dict(zip(FROM_NNUNET, (channels, outputs, deep_supervision), strict=True))
        return to_record(NetworkConfig, {**self.network, **decided}, where="the plan's network")


def find_configuration(planned: Any, where: str, configuration: str = CONFIGURATION) -> Mapping[str, Any]:
    """A configuration of slices in a plan of nnU-Net's.

    Args:
        planned: content of the plan.
        where: it comes from.
        configuration: its name in the plan.

    Raises:
        ConfigError: it is of volumes, or not there.
    """
    if configuration.startswith("3d"):
        raise ConfigError(f"the configuration {configuration} is of volumes, and Dino U-Net segments slices; use 2d")
    parts = planned.get("configurations", {}) if isinstance(planned, Mapping) else {}
    if configuration not in parts:
        raise ConfigError(f"{where} has no configuration {configuration} but {', '.join(parts) or 'none'}; use 2d")
    part: Mapping[str, Any] = parts[configuration]
    return part


def names_dinounet(part: Any) -> bool:
    """Whether a plan's configuration is of this network."""
    return isinstance(part, Mapping) and part.get("architecture", {}).get("network_class_name") in NETWORK_CLASSES


def read_arguments(arguments: Any) -> PlannedNetwork:
    """A plan's `arch_kwargs`, read strictly.

    Raises:
        ConfigError: a key is unknown, missing or wrong, or another version of dinounet wrote them.
    """
    return to_record(PlannedNetwork, arguments, where="the plan's arch_kwargs")


def architecture_of(
    network: NetworkConfig, backbone: BackboneRecord, seed: int, projection: tuple[tuple[float, ...], ...] | None
) -> dict[str, Any]:
    """What stands under `architecture` in a plan."""
    kept = {name: value for name, value in asdict(network).items() if name not in FROM_NNUNET}
    planned = PlannedNetwork(kept, backbone.weights, backbone.sha256, seed, projection)
    return {
        "network_class_name": NETWORK_CLASS,
        "arch_kwargs": asdict(planned),
        "_kw_requires_import": [],
    }


class PlannedDinoUNet(DinoUNet):
    """Dino U-Net, called as nnU-Net calls its networks.

    Shapes: (B, C, H, W) -> logits (B, K, H, W), or while `decoder.deep_supervision` is set, which nnU-Net does, a
    list at 1, 1/2 and 1/4, in evaluation mode too. `state_dict()`, and so a checkpoint, holds the trained tensors only.

    Args:
        input_channels: C.
        num_classes: K.
        deep_supervision: whether to start with the list.
        arguments: `PlannedNetwork`, from the plan.

    Raises:
        ConfigError: the plan is of another version, or contradicts itself.
        WeightsError: the backbone's weights can't be had, or are not those that the plan was made with.
    """

    def __init__(self, input_channels: int, num_classes: int, deep_supervision: bool = False, **arguments: Any) -> None:
        planned = read_arguments(arguments)
        config = planned.configure(input_channels, num_classes, deep_supervision)
        weights = os.environ.get(WEIGHTS) or planned.weights
        backbone = build_backbone(config)
        found = fill_backbone(backbone, config.backbone, weights, planned.seed)
        if found.sha256 != planned.sha256:
            raise WeightsError(
                f"the weights from {found.weights} are not those of the plan (sha256 {found.sha256[:12]}, not "
                f"{planned.sha256[:12]}); name the right ones by the environment variable {WEIGHTS}, or train anew"
            )
        super().__init__(config, backbone)
        if planned.channel_projection is not None:
            self.channel_projection = torch.tensor(planned.channel_projection)
        self.decoder.deep_supervision = deep_supervision  # type: ignore[assignment]  # nnU-Net sets it too

    @property
    def supervises(self) -> bool:
        """As nnU-Net has it, in both modes."""
        return bool(self.decoder.deep_supervision)
