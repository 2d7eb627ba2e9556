"""`prediction.json`: what made a folder of masks, so that every result can be traced."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from dinounet.data.labels import Region
from dinounet.inference.postprocessing import Postprocessing
from dinounet.inference.predictor import Predictor
from dinounet.network.weights import BackboneRecord
from dinounet.run import MODEL, command, machine, now, versions

FORMAT = 1


@dataclass(frozen=True)
class PredictionRecord:
    """What made a folder of masks."""

    labels: dict[str, int]
    """Names and numbers of the classes in the masks."""

    regions: tuple[Region, ...] | None
    """What was predicted instead of classes."""

    ignore: int | None
    """Number for pixels that nobody has judged in the truth; no predicted mask holds it."""

    run: str
    """The trained run's folder, as given."""

    model_sha256: str
    """Of the run's model file."""

    backbone: BackboneRecord | None
    """What the model stands on; a U-Net has none."""

    device: str
    """Where it was computed."""

    precision: str
    """fp32 or bf16."""

    command: tuple[str, ...]
    """As typed."""

    versions: dict[str, str]
    """Of what computed."""

    machine: dict[str, str]
    """That it computed on."""

    started: str
    """Time in UTC."""

    colours: dict[str, str] | None = None
    """Of colour-coded data, the colour of each class in the truth, which predicted masks have as their palette."""

    postprocessing: Postprocessing | None = None
    """What was done to the masks after the network."""

    format: int = FORMAT
    """Version of this file's keys."""


def record_prediction(run: Path, predictor: Predictor) -> PredictionRecord:
    """The record of what a predictor that was loaded from a run is about to predict."""
    return PredictionRecord(
        labels=predictor.labels,
        regions=predictor.plan.data.regions,
        ignore=predictor.plan.data.ignore,
        run=str(run),
        model_sha256=hashlib.sha256((run / MODEL).read_bytes()).hexdigest(),
        backbone=predictor.backbone,
        device=predictor.device,
        precision=predictor.precision,
        command=command(),
        versions=versions(),
        machine=machine(),
        started=now(),
        colours=predictor.plan.data.colours,
        postprocessing=predictor.postprocessing,
    )
