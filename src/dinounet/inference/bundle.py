"""A bundle: what is shared of a trained network, or of several that predict together.

    model.safetensors   the trained tensors; of several networks model_0.safetensors, model_1.safetensors ...
    model.json          everything else that prediction needs, and what made it; `bundle.schema.json` describes it
    README.md           the model card

It names no file and no class: files have fixed names, and networks are built from numbers. Nothing is loaded before the
hash of each file of weights, and then the shape of each of its tensors, are what `model.json` asks for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from dinounet.data.plan import DataPlan
from dinounet.data.splits import Fold
from dinounet.errors import ConfigError, DataError, WeightsError
from dinounet.files import read_json, to_record
from dinounet.inference.postprocessing import Postprocessing, check_names
from dinounet.network.config import NetworkConfig, UNetConfig
from dinounet.network.provenance import BackboneRecord
from dinounet.plans import Plan, Recipe

BUNDLE = "model.json"
CARD = "README.md"
BACKBONE_FILE = "backbone.safetensors"
"""Beside an imported network: the frozen backbone that its checkpoint held. It is used here and pushed nowhere."""

FORMAT = 2

LARGEST_JSON = 1 << 24
"""Bytes that a record may have; those of real bundles have some thousand."""

LARGEST_NUMBER = 8192
"""Of channels, or pixels along a patch: twice what the largest backbone has."""

MOST_BLOCKS = 256
"""Of a backbone, or numbers in one list: six times what the largest backbone has."""

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]

UPGRADES: dict[int, Upgrade] = {
    1: lambda content: {**content, "format": 2},  # lengths "at the detector", and data.readers, came to be
}
"""By the format that it reads: what makes the content of a `model.json` one of the next format."""


@dataclass(frozen=True)
class Estimate:
    """A mean over cases."""

    mean: float
    """Over the cases, empty masks counted as the policy says."""

    low: float | None
    """Lower end of the interval of 95 % confidence; None where there is one case only."""

    high: float | None
    """Its upper end."""


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class BundledNetwork:
    """One of the networks."""

    network: NetworkConfig | UNetConfig
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


@dataclass(frozen=True)
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

    format: int = FORMAT
    """Version of this file's keys."""

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
            check_names(self.postprocessing, self.data.meaning)

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


def read_bundle(folder: Path) -> BundleRecord:
    """Read a bundle's record, upgraded if it is an older one; of the weights nothing is read.

    Raises:
        UserError: it is missing or damaged, has unknown, missing or wrong keys, or is of a newer dinounet.
    """
    path = folder / BUNDLE
    content = upgrade(read_untrusted(path, what="the record of a bundle"), str(path))
    return to_record(BundleRecord, content, where=str(path))


def read_untrusted(path: Path, *, what: str) -> Any:
    """The content of a record that came from somebody else.

    Raises:
        DataError: it is missing, no JSON, or holds what no such record does.
    """
    if path.is_file() and path.stat().st_size > LARGEST_JSON:
        raise DataError(f"{path} is larger than any record of a bundle; get the bundle again")
    content = read_json(path, what=what)
    try:
        json.dumps(content, allow_nan=False)
    except ValueError:
        raise DataError(f"{path} holds a number that is NaN or infinite, as no bundle does; get it again") from None
    return content


def upgrade(content: Any, where: str) -> Any:
    """The content of a `model.json` in today's format.

    Raises:
        ConfigError: it has another format than any that is known.
    """
    while isinstance(content, Mapping) and content.get("format") != FORMAT:
        found = content.get("format")
        if isinstance(found, int) and found > FORMAT:
            raise ConfigError(
                f"{where} has the format {found}, of a newer dinounet than this one, which reads {FORMAT}; upgrade "
                "dinounet (pip install -U dinounet)"
            )
        if not isinstance(found, int) or found not in UPGRADES:
            raise ConfigError(f"{where} has the format {found!r}, which no version of dinounet writes; get it again")
        content = UPGRADES[found](dict(content))
    return content


def checked_weights(folder: Path, record: BundleRecord) -> list[Path]:
    """The files of weights of a bundle, once each is what its record says.

    Raises:
        WeightsError: one is missing, damaged or changed, holds other tensors than its network has, or its network is
            larger than this machine's memory.
    """
    paths = [folder / name for name in record.files]
    for path, one in zip(paths, record.networks, strict=True):
        if not path.is_file():
            raise WeightsError(f"{folder} lacks {path.name}; get the bundle again")
        require_hash(path, one.sha256, BUNDLE)
        _require_shapes(path, one.network)
    return paths


def require_hash(path: Path, sha256: str, record: str) -> None:
    """Raise a WeightsError unless a file is what the record beside it says."""
    found = hash_file(path)
    if found != sha256:
        raise WeightsError(
            f"{path} is damaged or was changed: its sha256 is {found[:12]}, not {sha256[:12]} as {record} says; get "
            "the bundle again"
        )


def hash_file(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _require_shapes(path: Path, config: NetworkConfig | UNetConfig) -> None:
    """Compare the shapes in a file with those of its network, which is built without memory."""
    import torch  # here, since who predicts by ONNX reads records without it
    from safetensors import SafetensorError, safe_open

    from dinounet.network.build import build_network
    from dinounet.network.dinounet import DinoUNet
    from dinounet.network.unet import rename_monai_keys

    with torch.device("meta"):
        network = build_network(config)
    expected = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file:
            given = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 -- no mapping
        given = rename_monai_keys(given)
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged ({error}); get the bundle again") from None
    differing = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
    if differing:
        raise WeightsError(
            f"{path} does not hold the network that {BUNDLE} describes: {len(differing)} tensors differ, as "
            f"{', '.join(differing[:3])}; get the bundle again"
        )
    tensors = list(network.state_dict().values())
    if isinstance(network, DinoUNet) and network.config.backbone_args:  # else of a known size, and may be offloaded
        tensors += network.backbone.vit.parameters()
    needed, there = 4 * sum(tensor.numel() for tensor in tensors), psutil.virtual_memory().total
    if needed > there:
        raise WeightsError(
            f"the network of {path} takes {needed / 1e9:,.1f} GB, more than this machine's memory of "
            f"{there / 1e9:,.1f} GB; use a larger machine"
        )


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
