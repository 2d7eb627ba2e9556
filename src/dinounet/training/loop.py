"""The training loop: steps, validation, checkpoints, and a graceful shutdown when stopped.

A checkpoint is one safetensors file with the trained tensors, the optimizer's, and facts such as the step. It is
written whole or not at all, and the one before is kept. It holds no random state: patches and drop path are functions
of the seed and the step.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dinounet.backbones.frozen import Network
from dinounet.console import say
from dinounet.data.cache import CachedCase
from dinounet.data.patches import PatchDataset
from dinounet.distributed import DistributedContext
from dinounet.errors import DataError, Interrupted, UnreachableError, UserError
from dinounet.io import atomic_write, write_json
from dinounet.network.unet import rename_monai_keys
from dinounet.schema.recipe import CHECKPOINT_MINUTES
from dinounet.schema.run import CHECKPOINT, LOG, MODEL, PREVIOUS_CHECKPOINT, RECORD, RunRecord
from dinounet.training.feature_cache import CachedFeatureDataset, CachedFeatures, CachedValidationDataset
from dinounet.training.loader import (
    DistributedStepSampler,
    cases_of,
    is_worker_dead,
    make_loader,
    make_patches,
    next_batch,
    worker_errors_as_user_errors,
)
from dinounet.training.logging import Budget, cut_log, tracking, training_logger
from dinounet.training.step import EMA, TrainStep, learning_rate_at, make_loss, make_optimizer, share_batch_norm
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
        training: the training cases.
        validation: cases to validate on; may be none.
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
    ema = EMA(network, recipe.ema_decay) if recipe.ema_decay else None
    averaged = ema.tensors if ema else None
    share = recipe.batch_size // context.world_size
    micro_batch_size = min(record.micro_batch_size or share, share)
    train_step = TrainStep(
        context, wrapped, optimizer, make_loss(plan.data), recipe.max_grad_norm, micro_batch_size, recipe.seed
    )
    known = load_checkpoint(run, network, optimizer, averaged, train_step.scaler) if resume else None
    step, seconds_before, skipped = (known["step"], known["seconds"], known["skipped"]) if known else (0, 0.0, 0)
    budget = Budget(recipe, seconds_before)

    patches: PatchDataset | CachedFeatureDataset = make_patches(training, plan, recipe.augmentation)
    validation_patches: PatchDataset | CachedValidationDataset = make_patches(validation, plan, "none")
    if features:
        patches, validation_patches = features.training, features.validation
    sampler = DistributedStepSampler(recipe.batch_size, step, budget.last_step, context.rank, context.world_size)
    loader = context.fabric.setup_dataloaders(make_loader(patches, sampler, workers), use_distributed_sampler=False)
    sampler = DistributedStepSampler(recipe.batch_size, 0, VALIDATION_BATCHES, context.rank, context.world_size)
    validation_loader = make_loader(validation_patches, sampler, workers=0)
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
            micro_batch_size=train_step.micro_batch_size if train_step.micro_batch_size < share else None,
        )
        if context.is_main:
            facts = {"step": step, "seconds": record.seconds, "skipped": skipped}
            save_checkpoint(run, network, optimizer, facts, averaged, train_step.scaler)
            write_json(run / RECORD, record)
        saved = time.monotonic()

    def stopped() -> Interrupted:
        save("interrupted")
        of = f"{recipe.max_minutes:g} minutes" if recipe.max_minutes else recipe.length
        return Interrupted(f"stopped after step {step} of {of}")

    spent, reserve, closing = seconds_before, 0.0, 0.0
    finished = step >= budget.last_step
    batches = iter(loader)
    with (
        graceful_shutdown(alone=context.world_size == 1) as stop,
        worker_errors_as_user_errors(patches, lambda: step, stop),
        tracking(record.track if context.is_main else (), run, record, step) as track,
        training_logger(run / LOG if context.is_main else None, track, budget, recipe.batch_size, step) as logger,
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
            train_step.seconds["data"] += time.monotonic() - began
            loss = train_step(step, *batch)
            if loss is None:  # a step from here would spoil the weights
                skipped += 1
            elif ema:
                ema.update(step)
            if validation:
                closing = closing or budget.guess_of_closing(train_step.seconds["forward"], VALIDATION_BATCHES)
            # the first process's clock counts for all, and a signal to one of them stops all
            reserve = time.monotonic() - began + closing
            clock = (budget.spent(), reserve, budget.is_over(step, reserve)) if context.is_main else (0, 0, 0)
            spent, reserve, finished, stopping = context.all_reduce_max(*clock, stop())
            logger.log_step(step, loss, spent, optimizer.param_groups[0]["lr"], train_step.breakdown())
            train_step.seconds.clear()
            if train_step.skipped_in_a_row == MOST_SKIPPED:
                save("interrupted")
                raise UserError(
                    f"loss or gradient is not finite in {MOST_SKIPPED} steps in a row, up to step {step} of case "
                    f"{cases_of(patches, step - 1)}; train a new run with a lower --learning-rate, or look at that case"
                )
            if validation and (step % recipe.eval_interval == 0 or finished):
                before = time.monotonic()
                with ema.swapped_in() if ema else nullcontext():
                    numbers, example = validate(context, wrapped, train_step.loss_fn, validation_loader, plan)
                logger.log_validation(
                    step, numbers, write_example(run, step, example, plan) if context.is_main else None
                )
                closing = time.monotonic() - before
            if stopping and not finished:
                raise stopped()
            if time.monotonic() - saved >= 60 * checkpoint_minutes:
                save("running")
    if context.is_main:
        with ema.swapped_in() if ema else nullcontext():
            save_tensors(run / MODEL, network.state_dict(), {"steps": step})
    save("finished")
    if context.is_main:
        for name in (CHECKPOINT, PREVIOUS_CHECKPOINT):  # the model is all that is needed from here on
            (run / name).unlink(missing_ok=True)
    if skipped:
        say("skipped", f"{skipped} steps were skipped: loss or gradient was not finite")
    return record


@contextmanager
def graceful_shutdown(alone: bool) -> Iterator[Callable[[], bool]]:
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


def save_tensors(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors, and facts as JSON in the file's header."""
    with atomic_write(path) as temporary:
        _write(temporary, tensors, facts)


