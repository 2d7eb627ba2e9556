"""Many images into one folder of masks, and the record of what made it; existing masks are skipped."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dinounet.console import say
from dinounet.data.formats import READERS
from dinounet.data.formats.dicom import is_at_the_detector
from dinounet.data.geometry import Volume
from dinounet.data.images import stem_of
from dinounet.data.layouts import Case, known_files
from dinounet.errors import ConfigError, DataError, UserError
from dinounet.inference.inputs import cut_otherwise, tell_cut_otherwise
from dinounet.inference.models import TrainedModel
from dinounet.inference.outputs import Outputs, allocated
from dinounet.inference.postprocessing import OutputOptions, Segmentation, describe
from dinounet.inference.predictor import Predictor
from dinounet.io import PREDICTION, remove_leftovers, require_new, summarize, write_json
from dinounet.schema.base import read_record
from dinounet.schema.labels import Labels
from dinounet.schema.plan import BodyAxis
from dinounet.schema.prediction import ModelRecord, Postprocessing, PredictionRecord
from dinounet.system import command, now, versions

if TYPE_CHECKING:
    from dinounet.distributed import DistributedContext


def record_prediction(predictor: Predictor) -> PredictionRecord:
    """The record of what a predictor that was loaded is about to predict."""
    data, settings = predictor.plan.data, predictor.settings
    return PredictionRecord(
        labels=data.labels,
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
        absent_classes=tuple(
            name for name in data.labels.foreground if all(name in model.absent_classes for model in predictor.models)
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
    both = asdict(known.labels), asdict(new.labels)
    others = [name for name in both[0] if both[0][name] != both[1][name]]
    told += [f"other {name}" for name in others]
    if known.postprocessing != new.postprocessing:
        posts = [_in_words(record.postprocessing) for record in (known, new)]
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


def _in_words(post: Postprocessing | None) -> str:
    return (describe(post) if post else "") or "none"


def _hash_decisions(model: TrainedModel) -> str:
    """The same of a run, of its bundle and of an edited plan that decides nothing else on a mask."""
    data = model.plan.data
    decisions = {
        "channels": [asdict(channel) for channel in data.channels],
        "labels": list(data.labels.classes.items()),
        "regions": [asdict(region) for region in data.labels.regions or ()],
        "slices": (data.slice_axis, data.spacing, data.unknown_spacing),
        "patch": data.patch,
        "network": asdict(model.plan.network),
        "backbone": model.backbone and model.backbone.sha256,
    }
    return hashlib.sha256(json.dumps(decisions, sort_keys=True).encode()).hexdigest()


FAILED = "failed.json"
"""Beside the masks: a sentence for each image that could not be predicted, by its case's name."""

WAITING_TO_BE_WRITTEN = 2
"""Segmented images at the most, so that a slow disk doesn't fill the memory."""

Problems = dict[str, str]
"""What is wrong with which case."""


def predict_folder(
    predictor: Predictor,
    cases: Sequence[Case],
    outputs: Outputs,
    record: PredictionRecord,
    *,
    overwrite: bool = False,
    on_case: Callable[[int], None] = lambda done: None,
    context: DistributedContext | None = None,
) -> int:
    """Predict what is not there yet; several processes share it.

    Args:
        predictor: ready.
        cases: all that are to be there in the end.
        outputs: what each case leaves, and where.
        record: of what makes them.
        overwrite: whether to predict anew what is there.
        on_case: called with the number of cases that became done, of whichever process.
        context: of the processes; None if there is one.

    Returns:
        How many were predicted now, by this process and the others.

    Raises:
        UserError: the folder holds something else, or, after all is done, some images could not be predicted.
    """
    rank, size = (context.rank, context.world_size) if context else (0, 1)
    started = time.monotonic()
    is_new = not outputs.folder.exists()
    with context.main_process_first() if context else nullcontext():
        if rank == 0:
            record = _begin(outputs, cases, record, overwrite)
    todo = [case for case in cases if overwrite or not outputs.are_there(case)]
    if context:  # all have looked before any adds to it
        context.barrier()
    on_case(len(cases) - len(todo) if rank == 0 else 0)
    share = todo[rank::size]
    problems: Problems = {}
    cut: dict[str, BodyAxis] = {}
    try:
        problems, cut = _predict(predictor, share, outputs, lambda: on_case(1))
    finally:
        if is_new and size == 1 and not _masks_in(outputs.folder):  # not one mask: leave nothing
            shutil.rmtree(outputs.folder, ignore_errors=True)
    if context:
        told = context.all_gather_object((problems, cut))
        problems = {case: sentence for one, _ in told for case, sentence in one.items()}
        cut = {case: axis for _, one in told for case, axis in one.items()}
    done = len(todo) - len(problems)
    if rank == 0:
        if cut:
            say("note", tell_cut_otherwise(cut, predictor.plan.data))
            record = replace(record, cut_otherwise={**record.cut_otherwise, **cut})
        if outputs.folder.exists():
            _end(outputs.folder, record, problems, done, time.monotonic() - started)
        _tell(problems, len(cases))
    return done


