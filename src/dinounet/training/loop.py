"""The training loop: what it needs prepared, steps, validation, checkpoints, and an orderly end when stopped."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from dinounet.backbones.frozen import FrozenBackbone, Network, build_backbone
from dinounet.backbones.weights import fill_backbone
from dinounet.console import progress, say
from dinounet.data.cache import CachedCase, build_cache
from dinounet.data.dataset import read_dataset
from dinounet.data.patches import Patches
from dinounet.distributed import DistributedContext
from dinounet.errors import DataError, Interrupted, UnreachableError, UserError, WeightsError
from dinounet.io import write_json
from dinounet.network.dinounet import DinoUNet
from dinounet.schema.network import NetworkConfig
from dinounet.schema.recipe import CHECKPOINT_MINUTES
from dinounet.schema.run import CHECKPOINT, LOG, MODEL, PLAN, PREVIOUS_CHECKPOINT, RECORD, RunRecord
from dinounet.system import give_back_freed
from dinounet.training.checkpoint import load_checkpoint, save_checkpoint, save_tensors
from dinounet.training.feature_cache import CachedFeatures, SeenPatches, SeenTiles, cache_features
from dinounet.training.loader import (
    Shares,
    blaming_workers,
    cases_of,
    is_worker_dead,
    make_loader,
    make_patches,
    next_batch,
)
from dinounet.training.logging import Budget, cut_log, journal, tracking
from dinounet.training.loss import make_loss
from dinounet.training.memory import build_planned
from dinounet.training.optimizer import Average, learning_rate_at, make_optimizer
from dinounet.training.step import Learner, share_batch_norm
from dinounet.training.validation import VALIDATION_BATCHES, validate, write_example

MOST_SKIPPED = 10
"""Steps in a row whose loss or gradient is not finite, after which a run stops."""


def fit(
    network: Network,
    record: RunRecord,
    run: Path,
    training: Sequence[CachedCase],
    validation: Sequence[CachedCase],
    *,
    context: DistributedContext,
    features: CachedFeatures | None = None,
    resume: bool = False,
    workers: int = 1,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
) -> RunRecord:
    """Train a network as the record's plan says, keep the run's folder up to date, and leave the model there.

    Args:
        network: with its backbone filled.
        record: of the run.
        run: the folder.
        training: cases to learn from.
        validation: cases to watch; may be none.
        context: this process and those that train with it; the first one writes.
        features: of these cases, where the backbone need not run.
        resume: go on from the run's checkpoint.
        workers: processes that prepare patches.
        checkpoint_minutes: time between two checkpoints, up to a step.

    Returns:
        The record, finished.

    Raises:
        Interrupted: after Ctrl-C, when the checkpoint is written.
        UnreachableError: the cache's file system is away; the checkpoint is written.
        UserError: the loss stays non-finite, memory is too small for one patch, or patches can't be prepared.
    """
    plan, recipe = record.plan, record.plan.recipe
    if context.world_size > 1:
        share_batch_norm(network, record.device)
    wrapped, optimizer = context.setup(network, make_optimizer(network, recipe))
    average = Average(network, recipe.average) if recipe.average else None
    averaged = average.tensors if average else None
    share = recipe.batch // context.world_size
    micro_batch = min(record.micro_batch or share, share)
    learner = Learner(context, wrapped, optimizer, make_loss(plan.data), recipe.clip, micro_batch, recipe.seed)
    known = load_checkpoint(run, network, optimizer, averaged, learner.scaler) if resume else None
    step, seconds_before, skipped = (known["step"], known["seconds"], known["skipped"]) if known else (0, 0.0, 0)
    budget = Budget(recipe, seconds_before)

    patches: Patches | SeenTiles = make_patches(training, plan, recipe.augmentation)
    watched: Patches | SeenPatches = make_patches(validation, plan, "none")
    if features:
        patches, watched = features.training, features.validation
    mine = Shares(recipe.batch, step, budget.last_step, context.rank, context.world_size)
    loader = context.fabric.setup_dataloaders(make_loader(patches, mine, workers), use_distributed_sampler=False)
    watched_here = Shares(recipe.batch, 0, VALIDATION_BATCHES, context.rank, context.world_size)
    watch = make_loader(watched, watched_here, workers=0)
    if context.is_main:
        cut_log(run / LOG, step)
    saved = time.monotonic()

    def save(status: Literal["running", "interrupted", "finished"]) -> None:
        nonlocal record, saved
        record = replace(
            record,
            status=status,
            steps_done=step,
            seconds=round(budget.spent(), 1),
            skipped_steps=skipped,
            micro_batch=learner.micro_batch if learner.micro_batch < share else None,
        )
        if context.is_main:
            facts = {"step": step, "seconds": record.seconds, "skipped": skipped}
            save_checkpoint(run, network, optimizer, facts, averaged, learner.scaler)
            write_json(run / RECORD, record)
        saved = time.monotonic()

    def stopped() -> Interrupted:
        save("interrupted")
        of = f"{recipe.minutes:g} minutes" if recipe.minutes else recipe.length
        return Interrupted(f"stopped after step {step} of {of}")

    spent, reserve, closing = seconds_before, 0.0, 0.0
    finished = step >= budget.last_step
    batches = iter(loader)
    with (
        told_to_stop(alone=context.world_size == 1) as stop,
        blaming_workers(patches, lambda: step, stop),
        tracking(record.track if context.is_main else (), run, record, step) as track,
        journal(run / LOG if context.is_main else None, track, budget, recipe.batch, step) as note,
    ):
        while not finished:
            began = time.monotonic()
            try:
                batch = next_batch(batches, patches, step, stop)
            except UnreachableError:
                save("interrupted")
                raise
            if batch is None:
                raise stopped()
            step += 1
            schedule = budget.schedule_at(step, spent, reserve)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step - 1, schedule)
            learner.seconds["data"] += time.monotonic() - began
            loss = learner.learn(step, *batch)
            if loss is None:  # a step from here would spoil the weights
                skipped += 1
            elif average:
                average.update(step)
            if validation:
                closing = closing or budget.guess_of_closing(learner.seconds["forward"], VALIDATION_BATCHES)
            # the first process's clock counts for all, and a signal to one of them stops all
            reserve = time.monotonic() - began + closing
            clock = (budget.spent(), reserve, budget.is_over(step, reserve)) if context.is_main else (0, 0, 0)
            spent, reserve, finished, stopping = context.all_reduce_max(*clock, stop())
            note.step(step, loss, spent, optimizer.param_groups[0]["lr"], learner.breakdown())
            learner.seconds.clear()
            if learner.skipped_in_a_row == MOST_SKIPPED:
                save("interrupted")
                raise UserError(
                    f"loss or gradient is not finite in {MOST_SKIPPED} steps in a row, up to step {step} of case "
                    f"{cases_of(patches, step - 1)}; train anew with a lower --learning-rate, or look at that case"
                )
            if validation and (step % recipe.validate_every == 0 or finished):
                before = time.monotonic()
                with average.in_place() if average else nullcontext():
                    numbers, seen = validate(context, wrapped, learner.loss_of, watch, plan)
                note.look(step, numbers, write_example(run, step, seen, plan) if context.is_main else None)
                closing = time.monotonic() - before
            if stopping and not finished:
                raise stopped()
            if time.monotonic() - saved >= 60 * checkpoint_minutes:
                save("running")
    if context.is_main:
        with average.in_place() if average else nullcontext():
            save_tensors(run / MODEL, network.state_dict(), {"steps": step})
    save("finished")
    if context.is_main:
        for name in (CHECKPOINT, PREVIOUS_CHECKPOINT):  # the model is all that is needed from here on
            (run / name).unlink(missing_ok=True)
    if skipped:
        say("skipped", f"{skipped} steps had no effect: loss or gradient was not finite")
    return record


@contextmanager
def told_to_stop(alone: bool) -> Iterator[Callable[[], bool]]:
    """Within the block Ctrl-C (or a polite kill) only raises a flag; a second one ends at once.

    Where the process is not alone, its launcher hands on what the terminal has sent already, and ends by force what
    doesn't end in time: then a second signal is nothing new, and after an error a signal must not come between.
    """
    stopping = failed = False

    def handle(number: int, _: object) -> None:
        nonlocal stopping
        if stopping and alone:
            raise KeyboardInterrupt
        stopping = True

    try:
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only the main thread may handle signals
        before = {}
    try:
        yield lambda: stopping
    except BaseException as error:
        failed = True
        if stopping and is_worker_dead(error):  # the signal went to the workers as well
            raise KeyboardInterrupt from None
        raise
    finally:
        if alone or not failed:
            for number, handler in before.items():
                signal.signal(number, handler)


def fill_again(record: RunRecord, output: Path) -> FrozenBackbone:
    """The backbone as it was when the run was started."""
    plan = record.plan
    assert isinstance(plan.network, NetworkConfig) and record.backbone is not None
    frozen = build_backbone(plan.network, offload=record.offload)
    found = fill_backbone(frozen, record.backbone.name, record.backbone.weights, plan.recipe.seed)
    if found.sha256 != record.backbone.sha256:
        raise WeightsError(f"the weights in {found.weights} have changed since {output} was started; train anew")
    return frozen


def cache_slices(
    record: RunRecord, data: Path, output: Path, cache: Path, context: DistributedContext
) -> tuple[list[CachedCase], list[CachedCase]]:
    """The training and validation cases' preprocessed slices, in the run's own folder unless another is named."""
    by_name = {case.name: case for case in read_dataset(data, group="none").cases}
    training, validation = record.data.training_cases, record.data.validation_cases
    cases = [by_name[name] for name in (*training, *validation)]
    if context.is_main and not (output / PLAN).exists():
        write_json(output / PLAN, record.plan)
    with progress("caching", len(cases)) as advance:
        found = build_cache(cases, record.plan.data, cache, advance, lambda text: say("cache", text))
    return found[: len(training)], found[len(training) :]


def note_absent_classes(record: RunRecord, training: Sequence[CachedCase]) -> RunRecord:
    """The record with the classes that no training case holds, which is told.

    Raises:
        DataError: none holds any, so that there is nothing to learn.
    """
    meaning = record.plan.data.meaning
    places = {label: place for place, label in enumerate(meaning.labels.values())}
    held = {place for case in training for place in case.classes}
    absent = tuple(
        name for name, labels in meaning.foreground.items() if not held & {places[label] for label in labels}
    )
    if len(absent) == len(meaning.foreground):
        raise DataError(
            f"no training case of the fold {record.fold} holds anything but background, so that there is nothing to "
            "learn; train another --fold, or on all cases by --fold all"
        )
    notes = tuple(
        f"No training case has a pixel of {name}: it can't be learned, and is in no mean over classes."
        for name in absent
    )
    for note in notes:
        say("note", note)
    return replace(
        record,
        data=replace(record.data, absent_classes=absent),
        notes=tuple(dict.fromkeys((*record.notes, *notes))),
    )


def see_features(
    record: RunRecord,
    output: Path,
    cache: Path,
    training: Sequence[CachedCase],
    validation: Sequence[CachedCase],
    frozen: FrozenBackbone | None,
) -> tuple[CachedFeatures, FrozenBackbone]:
    """What the backbone sees, kept on disk, and a backbone without weights, which is all that is needed then."""
    assert isinstance(record.plan.network, NetworkConfig)
    with torch.device("meta"):
        without_weights = build_backbone(record.plan.network)

    def network() -> DinoUNet:
        planned = build_planned(record.plan, frozen or fill_again(record, output))
        assert isinstance(planned, DinoUNet)
        return planned.to(record.device)

    features = cache_features(network, record, training, validation, cache, without_weights)
    for backbone in (frozen, without_weights):
        if backbone is not None:
            backbone.drop_weights()
    give_back_freed()
    return features, without_weights
