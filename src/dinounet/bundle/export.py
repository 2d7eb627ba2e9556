"""From runs to a bundle.

A run keeps one model: the weights at the end of its schedule, or their moving average if its recipe asks for one
(`--ema-decay`). There is no "best" one: the learning rate falls to zero, and whoever chose the best of many looks would
report a score that the choice has flattered. Weights of several folds are not averaged either: each fold's network has
ended elsewhere, and the mean of two is none. A bundle of several holds them all and averages their probabilities.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from dinounet.bundle.card import read_kept, write_card
from dinounet.bundle.load import find_models, is_bundle
from dinounet.console import say
from dinounet.errors import ConfigError
from dinounet.evaluation.means import read_metrics, warn_of_floor
from dinounet.inference.models import TrainedModel, require_alike
from dinounet.inference.postprocessing import agree
from dinounet.io import METRICS, atomic_write, require_new, require_outside, write_json
from dinounet.schema import metrics as evaluated
from dinounet.schema.bundle import (
    BACKBONE_FILE,
    BUNDLE,
    CARD,
    Basis,
    BundledNetwork,
    BundleRecord,
    Estimate,
    Measured,
    Training,
)
from dinounet.schema.metrics import NAMES, MeanMetrics, Metrics
from dinounet.schema.network import BackboneRecord
from dinounet.schema.plan import PlannedGroups
from dinounet.schema.prediction import Postprocessing
from dinounet.schema.run import RunRecord, read_run
from dinounet.system import now, versions


def export_runs(runs: Sequence[Path], output: Path, licence: str | None = None) -> Path:
    """Write the bundle of a finished run, or of several that predict together.

    Args:
        runs: folders that `dinounet train` wrote, or folders of such.
        output: a new folder, or a bundle, which is replaced but for what was written into its model card.
        licence: that is given to the trained weights.

    Raises:
        UserError: a run is not finished or is a bundle itself, they don't fit together, or there is something else at
            `output`.
    """
    for run in runs:  # whose folder would then hold what it was made of, and again the bundle
        require_outside(output, run, what="the bundle", inside="the run")
    models = find_models(runs)
    for model in models:
        if is_bundle(model.file.parent):
            raise ConfigError(f"{model.named} is a bundle already; export the run that it was made of")
        require_alike(model, models[0], in_one_order=True)
    return write_bundle(output, describe_runs(models, licence), [model.file for model in models])


def describe_runs(models: Sequence[TrainedModel], licence: str | None = None) -> BundleRecord:
    """All that is told of runs that predict together."""
    posts = [model.postprocessing for model in models]
    return BundleRecord(
        data=replace(models[0].plan.data, test_cases=(), groups=PlannedGroups()),
        networks=tuple(_describe(model) for model in models),
        postprocessing=_without_names(posts[0] if len(posts) == 1 else agree(posts)),
        made=now(),
        versions=versions(),
        licence=licence,
    )


def write_bundle(output: Path, record: BundleRecord, weights: Sequence[Path], backbone: Path | None = None) -> Path:
    """Write record, weights and model card; what an older bundle at `output` has in the card's editable part stays.

    The card is last and the record after the weights: what is interrupted in between is refused by the hashes.

    Args:
        output: a new folder, or a bundle.
        record: what `model.json` is to hold.
        weights: of each network the file of its trained tensors.
        backbone: a file of the backbone's weights to keep beside them.

    Raises:
        UserError: there is something else at `output`.
    """
    kept = read_kept(output / CARD) if is_bundle(output) else None
    if not is_bundle(output):
        require_new(output, what="the bundle")
    output.mkdir(parents=True, exist_ok=True)
    files = dict(zip(record.files, weights, strict=True)) | ({BACKBONE_FILE: backbone} if backbone else {})
    for name, file in files.items():
        with atomic_write(output / name) as temporary:
            shutil.copyfile(file, temporary)
    write_json(output / BUNDLE, record)
    write_card(output / CARD, record, kept)
    for left in output.glob("*.safetensors"):
        if left.name not in files:  # of an older bundle of more networks
            left.unlink()
    size = sum((output / name).stat().st_size for name in record.files)
    say(
        "bundle",
        f"{output}: {len(weights)} network{'s' * (len(weights) > 1)}, {size / 1e6:.1f} MB",
        output=str(output),
        bytes=size,
    )
    return output


def _describe(model: TrainedModel) -> BundledNetwork:
    """All that is told of a run's network."""
    folder = model.file.parent
    run = read_run(folder)
    return BundledNetwork(
        network=model.plan.network,
        sha256=model.sha256,
        backbone=without_path(model.backbone),
        training=_tell_training(run),
        seed=model.seed,
        metrics=tuple(
            _summarise(part, read_metrics(folder / part / METRICS))
            for part in ("validation", "test")
            if (folder / part / METRICS).is_file()
        ),
    )


def without_path(backbone: BackboneRecord | None) -> BackboneRecord | None:
    """The record without where the file was."""
    if backbone is None or backbone.weights in ("hub", "random"):
        return backbone
    return replace(backbone, weights="file")


def _without_names(post: Postprocessing | None) -> Postprocessing | None:
    return post and replace(post, cases=())


def _tell_training(run: RunRecord) -> Training:
    return Training(
        recipe=asdict(run.plan.recipe),
        fold=run.fold,
        training_cases=len(run.data.training_cases),
        validation_cases=len(run.data.validation_cases),
        test_cases=len(run.data.test_cases),
        data_sha256=run.data.sha256,
        command=tuple(map(_without_place, run.command)),
        versions=run.versions,
        device=run.device,
        precision=run.precision,
        started=run.started,
        seconds=run.seconds,
        steps=run.steps_done,
        trained_parameters=run.trained_parameters,
        notes=run.notes,
        absent_classes=run.data.absent_classes,
    )


def _without_place(word: str) -> str:
    """A word of a command, with PATH instead of a path that leads out of the folder where it was typed."""
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    is_path = len(PurePosixPath(value).parts) > 1 or len(PureWindowsPath(value).parts) > 1 or value.startswith("~")
    return f"{flag}{equals}PATH" if is_path or PureWindowsPath(value).anchor else word


def _summarise(part: str, metrics: Metrics) -> Measured:
    """The means of an evaluation, without its cases."""
    return Measured(
        part="test" if part == "test" else "validation",
        cases=len(metrics.cases),
        unit=metrics.unit,
        volume_unit=metrics.volume_unit,
        tolerance=metrics.tolerance,
        policy=metrics.policy,
        bootstrap=metrics.bootstrap,
        classes={name: _estimates(found) for name, found in metrics.mean_over_cases.items()},
        mean=_estimates(metrics.mean_over_cases_and_classes),
        basis={name: _basis(found) for name, found in metrics.basis.items()},
        basis_over_classes=_basis(metrics.basis_over_classes),
        warning=warn_of_floor(metrics, "The network"),
        left_out=tuple(metrics.left_out),
    )


def _basis(found: evaluated.Basis) -> Basis:
    there = found.mean_where_present
    return Basis(
        present=found.present,
        dice=Estimate(there.dice, *(there.intervals["dice"] or (None, None))) if there else None,
        absent=found.absent,
        false_alarms=found.false_alarms,
        floor=found.floor,
        above_floor=Estimate(found.above_floor, *(found.above_floor_interval or (None, None))),
    )


def _estimates(means: MeanMetrics) -> dict[str, Estimate]:
    return {name: Estimate(getattr(means, name), *(means.intervals[name] or (None, None))) for name in NAMES}
