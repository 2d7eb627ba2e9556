"""The records of a bundle, `model.json`, and of a folder of exported networks, `onnx.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

from dinounet.errors import ConfigError
from dinounet.schema.base import Migrations, record
from dinounet.schema.migrations import resolve_bundle, units_at_the_detector
from dinounet.schema.network import AnyNetworkConfig, BackboneRecord, NetworkConfig
from dinounet.schema.plan import DataPlan, Fold, Plan
from dinounet.schema.prediction import Postprocessing, check_names
from dinounet.schema.recipe import Recipe

BUNDLE = "model.json"
CARD = "README.md"
BACKBONE_FILE = "backbone.safetensors"
"""Beside an imported network: the frozen backbone that its checkpoint held. It is used here and pushed nowhere."""

LARGEST_NUMBER = 8192
"""Of channels, or pixels along a patch: twice what the largest backbone has."""

MOST_BLOCKS = 256
"""Of a backbone, or numbers in one list: six times what the largest backbone has."""


@record
class Estimate:
    """A mean over cases."""

    mean: float
    """Over the cases, empty masks counted as the policy says."""

    low: float | None
    """Lower end of the interval of 95 % confidence; None where there is one case only."""

    high: float | None
    """Its upper end."""


@record
class Basis:
    """What a mean Dice rests on, of a class, or over classes of pairs of case and class."""

    present: int
    """Cases whose truth has the class."""

    dice: Estimate | None
    """Mean over these alone; None where there is none."""

    absent: int
    """Cases whose truth lacks the class."""

    false_alarms: int
    """How many of these hold it in the prediction."""

    floor: float
    """Dice of an all-background prediction of the same cases."""

    above_floor: Estimate
    """Mean Dice minus the floor."""


@record
class Measured:
    """How well a network did on cases that it had not learned from."""

    part: Literal["validation", "test"]
    """validation: watched in training, and what postprocessing was chosen on; test: held out from all of it."""

    cases: int
    """How many there were."""

    unit: Literal["mm", "mm at the detector", "px"]
    """Of hd95 and assd."""

    volume_unit: Literal["ml", "mm2", "mm2 at the detector", "px"]
    """Of volume_difference."""

    tolerance: float
    """Of nsd, in this unit."""

    policy: str
    """What an empty mask counts."""

    bootstrap: str
    """How the intervals came about."""

    classes: dict[str, dict[str, Estimate]]
    """Of each class or region each measure."""

    mean: dict[str, Estimate]
    """Over classes and cases."""

    basis: dict[str, Basis] | None = None
    """Of each class, what its mean Dice rests on; None where an older dinounet measured."""

    basis_over_classes: Basis | None = None
    """The same over classes."""

    warning: str = ""
    """That the network, or in which classes, isn't clearly above an all-background prediction; empty if it is."""

    left_out: tuple[str, ...] = ()
    """Classes that are not in the means over classes."""


@record
class Training:
    """What made a network. It names no case, no person and no path."""

    recipe: dict[str, str | int | float | bool | None]
    """How it was trained, as the version that trained it names that; prediction reads nothing of it."""

    fold: Fold
    """Which of the dataset's splits; all: every case was learned from."""

    training_cases: int
    """Learned from."""

    validation_cases: int
    """Watched, not learned from."""

    test_cases: int
    """Held out."""

    data_sha256: str
    """Of the names and contents of all training images and masks."""

    command: tuple[str, ...]
    """As typed, with PATH where a path stood."""

    versions: dict[str, str]
    """Of what computed."""

    device: str
    """Where it was trained."""

    precision: str
    """Of the computation; the weights are float32."""

    started: str
    """Time in UTC."""

    seconds: float
    """Spent training."""

    steps: int
    """Of the optimizer."""

    trained_parameters: int
    """Numbers that were trained."""

    notes: tuple[str, ...] = ()
    """What a reader of the results must know."""

    absent_classes: tuple[str, ...] = ()
    """Classes, or regions, without a pixel in the training cases."""


@record
class BundledNetwork:
    """One of the networks."""

    network: AnyNetworkConfig
    """What it takes to build it again."""

    sha256: str
    """Of its file of weights."""

    backbone: BackboneRecord | None
    """What it stands on, whose weights are hub, random, or file: a file of the maker's, which anybody needs who has no
    other with the same numbers. A U-Net has none."""

    training: Training | None
    """What made it; None for a network that was imported."""

    seed: int = 0
    """Of the recipe; a random backbone is made anew from it."""

    metrics: tuple[Measured, ...] = ()
    """Of this network alone."""


