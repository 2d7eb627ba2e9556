"""`prediction.json`: what made a folder of masks, so that every result can be traced."""

from __future__ import annotations

from dataclasses import dataclass

from dinounet.data.labels import Region
from dinounet.errors import ConfigError
from dinounet.inference.postprocessing import Postprocessing
from dinounet.inference.predictor import Predictor
from dinounet.inference.views import TestTimeAugmentation
from dinounet.network.provenance import BackboneRecord
from dinounet.run import command, now, versions

FORMAT = 2


@dataclass(frozen=True)
class ModelRecord:
    """One of the trained networks."""

    run: str
    """The trained run's folder or bundle, as given, or its name and commit on the Hub."""

    sha256: str
    """Of its model file."""


@dataclass(frozen=True)
class PredictionRecord:
    """What made a folder of masks."""

    labels: dict[str, int]
    """Names and numbers of the classes in the masks."""

    regions: tuple[Region, ...] | None
    """What was predicted instead of classes."""

    ignore: int | None
    """Number for pixels that nobody has judged in the truth; no predicted mask holds it."""

    models: tuple[ModelRecord, ...]
    """Whose probabilities were averaged."""

    backbone: BackboneRecord | None
    """What the models stand on; a U-Net has none."""

    device: str
    """Where it was computed."""

    precision: str
    """fp32, bf16, fp16 or, of an ONNX file, int8."""

    tta: TestTimeAugmentation
    """Which copies of each tile were averaged."""

    step: float
    """Distance of neighbouring tiles at the most, as a share of a tile."""

    command: tuple[str, ...]
    """As typed."""

    versions: dict[str, str]
    """Of what computed."""

    machine: dict[str, str]
    """That it computed on."""

    started: str
    """Time in UTC."""

    images: int = 0
    """So many were predicted."""

    seconds: float = 0.0
    """In so much time, reading and writing included, loading the model not."""

    colours: dict[str, str] | None = None
    """Of colour-coded data, the colour of each class in the truth, which predicted masks have as their palette."""

    postprocessing: Postprocessing | None = None
    """What was done to the masks after the network."""

    format: int = FORMAT
    """Version of this file's keys."""

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ConfigError(
                f"format is {self.format} but this version of dinounet reads {FORMAT}; predict into another folder"
            )


def record_prediction(predictor: Predictor) -> PredictionRecord:
    """The record of what a predictor that was loaded is about to predict."""
    data, settings = predictor.plan.data, predictor.settings
    return PredictionRecord(
        labels=predictor.labels,
        regions=data.regions,
        ignore=data.ignore,
        models=tuple(ModelRecord(model.named, model.sha256) for model in predictor.models),
        backbone=predictor.backbone,
        device=predictor.engine.device,
        precision=predictor.engine.precision,
        tta=settings.tta,
        step=settings.step,
        postprocessing=predictor.postprocessing,
        command=command(),
        versions=versions() | predictor.engine.versions(),
        machine=predictor.engine.describe_machine(),
        started=now(),
        colours=data.colours,
    )


def differences(known: PredictionRecord, new: PredictionRecord) -> str:
    """What would make masks of one prediction differ from those of another, in words; "" if nothing would."""
    if [model.sha256 for model in known.models] != [model.sha256 for model in new.models]:
        return f"by {', '.join(model.run for model in known.models)}"
    names = ("labels", "regions", "ignore", "precision", "tta", "step", "postprocessing", "colours")
    found = [
        f"{name} {getattr(known, name)}" if name in ("precision", "tta", "step") else f"other {name}"
        for name in names
        if getattr(known, name) != getattr(new, name)
    ]
    return ", ".join(found)
