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
    """Mean over the cases, empty masks counted as the policy says."""

    low: float | None
    """Lower end of the 95 % confidence interval; None if there is only one case."""

    high: float | None
    """Upper end of the interval."""


@record
class Basis:
    """Basis of a mean Dice: of a class, or over classes of pairs of case and class."""

    present: int
    """Cases whose truth has the class."""

    dice: Estimate | None
    """Mean over these alone; None where there is none."""

    absent: int
    """Cases whose truth lacks the class."""

    false_alarms: int
    """Number of these in which the class was predicted."""

    floor: float
    """Dice of an all-background prediction of the same cases."""

    above_floor: Estimate
    """Mean Dice minus the floor."""


@record
class Measured:
    """Results of a network on cases that it was not trained on."""

    part: Literal["validation", "test"]
    """validation: used during training and to select postprocessing; test: held out from both."""

    cases: int
    """Number of cases."""

    unit: Literal["mm", "mm at the detector", "px"]
    """Unit of hd95 and assd."""

    volume_unit: Literal["ml", "mm2", "mm2 at the detector", "px"]
    """Unit of volume_difference."""

    tolerance: float
    """Tolerance of nsd, in this unit."""

    policy: str
    """How empty masks are counted."""

    bootstrap: str
    """How the intervals were computed."""

    classes: dict[str, dict[str, Estimate]]
    """Means by class or region, and metric."""

    mean: dict[str, Estimate]
    """Means over classes and cases."""

    basis: dict[str, Basis] | None = None
    """Of each class, what its mean Dice rests on; None where an older dinounet measured."""

    basis_over_classes: Basis | None = None
    """Basis of the means over classes."""

    warning: str = ""
    """That the network, or in which classes, isn't clearly above an all-background prediction; empty if it is."""

    left_out: tuple[str, ...] = ()
    """Classes that are not in the means over classes."""


@record
class Training:
    """Provenance of a network. It names no case, no person and no path."""

    recipe: dict[str, str | int | float | bool | None]
    """How it was trained, as the version that trained it names that; prediction reads nothing of it."""

    fold: Fold
    """Index of the cross-validation fold; all: every case was used for training."""

    training_cases: int
    """Number of training cases."""

    validation_cases: int
    """Number of validation cases."""

    test_cases: int
    """Number of held-out test cases."""

    data_sha256: str
    """sha256 of the names and contents of all training images and masks."""

    command: tuple[str, ...]
    """Command as typed, with PATH in place of each path."""

    versions: dict[str, str]
    """Versions of the software."""

    device: str
    """Device that it was trained on."""

    precision: str
    """Precision of the computation; the weights are float32."""

    started: str
    """Start time in UTC."""

    seconds: float
    """Training time in seconds."""

    steps: int
    """Number of optimizer steps."""

    trained_parameters: int
    """Number of trained parameters."""

    notes: tuple[str, ...] = ()
    """Notes that matter for interpreting the results."""

    absent_classes: tuple[str, ...] = ()
    """Classes, or regions, without a pixel in the training cases."""


@record
class BundledNetwork:
    """One of a bundle's networks."""

    network: AnyNetworkConfig
    """Configuration to build it from."""

    sha256: str
    """sha256 of its file of weights."""

    backbone: BackboneRecord | None
    """What it stands on, whose weights are hub, random, or file: a file of the maker's, which anybody needs who has no
    other with the same numbers. A U-Net has none."""

    training: Training | None
    """Provenance of the network; None if it was imported."""

    seed: int = 0
    """Seed of the recipe; a random backbone is generated again from it."""

    metrics: tuple[Measured, ...] = ()
    """Results of this network alone."""


@record
class BundleRecord:
    """Contents of `model.json`."""

    data: DataPlan
    """From a file to a patch: channels and their normalisation, labels, spacing, patch, without names of cases."""

    networks: tuple[BundledNetwork, ...]
    """The networks; the probabilities of several, such as a dataset's folds, are averaged."""

    postprocessing: Postprocessing | None
    """What is done with masks, without names of cases; of several networks what was chosen for all of them."""

    made: str
    """Time of the export, in UTC."""

    versions: dict[str, str]
    """Versions of dinounet and its dependencies at the export."""

    licence: str | None = None
    """Licence of the trained weights, by its name on the Hub; None: none was given."""

    origin: str | None = None
    """Origin of imported networks, in words."""

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
    """One network's ONNX file."""

    sha256: str
    """sha256 of the file itself."""

    data_sha256: str | None = None
    """sha256 of the file beside it that contains the weights; None: it contains them itself."""


@record
class OnnxRecord:
    """Contents of `onnx.json`."""

    bundle: BundleRecord
    """What a bundle's `model.json` holds: from a file to a patch, the networks, from logits to a mask."""

    files: tuple[OnnxFile, ...]
    """Files of the bundle's networks."""

    multiple: tuple[int, int]
    """Rows and columns of what a network is given are multiples of these, and twice these at least; an image is
    enlarged to that below and to the right by its last row and column, and the logits there are cut off."""

    opset: int
    """Version of ONNX's operator set."""

    int8: Literal["none", "weights", "static"] = "none"
    """weights: those of products are held in int8, and what they are multiplied by is rounded as it comes; static:
    convolutions too, and everything between them is rounded by scales that were measured on images."""

    calibration_images: int = 0
    """Images on which the scales were measured."""

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