@record
class BundleRecord:
    """What `model.json` holds."""

    data: DataPlan
    """From a file to a patch: channels and their normalisation, labels, spacing, patch, without names of cases."""

    networks: tuple[BundledNetwork, ...]
    """Of several, such as a dataset's folds, the probabilities are averaged."""

    postprocessing: Postprocessing | None
    """What is done with masks, without names of cases; of several networks what was chosen for all of them."""

    made: str
    """When it was exported, in UTC."""

    versions: dict[str, str]
    """Of dinounet and what it stands on, when it was exported."""

    licence: str | None = None
    """That its makers give the trained weights, as the Hub names licences; None: they named none."""

    origin: str | None = None
    """Of imported networks, what they were imported from, in words."""

    format: Literal[3] = 3
    """Version of this file's keys."""

    MIGRATIONS: ClassVar[Migrations] = {1: units_at_the_detector, 2: resolve_bundle}

    def __post_init__(self) -> None:
        if not self.networks:
            raise ConfigError("networks is empty; name one at least")
        for index, one in enumerate(self.networks):
            self._plan(one)  # which checks that they fit together
            _require_sane(asdict(one.network) | {"patch": self.data.patch}, f"networks[{index}]")
            if isinstance(one.network, NetworkConfig) != (one.backbone is not None):
                raise ConfigError(f"networks[{index}] has a backbone that does not go with its architecture")
            if one.backbone and one.backbone.weights not in ("hub", "random", "file"):
                raise ConfigError(
                    f"networks[{index}].backbone.weights is {one.backbone.weights!r}; it must be hub, random or file"
                )
            if one.backbone and isinstance(one.network, NetworkConfig) and one.backbone.name != one.network.backbone:
                raise ConfigError(
                    f"networks[{index}] names two backbones, {one.backbone.name} and {one.network.backbone}"
                )
        if self.postprocessing:
            check_names(self.postprocessing, self.data.labels)

    @property
    def plans(self) -> list[Plan]:
        """Of each network, as a run has it."""
        return [self._plan(one) for one in self.networks]

    @property
    def files(self) -> list[str]:
        """Of each network its file of weights, by name."""
        if len(self.networks) == 1:
            return ["model.safetensors"]
        return [f"model_{index}.safetensors" for index in range(len(self.networks))]

    def _plan(self, one: BundledNetwork) -> Plan:
        recipe = Recipe(deep_supervision=one.network.deep_supervision)  # which prediction reads nothing else of
        return Plan(self.data, one.network, recipe)


def _require_sane(content: Any, where: str, most: int = LARGEST_NUMBER) -> None:
    """Raise a ConfigError for numbers in a configuration that no network has, before anything is made of them."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            _require_sane(value, f"{where}.{key}", MOST_BLOCKS if "depth" in key else LARGEST_NUMBER)
    elif isinstance(content, list | tuple):
        if len(content) > MOST_BLOCKS:
            raise ConfigError(f"{where} has {len(content)} numbers; at most {MOST_BLOCKS} are read")
        for part in content:
            _require_sane(part, where, most)
    elif isinstance(content, int | float) and content > most:
        raise ConfigError(f"{where} is {content}; at most {most} is read")


EXPORTED = "onnx.json"

INPUT, OUTPUT = "image", "logits"
"""Of each network: float32 (batch, channels, height, width) and (batch, classes or regions, height, width)."""


@record
class OnnxFile:
    """One network's file."""

    sha256: str
    """Of the file itself."""

    data_sha256: str | None = None
    """Of the file beside it that holds the weights; None: it holds them itself."""


@record
class OnnxRecord:
    """What `onnx.json` holds."""

    bundle: BundleRecord
    """What a bundle's `model.json` holds: from a file to a patch, the networks, from logits to a mask."""

    files: tuple[OnnxFile, ...]
    """Of each of the bundle's networks."""

    multiple: tuple[int, int]
    """Rows and columns of what a network is given are multiples of these, and twice these at least; an image is
    enlarged to that below and to the right by its last row and column, and the logits there are cut off."""

    opset: int
    """Of ONNX's operators."""

    int8: Literal["none", "weights", "static"] = "none"
    """weights: those of products are held in int8, and what they are multiplied by is rounded as it comes; static:
    convolutions too, and everything between them is rounded by scales that were measured on images."""

    calibration_images: int = 0
    """On which the scales were measured."""

    format: Literal[1] = 1
    """Version of this file's keys."""

    def __post_init__(self) -> None:
        if len(self.files) != len(self.bundle.networks):
            raise ConfigError(f"files names {len(self.files)} files for {len(self.bundle.networks)} networks")
        if not all(1 <= step <= LARGEST_NUMBER for step in self.multiple):
            raise ConfigError(f"multiple is {list(self.multiple)}; it must be two numbers from 1 to {LARGEST_NUMBER}")

    @property
    def names(self) -> list[str]:
        """The files, in the order of the networks."""
        return names_of(len(self.files))

    @property
    def precision(self) -> str:
        """That the networks compute with."""
        return "fp32" if self.int8 == "none" else "int8"


def names_of(networks: int) -> list[str]:
    """The names of so many networks' files."""
    return ["model.onnx"] if networks == 1 else [f"model_{index}.onnx" for index in range(networks)]


def is_onnx_file(path: Path) -> bool:
    """Whether a name is that of an ONNX file, and of no folder."""
    return path.suffix == ".onnx" and not path.is_dir()
