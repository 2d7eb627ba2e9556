"""A training session from start to end: dataset, backbone, plan, run folder, cache, loop."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from dinounet.backbones.frozen import FrozenBackbone, build_backbone
from dinounet.backbones.registry import DEFAULT, network_config
from dinounet.backbones.weights import fill_backbone
from dinounet.console import progress, say
from dinounet.data.cache import CachedCase, build_cache
from dinounet.data.checks import UNLEARNABLE
from dinounet.data.dataset import (
    Dataset,
    hash_dataset,
    known_hash,
    parse_channels,
    read_dataset,
    remember_hash,
    with_twins,
)
from dinounet.data.formats import READERS, other_reading
from dinounet.data.splits import read_test_list
from dinounet.distributed import DistributedContext, require_shares
from dinounet.errors import ConfigError, DataError, Interrupted, UnreachableError, WeightsError
from dinounet.io import is_passing, remove_leftovers, require_new, require_outside, write_json
from dinounet.network.dinounet import DinoUNet
from dinounet.planning.planner import (
    choose_any_recipe,
    choose_fold,
    decides_batch,
    plan_dataset,
    require_fold,
    split,
    with_groups,
)
from dinounet.schema.labels import parse_labels
from dinounet.schema.network import NetworkConfig
from dinounet.schema.plan import read_plan
from dinounet.schema.run import CACHE, PLAN, RECORD, DataRecord, RunRecord, read_run
from dinounet.system import (
    choose_precision,
    choose_training_device,
    command,
    dist_info,
    give_back_freed,
    machine,
    now,
    reproducible,
    versions,
)
from dinounet.training.feature_cache import CachedFeatures, cache_features, choose_features
from dinounet.training.loop import fit
from dinounet.training.memory import build_planned, check_plan, fit_plan
from dinounet.training.options import (
    TrainOptions,
    dataset_reader,
    decisions_of,
    require_agreement,
    require_as_started,
    require_backbone,
    require_groups,
    resolve,
)


def start_run(data: Path, output: Path, options: TrainOptions) -> Dataset:
    """Train a new run in the folder `output`.

    The main process reads the data, plans and makes the folder; the others read what it wrote.

    Returns:
        the dataset, which each process reads once.

    Raises:
        UserError: dataset, plan, weights or output folder are wrong; or Ctrl-C, when the run can be resumed.
    """
    device = choose_training_device(options.device or "auto")
    context = DistributedContext(device, choose_precision(options.precision or "auto", device))
    with context.fail_together():
        frozen = dataset = None
        with context.main_process_first():
            if context.is_main:
                frozen, dataset = _make_run(data, output, options, context)
        record = read_run(output)
        dataset = dataset or dataset_reader(data, record)(record.plan.data.groups.by)
        _continue(dataset, data, output, record, context, frozen, options, resume=False)
        return dataset


def _make_run(
    data: Path, output: Path, options: TrainOptions, context: DistributedContext
) -> tuple[FrozenBackbone | None, Dataset]:
    """Plan a run and make its folder; returns the backbone, filled, and the dataset."""
    require_new(output, what="the run")
    require_outside(output, data, what="the run")
    recipe, changes, device, precision = options.recipe or "default", options.changes, context.device, context.precision
    edited = read_plan(options.plan) if options.plan else None
    planned = edited.recipe if edited else choose_any_recipe(recipe, changes)
    if edited:
        told, remedy = f"{options.plan} has another", "change it there, or leave that option out"
        require_agreement(resolve(options.of_plan, edited), decisions_of(edited), told, remedy)
    architecture = edited.network.architecture if edited else options.network or "dinounet"
    require_backbone(architecture, options, {} if edited else changes)
    dataset = read_dataset(
        data,
        parse_labels(options.labels) if options.labels else None,
        parse_channels(options.channels) if options.channels else None,
        test=read_test_list(options.test) if options.test else edited.data.test_cases if edited else (),
        group=options.group or (edited.data.groups.by if edited else "auto"),
    )
    if edited and options.group:
        by = edited.data.groups.by
        require_groups(by, dataset, f"{options.plan} groups cases by {by}, not by {options.group}")
    for remark in dataset.remarks:
        say("note", remark)
    as_read = dataset
    if edited:
        dataset = with_twins(dataset, edited.data.groups.twins)
    require_fold(dataset, options.fold)
    # weights before pixels: what can fail fast, fails first
    config: NetworkConfig | None = None
    frozen = known = None
    if architecture == "dinounet":
        named = options.backbone or DEFAULT
        found = edited.network if edited else network_config(named, **options.of_backbone)
        assert isinstance(found, NetworkConfig)
        config = found
        frozen = build_backbone(config, offload=bool(options.offload))
        known = fill_backbone(frozen, config.backbone, options.weights or "hub", planned.seed)
    plan = edited or plan_dataset(
        dataset,
        recipe,
        config,
        options.patch,
        changes=changes,
    )
    for remark in plan.data.groups.remarks_on_pixels:
        say("note", remark)
    dataset = with_twins(dataset, plan.data.groups.twins)
    fold = choose_fold(dataset, options.fold)
    training, validation = split(dataset, fold)
    check_plan(plan, dataset)
    plan = with_groups(plan, dataset)
    notes = options.notes
    if edited and (told := other_reading(edited.data.readers, f"{options.plan} was decided")):
        say("readers", told)
        notes = (*notes, told)
    batch_is_given = bool(edited) or decides_batch(recipe, changes)
    fitted, network = fit_plan(
        plan, frozen, device, precision, patch_is_given=bool(edited or options.patch), batch_is_given=batch_is_given
    )
    if (
        not batch_is_given and fitted.recipe.batch_size > plan.recipe.batch_size
    ):  # what fits is made a number that can be shared
        batch = max(fitted.recipe.batch_size // context.world_size, 1) * context.world_size
        fitted = replace(fitted, recipe=replace(fitted.recipe, batch_size=batch))
    plan = plan if edited else fitted
    require_shares(plan.recipe.batch_size, context.world_size)
    assert fitted.memory is not None
    # GPUs are a process's own, a machine's memory is not
    at_once = max(fitted.memory.patches(plan.data.patch) // (dist_info().local_world_size if device == "cpu" else 1), 1)
    share = plan.recipe.batch_size // context.world_size
    micro_batch_size = options.micro_batch_size if isinstance(options.micro_batch_size, int) else None
    if micro_batch_size is None and at_once < share:
        micro_batch_size = at_once
        say("memory", f"{at_once} of {share} patches go through the network at a time", part=at_once)
    cache = options.cache or output / CACHE
    features = choose_features(plan, network, training, bool(validation), cache, device, precision)
    record = RunRecord(
        plan=replace(plan, features=features),
        data=DataRecord(
            dataset.name,
            digest := _hash(as_read, cache),
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
        micro_batch_size=micro_batch_size,
        offload=bool(options.offload),
        processes=context.world_size,
        deterministic=bool(options.deterministic),
        track=options.track or (),
        notes=notes,
        readers=READERS,
    )
    output.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output)
    try:
        write_json(output / RECORD, record)  # first: what holds it can be resumed
        remember_hash(as_read, digest, cache)
    except OSError:  # such as a full disk
        shutil.rmtree(output, ignore_errors=True)
        raise
    return frozen, as_read


def resume_run(data: Path, output: Path, options: TrainOptions) -> Dataset:
    """Go on with an interrupted run, perhaps with another number of processes.

    Device, micro-batch, offloading and trackers are as before unless they are given; auto is as many patches as fit.

    Returns:
        the dataset, which each process reads once.

    Raises:
        UserError: it is finished, its data or weights have changed, it was started with other options, or it has no
            checkpoint that can be read.
    """
    if not (output / RECORD).is_file():
        raise DataError(
            f"{output} is not a run: it holds no {RECORD}; if it was stopped before training began, there is nothing "
            "to go on from, so start it again without --resume"
        )
    record = read_run(output)
    if record.status == "finished":
        raise ConfigError(f"{output} is finished; there is nothing to resume")
    read = dataset_reader(data, record)
    require_as_started(read, output, record, options)
    micro_batch_size = (
        None if options.micro_batch_size == "auto" else options.micro_batch_size or record.micro_batch_size
    )
    context = DistributedContext(choose_training_device(options.device or record.device), record.precision)
    with context.fail_together():
        require_shares(record.plan.recipe.batch_size, context.world_size)
        record = replace(
            record,
            device=context.device,
            processes=context.world_size,
            micro_batch_size=micro_batch_size,
            offload=record.offload if options.offload is None else options.offload,
            track=record.track if options.track is None else options.track,
        )
        with context.main_process_first():
            dataset = read(record.plan.data.groups.by)
            if context.is_main:
                remove_leftovers(output)
                digest = _hash(dataset, cache := options.cache or output / CACHE)
                if digest != record.data.sha256:
                    raise DataError(
                        f"{data} is not, or no longer, the dataset that {output} was started with; train a new run"
                    )
                remember_hash(dataset, digest, cache)
        if told := other_reading(record.readers, f"{output} was started"):
            say("readers", told)
            record = replace(record, notes=tuple(dict.fromkeys((*record.notes, told))))
        say("resume", f"continuing after step {record.steps_done}", step=record.steps_done)
        _continue(dataset, data, output, record, context, None, options, resume=True)
        return dataset


def _continue(
    dataset: Dataset,
    data: Path,
    output: Path,
    record: RunRecord,
    context: DistributedContext,
    frozen: FrozenBackbone | None,
    options: TrainOptions,
    *,
    resume: bool,
) -> None:
    """Train a run whose folder is there, from its start or its checkpoint."""
    plan, features, cache = record.plan, None, options.cache or output / CACHE
    keeps_features = plan.features is not None and plan.features.cached
    if isinstance(plan.network, NetworkConfig) and frozen is None and not keeps_features:
        frozen = rebuild_backbone(record, output)
    try:
        with reproducible(record.deterministic):
            with context.main_process_first(), _removing_unstarted_run(record, output, context):
                training, validation = cache_cases(record, dataset, output, cache, context)
                record = record_absent_classes(record, training)
                if keeps_features:
                    features, frozen = prepare_features(record, output, cache, training, validation, frozen)
            network = build_planned(plan, frozen)
            record = fit(
                network, record, output, training, validation,
                context=context, features=features, resume=resume, checkpoint_minutes=options.checkpoint_minutes,
            )  # fmt: skip
    except UnreachableError as error:
        raise UnreachableError(f"{error}; {resume_hint(data, output, options.cache)}") from None
    except (KeyboardInterrupt, Interrupted) as stop:
        where = str(stop) or f"stopped; the last checkpoint is of step {read_run(output).steps_done}"
        raise Interrupted(f"{where}; {resume_hint(data, output, options.cache)}") from None
    say(
        "trained",
        f"{output}: {record.steps_done} steps in {record.seconds / 60:.1f} minutes",
        run=str(output),
        steps=record.steps_done,
        seconds=record.seconds,
    )


@contextmanager
def _removing_unstarted_run(record: RunRecord, output: Path, context: DistributedContext) -> Iterator[None]:
    """Remove a run that has not taken a step if the block fails, for instance by a full disk: it can't be resumed.

    A run whose file system is away for a while is kept: what is cached so far is whole, and the run goes on from there.
    """
    try:
        yield
    except Exception as error:
        gone = isinstance(error, UnreachableError) or is_passing(error)
        if context.is_main and not record.steps_done and not gone:
            shutil.rmtree(output, ignore_errors=True)
        raise


def resume_hint(data: Path, output: Path, cache: Path | None = None) -> str:
    """The command that resumes a run, as part of a sentence."""
    how = "go on with" if dist_info().world_size == 1 else "go on, by the same launcher, with"
    shared = ["--cache", str(cache)] if cache else []
    return f"{how}: " + shlex.join(["dinounet", "train", str(data), "-o", str(output), "--resume", *shared])


def _hash(dataset: Dataset, cache: Path) -> str:
    with progress("hashing the data", len(dataset.cases)) as advance:
        return known_hash(dataset, cache) or hash_dataset(dataset, on_case=advance)


def rebuild_backbone(record: RunRecord, output: Path) -> FrozenBackbone:
    """The backbone as it was when the run was started."""
    plan = record.plan
    assert isinstance(plan.network, NetworkConfig) and record.backbone is not None
    frozen = build_backbone(plan.network, offload=record.offload)
    found = fill_backbone(frozen, record.backbone.name, record.backbone.weights, plan.recipe.seed)
    if found.sha256 != record.backbone.sha256:
        raise WeightsError(f"the weights in {found.weights} have changed since {output} was started; train a new run")
    return frozen


def cache_cases(
    record: RunRecord, dataset: Dataset, output: Path, cache: Path, context: DistributedContext
) -> tuple[list[CachedCase], list[CachedCase]]:
    """The training and validation cases' preprocessed slices, in the run's own folder unless another is named."""
    by_name = {case.name: case for case in dataset.cases}
    training, validation = record.data.training_cases, record.data.validation_cases
    cases = [by_name[name] for name in (*training, *validation)]
    if context.is_main and not (output / PLAN).exists():
        write_json(output / PLAN, record.plan)
    with progress("caching", len(cases)) as advance:
        found = build_cache(cases, record.plan.data, cache, advance, lambda text: say("cache", text))
    return found[: len(training)], found[len(training) :]


def record_absent_classes(record: RunRecord, training: Sequence[CachedCase]) -> RunRecord:
    """The record with the classes that no training case holds, and a note about each.

    Raises:
        DataError: none holds any, so that there is nothing to learn.
    """
    known = record.plan.data.labels
    places = {label: place for place, label in enumerate(known.classes.values())}
    held = {place for case in training for place in case.classes}
    absent = tuple(name for name, labels in known.foreground.items() if not held & {places[label] for label in labels})
    if len(absent) == len(known.foreground):
        raise DataError(
            f"no training case of the fold {record.fold} holds anything but background, so that there is nothing to "
            "learn; train another --fold, or on all cases by --fold all"
        )
    notes = tuple(f"No training case has a pixel of {name}: {UNLEARNABLE}." for name in absent)
    for note in notes:
        say("note", note)
    return replace(
        record,
        data=replace(record.data, absent_classes=absent),
        notes=tuple(dict.fromkeys((*record.notes, *notes))),
    )


def prepare_features(
    record: RunRecord,
    output: Path,
    cache: Path,
    training: Sequence[CachedCase],
    validation: Sequence[CachedCase],
    frozen: FrozenBackbone | None,
) -> tuple[CachedFeatures, FrozenBackbone]:
    """The backbone's features on disk, and a backbone without weights, which is all that is needed then."""
    assert isinstance(record.plan.network, NetworkConfig)
    with torch.device("meta"):
        without_weights = build_backbone(record.plan.network)

    def network() -> DinoUNet:
        planned = build_planned(record.plan, frozen or rebuild_backbone(record, output))
        assert isinstance(planned, DinoUNet)
        return planned.to(record.device)

    features = cache_features(network, record, training, validation, cache, without_weights)
    for backbone in (frozen, without_weights):
        if backbone is not None:
            backbone.drop_weights()
    give_back_freed()
    return features, without_weights