def _predict(
    predictor: Predictor, cases: Sequence[Case], outputs: Outputs, on_case: Callable[[], None]
) -> tuple[Problems, dict[str, BodyAxis]]:
    """Predict and write cases; a thread reads ahead, another one writes.

    Returns:
        what is wrong with which, and the axis of those that are cut along another one than those learned from.
    """
    problems: Problems = {}
    cut: dict[str, BodyAxis] = {}
    labels = predictor.plan.data.labels
    with allocated(outputs.folder) as allocate, ThreadPoolExecutor(1) as writer:
        wanted = OutputOptions(outputs.probabilities, outputs.uncertainty, allocate)
        writing: list[Future[None]] = []
        for case, found in predictor.segment(_read(predictor, cases, outputs, cut), wanted):
            if isinstance(found, UserError):
                problems[case.name] = str(found)
            else:
                writing.append(writer.submit(_write, outputs, case, found, labels, problems))
                del found  # or it would be held until the next one is there
            while len(writing) > WAITING_TO_BE_WRITTEN:
                writing.pop(0).result()
            on_case()
        for one in writing:
            one.result()
    return problems, cut


def _write(outputs: Outputs, case: Case, found: Segmentation, labels: Labels, problems: Problems) -> None:
    """Write a case's files; one that can't be written keeps no other from it."""
    try:
        outputs.write(case, found, labels)
    except UserError as error:
        problems[case.name] = str(error)


def _read(
    predictor: Predictor, cases: Sequence[Case], outputs: Outputs, cut: dict[str, BodyAxis]
) -> Iterator[tuple[Case, Volume | UserError]]:
    """Read cases one after another; `cut` gets the axis of those that are cut along another one than usual."""
    for case in cases:
        volume: Volume | UserError
        try:
            volume = predictor.read(case.images)
            outputs.require_place(case, volume)
            if axis := cut_otherwise(volume, predictor.plan.data):
                cut[case.name] = axis
        except UserError as error:
            volume = error
        yield case, volume


def require_place(folder: Path) -> None:
    """Make sure that predictions can go into a folder: one of predictions, or a new one.

    Raises:
        UserError: it is something else, or can't be made.
    """
    if not (folder / PREDICTION).is_file():
        require_new(folder, what="the predictions")


def _begin(outputs: Outputs, cases: Sequence[Case], record: PredictionRecord, overwrite: bool) -> PredictionRecord:
    """Make the folder, or make sure that it is one of the same prediction's; returns the record that holds there."""
    folder = outputs.folder
    path = folder / PREDICTION
    require_place(folder)
    sources = {case.name: hash_source(case) for case in cases}
    shadows = at_the_detector(cases)  # from the images, so that it is known of masks that are there already, too
    if path.is_file():
        remove_leftovers(folder)
        known = read_record(PredictionRecord, path, what="the record of a prediction")
        differing = differences(known, record)
        if differing and not overwrite:
            raise ConfigError(
                f"{folder} holds masks that were predicted differently ({differing}); give another folder with -o, or "
                "--overwrite"
            )
        ours = {outputs.mask_of(case).name for case in cases}
        others = [mask.name for mask in _masks_in(folder) if mask.name not in ours]
        names = {case.name for case in cases}
        if twice := [name for name in others if stem_of(Path(name)) in names]:
            raise ConfigError(
                f"{folder} holds masks of the same images in another format ({summarize(twice)}); give another folder "
                "with -o, or that --format"
            )
        there = [case.name for case in cases if outputs.are_there(case)]
        changed = [name for name in there if known.sources.get(name, sources[name]) != sources[name]]
        if changed and not overwrite:
            raise ConfigError(
                f"{folder} holds masks of images that have changed since, or of others of the same names "
                f"({summarize(changed)}); give another folder with -o, or --overwrite"
            )
        if not differing and not overwrite:
            new = {name: source for name, source in sources.items() if name not in there}
            record, sources = known, {**known.sources, **new}
        elif not differing:
            sources = {**known.sources, **sources}
        if not differing:
            shadows += tuple(name for name in known.at_the_detector if name not in names)
        if differing and others:
            raise ConfigError(
                f"{folder} holds masks of other cases that were predicted differently ({differing}): "
                f"{summarize(others)}; give another folder with -o"
            )
    folder.mkdir(parents=True, exist_ok=True)
    record = replace(record, sources=sources, at_the_detector=tuple(sorted(shadows)))
    write_json(path, record)
    return record


def _end(folder: Path, record: PredictionRecord, problems: Problems, done: int, seconds: float) -> None:
    write_json(folder / PREDICTION, replace(record, images=record.images + done, seconds=record.seconds + seconds))
    if problems:
        write_json(folder / FAILED, problems)
    else:
        (folder / FAILED).unlink(missing_ok=True)


def _tell(problems: Problems, cases: int) -> None:
    if problems:
        raise DataError(
            f"{len(problems)} of {cases} images could not be predicted: {summarize(list(problems.values()))}"
        )


def _masks_in(folder: Path) -> list[Path]:
    return known_files(folder) if folder.is_dir() else []