def save_checkpoint(
    run: Path,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    facts: dict[str, Any],
    average: dict[str, Tensor] | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Write the run's checkpoint and keep the one before.

    At every moment there is a whole checkpoint under one of the two names.
    """
    state = optimizer.state_dict()
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for index, moments in state["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    tensors |= {f"average.{name}": tensor for name, tensor in (average or {}).items()}
    facts = {**facts, "scaler": scaler.state_dict() if scaler else None}
    with atomic_write(run / CHECKPOINT) as temporary:
        _write(temporary, tensors, facts)
        if (run / CHECKPOINT).exists():
            (run / CHECKPOINT).replace(run / PREVIOUS_CHECKPOINT)


def load_checkpoint(
    run: Path,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor] | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> dict[str, Any] | None:
    """Fill network, optimizer, average and scaler from the run's newest readable checkpoint; return its facts.

    A run that was stopped before its first checkpoint has none.

    Raises:
        DataError: there are checkpoints, and none can be read.
    """
    errors: list[str] = []
    for path in (run / CHECKPOINT, run / PREVIOUS_CHECKPOINT):
        if not path.exists():
            continue
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as damage:
            errors.append(f"{path} can't be read ({damage})")
            continue
        network.load_state_dict(_part(tensors, "network."))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _part(tensors, "optimizer.").items():
            index, moment = name.split(".", 1)
            moments.setdefault(int(index), {})[moment] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        for name, tensor in _part(tensors, "average.").items():
            if average is not None:
                average[name].copy_(tensor)
        if scaler and facts["scaler"]:
            scaler.load_state_dict(facts["scaler"])
        for error in errors:
            say("damaged", f"{error}; continuing from {path.name}, the previous checkpoint")
        return facts
    if errors:
        raise DataError(f"{'; '.join(errors)}; train a new run")
    return None


def _write(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(stored, path, metadata={"facts": json.dumps(facts)})


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    part = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return rename_monai_keys(part)
