"""A training session from start to end: dataset, backbone, plan, run folder, cache, loop."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch

from dinounet.data.cache import CachedCase, build_cache
from dinounet.data.dataset import Dataset, hash_dataset, parse_channels, read_dataset
from dinounet.data.labels import parse_labels
from dinounet.data.pairs import Case
from dinounet.data.splits import FOLDS, Fold, by_group, read_test_list
from dinounet.device import Device, Precision, choose_device, choose_precision, choose_training_device
from dinounet.errors import ConfigError, DataError, Interrupted, WeightsError
from dinounet.files import join_some, require_folder, require_new, require_outside, write_json
from dinounet.network.backbone import FrozenBackbone, build_backbone
from dinounet.network.build import Network, build_network
from dinounet.network.config import NetworkConfig
from dinounet.network.dinounet import DinoUNet
from dinounet.network.initialisation import initialise_he
from dinounet.network.weights import fill_backbone
from dinounet.plans import Architecture, Plan, Recipe, RecipeName, choose_recipe, decides_batch, plan_dataset, read_plan
from dinounet.progress import progress, say
from dinounet.run import CACHE, PLAN, RECORD, DataRecord, RunRecord, command, machine, now, read_run, versions
from dinounet.training.loop import fit
from dinounet.training.memory import fit_to_memory, measure_step


def start_run(
    data: Path,
    output: Path,
    *,
    recipe: Recipe | RecipeName | None = None,
    changes: Mapping[str, Any] | None = None,
    architecture: Architecture | None = None,
    backbone: str | None = None,
    weights: str = "hub",
    plan_file: Path | None = None,
    patch: tuple[int, int] | None = None,
    fold: Fold | None = None,
    test: Path | None = None,
    labels: str | None = None,
    channels: str | None = None,
    device: Device = "auto",
    precision: Precision = "auto",
    micro_batch: int | None = None,
    cache: Path | None = None,
    notes: tuple[str, ...] = (),
) -> RunRecord:
    """Train a new run in the folder `output`; see `dinounet.train` for the arguments.

    Raises:
        UserError: dataset, plan, weights or output folder are wrong; or Ctrl-C, when the run can be resumed.
    """
    require_new(output, what="the run")
    require_outside(output, data, what="the run")
    if cache is not None:
        require_folder(cache, "--cache")
    if micro_batch is not None and micro_batch < 1:
        raise ConfigError(f"--micro-batch is {micro_batch}; it must be at least 1")
    chosen = choose_training_device(device)
    planned = recipe if isinstance(recipe, Recipe) else choose_recipe(recipe or "default", changes or {})
    if plan_file and (recipe or changes or architecture or backbone or patch):
        raise ConfigError(
            f"{plan_file} holds recipe, network, backbone and patch already; change them there, or leave it out"
        )
    edited = read_plan(plan_file) if plan_file else None
    held_out = read_test_list(test) if test else edited.data.test_cases if edited else ()
    dataset = read_dataset(
        data,
        parse_labels(labels) if labels else None,
        parse_channels(channels) if channels else None,
        test=held_out,
    )
    fold = _choose_fold(dataset, fold)
    training, validation = _split(dataset, fold)
    seed = (edited.recipe if edited else planned).seed
    architecture = edited.network.architecture if edited else architecture or "dinounet"
    # weights before pixels: what can fail fast, fails first
    frozen = known = None
    if architecture == "dinounet":
        config = edited.network if edited else NetworkConfig(backbone=backbone or NetworkConfig.backbone)
        assert isinstance(config, NetworkConfig)
        frozen = build_backbone(config)
        known = fill_backbone(frozen, config.backbone, weights, seed)
    elif backbone or weights != "hub":
        say("network", "a U-Net has no backbone; --backbone and --weights are not used")
    plan = edited or plan_dataset(
        dataset,
        recipe or "default",
        backbone or NetworkConfig.backbone,
        patch,
        changes=changes,
        architecture=architecture,
    )
    _check_plan(plan, dataset)
    exactly = choose_precision(precision, chosen)
    fitted, network = fit_plan(
        plan, frozen, chosen, exactly,
        patch_is_given=bool(edited or patch),
        batch_is_given=bool(edited) or decides_batch(recipe or "default", changes or {}),
    )  # fmt: skip
    plan = edited or fitted
    assert fitted.memory is not None
    at_once = fitted.memory.patches(plan.data.patch)
    if micro_batch is None and at_once < plan.recipe.batch:
        micro_batch = at_once
        say("memory", f"{at_once} of {plan.recipe.batch} patches go through the network at a time", part=at_once)
    record = RunRecord(
        plan=plan,
        data=DataRecord(
            dataset.name,
            _hash(dataset),
            tuple(case.name for case in training),
            tuple(case.name for case in validation),
            dataset.test_cases,
        ),
        backbone=known,
        fold=fold,
        device=chosen,
        precision=exactly,
        trained_parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
        frozen_parameters=sum(p.numel() for p in frozen.parameters()) if frozen else 0,
        command=command(),
        versions=versions(),
        machine=machine(),
        started=now(),
        micro_batch=micro_batch,
        notes=notes,
    )
    output.mkdir(parents=True, exist_ok=True)
    try:
        write_json(output / RECORD, record)  # first: what holds it can be resumed
        write_json(output / PLAN, plan)
        cached = _cache(record, data, output, cache, training, validation)
    except Interrupted:
        raise
    except Exception:  # such as a full disk: nothing is there yet that could be gone on with
        shutil.rmtree(output, ignore_errors=True)
        raise
    return _fit(network, record, data, output, *cached, cache, resume=False)


def resume_run(
    data: Path, output: Path, *, device: Device = "auto", cache: Path | None = None, **asked: Any
) -> RunRecord:
    """Go on with an interrupted run.

    Args:
        data: the dataset that it was started with.
        output: the run's folder.
        device: where to compute from here on; by default where it was started.
        cache: folder of preprocessed slices; by default in the run's folder.
        asked: options that are given once more; what is None is not asked for. See `dinounet.train`.

    Raises:
        UserError: it is finished, its data or weights have changed, it was started with other options, or it has no
            checkpoint that can be read.
    """
    record = read_run(output)
    if record.status == "finished":
        raise ConfigError(f"{output} is finished; there is nothing to resume")
    plan = record.plan
    started_with = {
        **asdict(plan.recipe),
        "recipe": plan.recipe if isinstance(asked.get("recipe"), Recipe) else plan.recipe.base,
        "network": plan.network.architecture,
        "backbone": record.backbone and record.backbone.name,
        "plan": plan,
        "patch": plan.data.patch,
        "fold": record.fold,
        "test": record.data.test_cases,
        "labels": plan.data.meaning.given,
        "channels": tuple(channel.name for channel in plan.data.channels),
        "precision": record.precision,
        "weights": record.backbone and record.backbone.weights,
    }
    if asked.get("test") is not None:
        asked["test"] = read_dataset(data, test=asked["test"]).test_cases
    for name, value in asked.items():
        if value is not None and value != started_with[name]:
            raise ConfigError(f"{output} was started with another {name}; resume it without that option, or train anew")
    record = replace(record, device=choose_device(record.device if device == "auto" else device))
    dataset = read_dataset(data, test=record.data.test_cases)
    if _hash(dataset) != record.data.sha256:
        raise DataError(f"{data} is not, or no longer, the dataset that {output} was started with; train a new run")
    training, validation = _split(dataset, record.fold)
    frozen = None
    if isinstance(plan.network, NetworkConfig):
        assert record.backbone is not None
        frozen = build_backbone(plan.network)
        found = fill_backbone(frozen, record.backbone.name, record.backbone.weights, plan.recipe.seed)
        if found.sha256 != record.backbone.sha256:
            raise WeightsError(f"the weights in {found.weights} have changed since {output} was started; train anew")
    network = _build(plan, frozen)
    say("resume", f"going on after step {record.steps_done}", step=record.steps_done)
    cached = _cache(record, data, output, cache, training, validation)
    return _fit(network, record, data, output, *cached, cache, resume=True)


def how_to_go_on(data: Path, output: Path) -> str:
    """The command that resumes a run, in words."""
    return "go on with: " + shlex.join(["dinounet", "train", str(data), "-o", str(output), "--resume"])


def _hash(dataset: Dataset) -> str:
    with progress("hashing the data", len(dataset.cases)) as advance:
        return hash_dataset(dataset, on_case=advance)


def _check_plan(plan: Plan, dataset: Dataset) -> None:
    """An edited plan must still be one for this dataset."""
    names = tuple(channel.name for channel in plan.data.channels)
    if dataset.channels not in (None, names) or dataset.labels not in (None, plan.data.labels):
        raise ConfigError(
            f"the plan is for channels {list(names)} and labels {plan.data.labels}, but {dataset.name} has "
            f"{list(dataset.channels or names)} and {dataset.labels}; plan anew"
        )
    if dataset.meaning not in (None, plan.data.meaning):
        raise ConfigError(f"the plan has other regions, colours or another ignore label than {dataset.name}; plan anew")
    if plan.data.test_cases != dataset.test_cases:
        raise ConfigError(
            f"the plan holds out {join_some(plan.data.test_cases) or 'no case'}, and not what --test names; plan anew "
            "with that --test, or leave it out"
        )


def _choose_fold(dataset: Dataset, fold: Fold | None) -> Fold:
    """The fold to train: what was asked for, or else the first; where nothing can be split, all cases."""
    units = len(by_group(dataset.cases))
    kind = "groups of cases" if units < len(dataset.cases) else "cases"
    if fold == "all":
        return fold
    if not dataset.splits:
        if fold is not None:
            raise ConfigError(
                f"{dataset.name} has one case, or one group of cases, which can't be split; train on it, without "
                "validation, by --fold all"
            )
        say("folds", f"{dataset.name} has one case, or one group of cases: it is all trained on, and none is watched")
        return "all"
    if len(dataset.splits) == units < FOLDS:
        say("folds", f"{dataset.name} has {units} {kind}, so there are {units} folds and not {FOLDS}", folds=units)
    if fold is not None and not 0 <= fold < len(dataset.splits):
        raise ConfigError(
            f"{dataset.name} has {len(dataset.splits)} folds, numbered from 0, and no fold {fold}; "
            "choose another, or --fold all to train on all cases"
        )
    return fold or 0


def _split(dataset: Dataset, fold: Fold) -> tuple[list[Case], list[Case]]:
    """Training and validation cases."""
    if fold == "all":
        return list(dataset.cases), []
    train_names, validation_names = dataset.splits[fold]
    by_name = {case.name: case for case in dataset.cases}
    return [by_name[name] for name in train_names], [by_name[name] for name in validation_names]


def fit_plan(
    plan: Plan,
    frozen: FrozenBackbone | None,
    device: Literal["cpu", "cuda", "mps"],
    precision: Literal["fp32", "bf16", "fp16"],
    *,
    patch_is_given: bool,
    batch_is_given: bool,
) -> tuple[Plan, Network]:
    """Build the planned network and take a trial step; the plan comes back with patch and batch that memory allows.

    Raises:
        UserError: not even one patch fits, and it was given, or it can't be smaller.
    """
    network = _build(plan, frozen)
    memory = measure_step(network, plan, device, precision)
    fitted = fit_to_memory(plan, memory, patch_is_given=patch_is_given, batch_is_given=batch_is_given)
    return fitted, network if fitted.network == plan.network else _build(fitted, frozen)


def _build(plan: Plan, frozen: FrozenBackbone | None) -> Network:
    torch.manual_seed(plan.recipe.seed)
    network = build_network(plan.network, frozen)
    if plan.recipe.initialisation == "he":
        initialise_he(network)
    if plan.data.channel_projection is not None and isinstance(network, DinoUNet):
        network.channel_projection = torch.tensor(plan.data.channel_projection)
    return network


def _cache(
    record: RunRecord, data: Path, output: Path, cache: Path | None, training: list[Case], validation: list[Case]
) -> tuple[list[CachedCase], list[CachedCase]]:
    """The cases' preprocessed slices, in the run's own folder unless another is named."""
    cases = [*training, *validation]
    with _interruptible(data, output, cache), progress("caching", len(cases)) as advance:
        found = build_cache(cases, record.plan.data, cache or output / CACHE, advance, lambda text: say("cache", text))
    return found[: len(training)], found[len(training) :]


def _fit(
    network: Network,
    record: RunRecord,
    data: Path,
    output: Path,
    training: list[CachedCase],
    validation: list[CachedCase],
    cache: Path | None,
    *,
    resume: bool,
) -> RunRecord:
    with _interruptible(data, output, cache):
        record = fit(network, record, output, training, validation, resume=resume)
    say(
        "trained",
        f"{output}: {record.steps_done} steps in {record.seconds / 60:.1f} minutes",
        run=str(output),
        steps=record.steps_done,
        seconds=record.seconds,
    )
    return record


@contextmanager
def _interruptible(data: Path, output: Path, cache: Path | None) -> Iterator[None]:
    """Answers Ctrl-C in the block with how to go on."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as stop:
        where = str(stop) or f"stopped; the last checkpoint is of step {read_run(output).steps_done}"
        again = ["dinounet", "train", str(data), "-o", str(output), "--resume"]
        again += ["--cache", str(cache)] if cache else []
        raise Interrupted(f"{where}; go on with: {shlex.join(again)}") from None
