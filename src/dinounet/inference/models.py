"""Trained networks as the predictor takes them, and whether several can predict together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dinounet.errors import ConfigError
from dinounet.schema.bundle import is_onnx_file
from dinounet.schema.network import BackboneRecord
from dinounet.schema.plan import DataPlan, Plan
from dinounet.schema.prediction import Postprocessing


@dataclass(frozen=True)
class TrainedModel:
    """One of them."""

    named: str
    """The folder as given, or the name on the Hub with the commit."""

    file: Path
    """File of the trained tensors."""

    sha256: str
    """sha256 of that file."""

    plan: Plan
    """All decisions."""

    backbone: BackboneRecord | None
    """What it stands on; a U-Net has none."""

    seed: int
    """Seed of a random backbone."""

    postprocessing: Postprocessing | None
    """What is done to its masks; None where nobody chose."""

    multiple: tuple[int, int] = (1, 1)
    """Of an exported network: rows and columns of what it is given are multiples of these, and twice them at least."""

    precision: str = "fp32"
    """Precision of an exported network: fp32 or int8."""

    absent_classes: tuple[str, ...] = ()
    """Classes, or regions, that no training case held."""

    @property
    def is_onnx(self) -> bool:
        """Whether it is an exported network, which onnxruntime computes."""
        return is_onnx_file(self.file)


SEEN = ("slice_axis", "spacing", "unknown_spacing", "patch", "channel_projection", "file_ending")
"""Of a plan: how an image comes to the network, beside its channels."""

BY_ONE_PLAN = "train them by one plan (--plan plan.json)"


def require_alike(model: TrainedModel, first: TrainedModel, *, in_one_order: bool = False) -> None:
    """Make sure that two networks can predict together.

    Args:
        model: one of them.
        first: whose classes, numbers and channels count.
        in_one_order: whether the classes must also be numbered alike and in the same order, as in a bundle, whose
            record tells them once for all its networks.

    Raises:
        ConfigError: they see an image otherwise, or answer what the other one doesn't, or one engine can't compute
            both.
    """
    both = f"{model.named} and {first.named} can't predict together"
    if model.is_onnx != first.is_onnx:
        raise ConfigError(f"{both}: one is ONNX and the other is not; export both")
    data, other = model.plan.data, first.plan.data
    names, others = ([channel.name for channel in plan.channels] for plan in (data, other))
    if names != others:
        raise ConfigError(f"{both}: their channels are {', '.join(names)} and {', '.join(others)}; {BY_ONE_PLAN}")
    for name in ("channels", *SEEN):
        if getattr(data, name) != getattr(other, name):
            raise ConfigError(f"{both}: their plans differ in data.{name}; {BY_ONE_PLAN}")
    meanings, wanted = _outputs(data), _outputs(other)
    if meanings != wanted or (data.labels.regions is None) != (other.labels.regions is None):
        raise ConfigError(f"{both}: their outputs are {_tell(data)} and {_tell(other)}; {BY_ONE_PLAN}")
    if in_one_order and (list(data.labels.classes.items()), data.labels.regions) != (
        list(other.labels.classes.items()),
        other.labels.regions,
    ):
        raise ConfigError(
            f"{model.named} and {first.named} can't be exported together: they number their classes otherwise, "
            f"{_tell(data)} and {_tell(other)}; predict by both (--also), which goes by the names, or {BY_ONE_PLAN}"
        )
    if data.labels.ignore != other.labels.ignore and in_one_order:
        raise ConfigError(
            f"{model.named} and {first.named} can't be exported together: their plans differ in data.labels.ignore; "
            f"{BY_ONE_PLAN}"
        )


def output_order(data: DataPlan, first: DataPlan) -> list[int] | None:
    """Which of a network's outputs is the first one's first, second and so on; None if they are in the same order."""
    names, wanted = list(_outputs(data)), list(_outputs(first))
    return None if names == wanted else [names.index(name) for name in wanted]


def _outputs(data: DataPlan) -> dict[str, tuple[frozenset[str], str]]:
    """What each output stands for, in their order: the names of classes, and which of them it is written as."""
    if data.labels.regions is None:
        return {name: (frozenset([name]), name) for name in data.labels.classes}
    called = {number: name for name, number in data.labels.classes.items()}
    return {
        region.name: (frozenset(called.get(label, str(label)) for label in region.labels), called[region.written_as])
        for region in data.labels.regions
    }


def _tell(data: DataPlan) -> str:
    classes = ", ".join(f"{name}={number}" for name, number in data.labels.classes.items())
    regions = "; ".join(
        f"{one.name} of {', '.join(sorted(_outputs(data)[one.name][0]))}" for one in data.labels.regions or ()
    )
    return f"({classes})" + (f" with regions ({regions})" if regions else "")
