"""The record of a prediction: what made a folder of masks, and whether a later call would make the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

from dinounet.data.formats import READERS
from dinounet.data.formats.dicom import is_at_the_detector
from dinounet.data.layouts import Case
from dinounet.inference.models import TrainedModel
from dinounet.inference.postprocessing import describe
from dinounet.inference.predictor import Predictor
from dinounet.schema.prediction import ModelRecord, Postprocessing, PredictionRecord
from dinounet.system import command, now, versions


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
