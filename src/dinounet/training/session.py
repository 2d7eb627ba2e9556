"""A training session from start to end: dataset, backbone, plan, run folder, cache, loop."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from dinounet.backbones.frozen import FrozenBackbone, build_backbone
from dinounet.backbones.weights import fill_backbone
from dinounet.console import progress, say
from dinounet.data.dataset import Dataset, hash_dataset, parse_channels, read_dataset, with_twins
from dinounet.data.formats import READERS, other_reading
from dinounet.data.splits import read_test_list
from dinounet.distributed import DistributedContext, require_shares
from dinounet.errors import ConfigError, DataError, Interrupted, UnreachableError
from dinounet.io import is_passing, remove_leftovers, require_new, require_outside, write_json
from dinounet.planning.planner import (
    choose_any_recipe,
    choose_fold,
    decides_batch,
    plan_dataset,
    require_fields,
    require_fold,
    split,
    with_groups,
)
from dinounet.schema.labels import parse_labels
from dinounet.schema.network import NetworkConfig
from dinounet.schema.plan import Fold, GroupRule, read_plan
from dinounet.schema.recipe import CHECKPOINT_MINUTES, Architecture, Recipe, RecipeName, TrackerName
from dinounet.schema.run import CACHE, RECORD, DataRecord, RunRecord, read_run
from dinounet.system import (
    Device,
    Precision,
    choose_precision,
    choose_training_device,
    command,
    dist_info,
    machine,
    now,
    reproducible,
    versions,
)
from dinounet.training.feature_cache import choose_features
from dinounet.training.loop import cache_slices, fill_again, fit, note_absent_classes, see_features
from dinounet.training.memory import build_planned, check_plan, fit_plan
from dinounet.training.resume import (
    as_fields,
    check_options,
    held_by,
    require_agreement,
    require_as_started,
    require_backbone,
    require_groups,
    resolve,
)


def start_run(
    data: Path,
    output: Path,
    *,
    recipe: Recipe | RecipeName | None = None,
    changes: Mapping[str, Any] | None = None,
    architecture: Architecture | None = None,
    backbone: str | None = None,
    backbone_options: Mapping[str, Any] | None = None,
    weights: str | None = None,
    plan_file: Path | None = None,
    patch: tuple[int, int] | None = None,
    fold: Fold | None = None,
    test: Path | None = None,
    group: GroupRule | None = None,
    labels: str | None = None,
    channels: str | None = None,
    device: Device = "auto",
    precision: Precision = "auto",
    micro_batch: int | None = None,
    cache: Path | None = None,
    offload: bool = False,
    deterministic: bool = False,
    track: tuple[TrackerName, ...] = (),
    notes: tuple[str, ...] = (),
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
) -> RunRecord:
    """Train a new run in the folder `output`; see `dinounet.train` for the arguments.

    Of several processes the first one looks at the data, plans and makes the folder; the others read what it wrote.

    Raises:
        UserError: dataset, plan, weights or output folder are wrong; or Ctrl-C, when the run can be resumed.
    """
    check_options(micro_batch, checkpoint_minutes, track, cache)
    chosen = choose_training_device(device)
    computed = choose_precision(precision, chosen)
    context = DistributedContext(chosen, computed)
    with context.fail_together():
        frozen = None
        with context.main_process_first():
            if context.is_main:
                frozen = _make_run(
                    data, output, recipe=recipe, changes=changes, architecture=architecture, backbone=backbone,
                    backbone_options=backbone_options or {}, weights=weights, plan_file=plan_file, patch=patch,
                    fold=fold, test=test, group=group, labels=labels, channels=channels, device=chosen,
                    precision=computed, micro_batch=micro_batch, offload=offload, processes=context.world_size,
                    cache=cache or output / CACHE, deterministic=deterministic, track=track, notes=notes,
                )  # fmt: skip
        return _go_on(data, output, read_run(output), context, frozen, checkpoint_minutes, cache, resume=False)


def _make_run(
    data: Path,
    output: Path,
    *,
    recipe: Recipe | RecipeName | None,
    changes: Mapping[str, Any] | None,
    architecture: Architecture | None,
    backbone: str | None,
    backbone_options: Mapping[str, Any],
    weights: str | None,
    plan_file: Path | None,
    patch: tuple[int, int] | None,
    fold: Fold | None,
    test: Path | None,
    group: GroupRule | None,
    labels: str | None,
    channels: str | None,
    device: Literal["cpu", "cuda", "mps"],
    precision: Literal["fp32", "bf16", "fp16"],
    micro_batch: int | None,
    offload: bool,
    processes: int,
    cache: Path,
    deterministic: bool,
    track: tuple[TrackerName, ...],
    notes: tuple[str, ...],
) -> FrozenBackbone | None:
    """Plan a run and make its folder; returns the backbone, filled."""
    require_new(output, what="the run")
    require_outside(output, data, what="the run")
    edited = read_plan(plan_file) if plan_file else None
    planned = edited.recipe if edited else choose_any_recipe(recipe or "default", changes or {})
    if edited:
        require_fields(changes or {})
        asked = {"recipe": recipe, "network": architecture, "backbone": backbone, **backbone_options, "patch": patch}
        told, remedy = f"{plan_file} has another", "change it there, or leave that option out"
        require_agreement(resolve({**asked, **(changes or {})}, edited), held_by(edited), told, remedy)
    architecture = edited.network.architecture if edited else architecture or "dinounet"
    of_backbone = {"backbone": backbone, **backbone_options, "weights": weights, "offload": offload}
    require_backbone(architecture, of_backbone, {} if edited else changes or {})
    backbone_options = as_fields(backbone_options)
    dataset = read_dataset(
        data,
        parse_labels(labels) if labels else None,
        parse_channels(channels) if channels else None,
        test=read_test_list(test) if test else edited.data.test_cases if edited else (),
        group=group or (edited.data.groups.by if edited else "auto"),
    )
    if edited and group:
        require_groups(
            edited.data.groups.by, dataset, f"{plan_file} groups cases by {edited.data.groups.by}, not by {group}"
        )
    for remark in dataset.remarks:
        say("note", remark)
    as_read = dataset
    if edited:
        dataset = with_twins(dataset, edited.data.groups.twins)
    require_fold(dataset, fold)
    # weights before pixels: what can fail fast, fails first
    frozen = known = None
    if architecture == "dinounet":
        named = backbone or NetworkConfig.backbone
        config = edited.network if edited else NetworkConfig(backbone=named, **backbone_options)
        assert isinstance(config, NetworkConfig)
        frozen = build_backbone(config, offload=offload)
        known = fill_backbone(frozen, config.backbone, weights or "hub", planned.seed)
    plan = edited or plan_dataset(
        dataset,
        recipe or "default",
        backbone or NetworkConfig.backbone,
        patch,
        changes=changes,
        architecture=architecture,
        backbone_options=backbone_options,
    )
    for remark in plan.data.groups.remarks_on_pixels:
        say("note", remark)
    dataset = with_twins(dataset, plan.data.groups.twins)
    fold = choose_fold(dataset, fold)
    training, validation = split(dataset, fold)
    check_plan(plan, dataset)
    plan = with_groups(plan, dataset)
    if edited and (told := other_reading(edited.data.readers, f"{plan_file} was decided")):
        say("readers", told)
        notes = (*notes, told)
    batch_is_given = bool(edited) or decides_batch(recipe or "default", changes or {})
    fitted, network = fit_plan(
        plan, frozen, device, precision, patch_is_given=bool(edited or patch), batch_is_given=batch_is_given
    )
    if not batch_is_given and fitted.recipe.batch > plan.recipe.batch:  # what fits is made a number that can be shared
        batch = max(fitted.recipe.batch // processes, 1) * processes
        fitted = replace(fitted, recipe=replace(fitted.recipe, batch=batch))
    plan = plan if edited else fitted
    require_shares(plan.recipe.batch, processes)
    assert fitted.memory is not None
    # GPUs are a process's own, a machine's memory is not
    at_once = max(fitted.memory.patches(plan.data.patch) // (dist_info().local_world_size if device == "cpu" else 1), 1)
    share = plan.recipe.batch // processes
    if micro_batch is None and at_once < share:
        micro_batch = at_once
        say("memory", f"{at_once} of {share} patches go through the network at a time", part=at_once)
    features = choose_features(plan, network, training, bool(validation), cache, device, precision)
    record = RunRecord(
        plan=replace(plan, features=features),
        data=DataRecord(
            dataset.name,
            _hash(as_read),
            tuple(case.name for case in training),
            tuple(case.name for case in validation),
            dataset.test_cases,
        ),
        backbone=known,
        fold=fold,
        device=device,
        precision=precision,
        trained_parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
        frozen_parameters=sum(p.numel() for p in frozen.parameters()) if frozen else 0,
        command=command(),
        versions=versions(),
        machine=machine(),
        started=now(),
        micro_batch=micro_batch,
        offload=offload,
        processes=processes,
        deterministic=deterministic,
        track=track,
        notes=notes,
        readers=READERS,
    )
    output.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output)
    try:
        write_json(output / RECORD, record)  # first: what holds it can be resumed
    except OSError:  # such as a full disk
        shutil.rmtree(output, ignore_errors=True)
        raise
    return frozen


def resume_run(
    data: Path,
    output: Path,
    *,
    device: Device | None = None,
    micro_batch: int | Literal["auto"] | None = None,
    offload: bool | None = None,
    cache: Path | None = None,
    track: tuple[TrackerName, ...] | None = None,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    **asked: Any,
) -> RunRecord:
    """Go on with an interrupted run, perhaps with another number of processes.

    Args:
        data: the dataset that it was started with.
        output: the run's folder.
        device: where to compute from here on; by default where it was started.
        micro_batch: patches at a time from here on, auto for as many as fit; by default as before.
        offload: whether the backbone is computed from the disk from here on; by default as before.
        cache: folder of preprocessed slices; by default in the run's folder.
        track: who is told from here on; by default as before.
        checkpoint_minutes: time between two checkpoints.
        asked: options that are given once more; what is None is not asked for. See `dinounet.train`.

    Raises:
        UserError: it is finished, its data or weights have changed, it was started with other options, or it has no
            checkpoint that can be read.
    """
    check_options(None if micro_batch == "auto" else micro_batch, checkpoint_minutes, track or (), cache)
    if not (output / RECORD).is_file():
        raise DataError(
            f"{output} is not a run: it holds no {RECORD}; if it was stopped before training began, there is nothing "
            "to go on from, so start it again without --resume"
        )
    record = read_run(output)
    if record.status == "finished":
        raise ConfigError(f"{output} is finished; there is nothing to resume")
    require_as_started(data, output, record, device, asked)
    plan = record.plan
    device = record.device if device is None else device
    context = DistributedContext(choose_training_device(device), record.precision)
    with context.fail_together():
        require_shares(plan.recipe.batch, context.world_size)
        record = replace(
            record,
            device=context.device,
            processes=context.world_size,
            micro_batch=record.micro_batch if micro_batch is None else None if micro_batch == "auto" else micro_batch,
            offload=record.offload if offload is None else offload,
            track=record.track if track is None else track,
        )
        with context.main_process_first():
            if context.is_main:
                remove_leftovers(output)
                if _hash(_read_again(data, record)) != record.data.sha256:
                    raise DataError(
                        f"{data} is not, or no longer, the dataset that {output} was started with; train a new run"
                    )
        if told := other_reading(record.readers, f"{output} was started"):
            say("readers", told)
            record = replace(record, notes=tuple(dict.fromkeys((*record.notes, told))))
        say("resume", f"going on after step {record.steps_done}", step=record.steps_done)
        return _go_on(data, output, record, context, None, checkpoint_minutes, cache, resume=True)


def _go_on(
    data: Path,
    output: Path,
    record: RunRecord,
    context: DistributedContext,
    frozen: FrozenBackbone | None,
    checkpoint_minutes: float,
    cache: Path | None,
    *,
    resume: bool,
) -> RunRecord:
    """Train a run whose folder is there, from its start or its checkpoint."""
    plan, features, cached_in = record.plan, None, cache or output / CACHE
    keeps_features = plan.features is not None and plan.features.cached
    if isinstance(plan.network, NetworkConfig) and frozen is None and not keeps_features:
        frozen = fill_again(record, output)
    try:
        with reproducible(record.deterministic):
            with context.main_process_first(), _removing_what_has_not_begun(record, output, context):
                training, validation = cache_slices(record, data, output, cached_in, context)
                record = note_absent_classes(record, training)
                if keeps_features:
                    features, frozen = see_features(
                        record, output, cache or output / CACHE, training, validation, frozen
                    )
            network = build_planned(plan, frozen)
            record = fit(
                network, record, output, training, validation,
                context=context, features=features, resume=resume, checkpoint_minutes=checkpoint_minutes,
            )  # fmt: skip
    except UnreachableError as error:
        raise UnreachableError(f"{error}; {how_to_go_on(data, output, cache)}") from None
    except (KeyboardInterrupt, Interrupted) as stop:
        where = str(stop) or f"stopped; the last checkpoint is of step {read_run(output).steps_done}"
        raise Interrupted(f"{where}; {how_to_go_on(data, output, cache)}") from None
    say(
        "trained",
        f"{output}: {record.steps_done} steps in {record.seconds / 60:.1f} minutes",
        run=str(output),
        steps=record.steps_done,
        seconds=record.seconds,
    )
    return record


@contextmanager
def _removing_what_has_not_begun(record: RunRecord, output: Path, context: DistributedContext) -> Iterator[None]:
    """Within the block an error, such as a full disk, removes a run without a step: it can't be gone on with.

    But not where a file system is away for a while: what is cached so far is whole, and the run goes on from there.
    """
    try:
        yield
    except Exception as error:
        gone = isinstance(error, UnreachableError) or is_passing(error)
        if context.is_main and not record.steps_done and not gone:
            shutil.rmtree(output, ignore_errors=True)
        raise


def how_to_go_on(data: Path, output: Path, cache: Path | None = None) -> str:
    """The command that resumes a run, in words."""
    how = "go on with" if dist_info().world_size == 1 else "go on, by the same launcher, with"
    shared = ["--cache", str(cache)] if cache else []
    return f"{how}: " + shlex.join(["dinounet", "train", str(data), "-o", str(output), "--resume", *shared])


def _read_again(data: Path, record: RunRecord) -> Dataset:
    return read_dataset(data, test=record.data.test_cases, group=record.plan.data.groups.by)


def _hash(dataset: Dataset) -> str:
    with progress("hashing the data", len(dataset.cases)) as advance:
        return hash_dataset(dataset, on_case=advance)
