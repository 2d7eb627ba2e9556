"""`prediction.json`: what made a folder of masks, so that every result can be traced."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from dinounet.data.formats import READERS
from dinounet.data.formats.dicom import is_at_the_detector
from dinounet.data.labels import Region
from dinounet.data.pairs import Case
from dinounet.errors import ConfigError
from dinounet.inference.models import TrainedModel
from dinounet.inference.postprocessing import Postprocessing, describe
from dinounet.inference.predictor import Batch, Predictor
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

    decisions_sha256: str | None = None
    """Of what decides on a mask outside of that file: from an image to a patch, the network's form, its backbone. None
    in records of versions before they were compared."""


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

    readers: int = 1
    """Version of how files were read."""

    batch: Batch = "auto"
    """Tiles at a time. Numbers differ by it in their last digits, as they do by what shares a batch, so that masks
    may in single pixels where two classes are equally likely; it is told, and not compared."""

    absent_classes: tuple[str, ...] = ()
    """Classes, or regions, that no training case of any of the models held: they are in no mean over classes."""

    cut_otherwise: dict[str, str] = field(default_factory=dict)
    """Of images whose slices lie along another axis of the body than those learned from, by name, that axis."""

    at_the_detector: tuple[str, ...] = ()
    """Names of images, X-rays that nobody calibrated, whose lengths are in mm at the detector. A truth in
    a format that has no word for it is measured as they are; none by versions before this was recorded."""

    sources: dict[str, str] = field(default_factory=dict)
    """Of each image, by name, a hash of its files' sizes and times of change, so that no mask is kept for another image
    of the same name; none for those predicted by versions before this was recorded."""

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
        models=tuple(ModelRecord(model.named, model.sha256, _hash_decisions(model)) for model in predictor.models),
        backbone=predictor.backbone,
        device=predictor.engine.device,
        precision=predictor.engine.precision,
        tta=settings.tta,
        step=settings.step,
        postprocessing=predictor.postprocessing,
        readers=READERS,
        batch=settings.batch,
        command=command(),
        versions=versions() | predictor.engine.versions(),
        machine=predictor.engine.describe_machine(),
        started=now(),
        colours=data.colours,
        absent_classes=tuple(
            name for name in data.meaning.foreground if all(name in model.absent_classes for model in predictor.models)
        ),
    )


def differences(known: PredictionRecord, new: PredictionRecord) -> str:
    """What would make masks of one prediction differ from those of another, in words; "" if nothing would.

    Not among them are what only decides how it is computed, such as the batch or --offload, and versions of PyTorch and
    onnxruntime, by which numbers differ in their last digits.
    """
    if [model.sha256 for model in known.models] != [model.sha256 for model in new.models]:
        return f"by {', '.join(model.run for model in known.models)}"
    decided = [
        (before.decisions_sha256, now.decisions_sha256) for before, now in zip(known.models, new.models, strict=True)
    ]
    backbones = [record.backbone.sha256[:12] if record.backbone else "none" for record in (known, new)]
    settings = {
        "precision": (known.precision, new.precision),
        "tta": (known.tta, new.tta),
        "step": (known.step, new.step),
        "device": tuple(record.device.partition(":")[0] for record in (known, new)),
        "backbone": tuple(backbones),
        "readers of files": (known.readers, new.readers),
        "dinounet": tuple(record.versions.get("dinounet") for record in (known, new)),
    }
    told = [f"{name} {before}, and now {now}" for name, (before, now) in settings.items() if before != now]
    told += ["another plan"] if any(before not in (None, now) for before, now in decided) else []
    others = [name for name in ("labels", "regions", "ignore", "colours") if getattr(known, name) != getattr(new, name)]
    told += [f"other {name}" for name in others]
    if known.postprocessing != new.postprocessing:
        posts = [_tell(record.postprocessing) for record in (known, new)]
        told.append(
            f"postprocessing {posts[0]}, and now {posts[1]}" if posts[0] != posts[1] else "other postprocessing"
        )
    return "; ".join(told)


def hash_source(case: Case) -> str:
    """What tells the files of an image from others of the same name without reading them; their folder may move."""
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in case.files]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]


def at_the_detector(cases: Sequence[Case]) -> tuple[str, ...]:
    """The names of X-rays that nobody calibrated."""
    return tuple(case.name for case in cases if case.images[0].is_dir() and is_at_the_detector(case.images[0]))


def _tell(post: Postprocessing | None) -> str:
    return (describe(post) if post else "") or "none"


def _hash_decisions(model: TrainedModel) -> str:
    """The same of a run, of its bundle and of an edited plan that decides nothing else on a mask."""
    data = model.plan.data
    decisions = {
        "channels": [asdict(channel) for channel in data.channels],
        "labels": list(data.labels.items()),
        "regions": [asdict(region) for region in data.regions or ()],
        "slices": (data.slice_axis, data.spacing, data.unknown_spacing),
        "patch": data.patch,
        "network": asdict(model.plan.network),
        "backbone": model.backbone and model.backbone.sha256,
    }
    return hashlib.sha256(json.dumps(decisions, sort_keys=True).encode()).hexdigest()
