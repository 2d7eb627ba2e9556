"""The training loop: steps, a look at the validation cases now and then, checkpoints, and an orderly end when told to.

Devices and precision are Lightning Fabric's business.
"""

from __future__ import annotations

import json
import logging
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader

from dinounet.data.augmentation import Augmentation
from dinounet.data.cache import CachedCase
from dinounet.data.sampling import Patches
from dinounet.errors import Interrupted, UserError
from dinounet.files import whole_file, write_json
from dinounet.network.dinounet import DinoUNet
from dinounet.plans import Plan
from dinounet.progress import progress
from dinounet.run import CHECKPOINT, LOG, MODEL, PREVIOUS_CHECKPOINT, RECORD, RunRecord
from dinounet.targets import to_classes, to_targets
from dinounet.training.checkpoint import load_checkpoint, save_checkpoint, save_tensors
from dinounet.training.loss import Loss, make_loss
from dinounet.training.optimizer import learning_rate_at, make_optimizer

CHECKPOINT_SECONDS = 60.0
"""Longest time between two checkpoints, up to a step."""

VALIDATION_BATCHES = 10
"""Batches in a look at the validation cases; nnU-Net's number."""


def fit(
    network: DinoUNet,
    record: RunRecord,
    run: Path,
    training: Sequence[CachedCase],
    validation: Sequence[CachedCase],
    *,
    resume: bool = False,
    workers: int = 1,
) -> RunRecord:
    """Train a network as the record's plan says, keep the run's folder up to date, and leave the model there.

    Args:
        network: with its backbone filled.
        record: of the run; its device and precision are used.
        run: the folder.
        training: cases to learn from.
        validation: cases to watch; may be none.
        resume: go on from the run's checkpoint.
        workers: processes that prepare patches.

    Returns:
        The record, finished.

    Raises:
        Interrupted: after Ctrl-C, when the checkpoint is written.
        UserError: the loss is no longer finite.
    """
    plan, recipe = record.plan, record.plan.recipe
    fabric = _make_fabric(record)
    optimizer = make_optimizer(network, recipe)
    torch.manual_seed(recipe.seed)
    wrapped, optimizer = fabric.setup(network, optimizer)
    seconds_before, first_step = 0.0, 0
    if resume:
        facts = load_checkpoint(run, network, optimizer)
        seconds_before, first_step = facts["seconds"], facts["step"]
    _cut_log(run / LOG, first_step)

    loss_of = make_loss(plan.data)
    patches = _make_patches(training, plan, recipe.augmentation)
    loader = fabric.setup_dataloaders(_make_loader(patches, first_step, recipe.steps, workers))
    watch = _make_loader(_make_patches(validation, plan, "none"), 0, VALIDATION_BATCHES, workers=0)
    started = saved = time.monotonic()

    def save(step: int, status: Literal["running", "interrupted", "finished"]) -> None:
        nonlocal record, saved
        spent = round(seconds_before + time.monotonic() - started, 1)
        save_checkpoint(run, network, optimizer, {"step": step, "seconds": spent})
        record = replace(record, status=status, steps_done=step, seconds=spent)
        write_json(run / RECORD, record)
        saved = time.monotonic()

    with (
        told_to_stop() as stop,
        (run / LOG).open("a", encoding="utf-8") as log,
        progress("training", recipe.steps, done=first_step) as advance,
    ):
        for step, (image, mask) in enumerate(loader, start=first_step + 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step - 1, recipe)
            wrapped.train()
            loss = loss_of(wrapped(image), mask)
            optimizer.zero_grad()
            fabric.backward(loss)
            norm = fabric.clip_gradients(wrapped, optimizer, max_norm=recipe.clip, error_if_nonfinite=False)
            if not (loss.isfinite() and norm.isfinite()):  # a step from here would spoil the weights
                save(step - 1, "interrupted")
                raise UserError(
                    f"loss or gradient of step {step} is not finite; train anew with a lower --learning-rate"
                )
            optimizer.step()

            entry = {"step": step, "loss": round(loss.item(), 5), "seconds": _since(started, seconds_before)}
            _write_line(log, {**entry, "learning_rate": optimizer.param_groups[0]["lr"]})
            advance(loss=entry["loss"])
            if validation and (step % recipe.validate_every == 0 or step == recipe.steps):
                watched = validate(wrapped, loss_of, watch, plan)
                _write_line(log, {"step": step, **watched})
                advance(0, **{f"Dice {name}": dice for name, dice in watched["validation_dice"].items()})
            if stop():
                save(step, "interrupted")
                raise Interrupted(f"stopped after step {step} of {recipe.steps}")
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                save(step, "running")
    save_tensors(run / MODEL, network.state_dict(), {"steps": recipe.steps})
    save(recipe.steps, "finished")
    for name in (CHECKPOINT, PREVIOUS_CHECKPOINT):  # the model is all that is needed from here on
        (run / name).unlink(missing_ok=True)
    return record


@torch.no_grad()
def validate(network: torch.nn.Module, loss_of: Loss, loader: Any, plan: Plan) -> dict[str, Any]:
    """Loss, and Dice of each foreground class or region over all known pixels of the validation patches together."""
    network.eval()
    overlap, both = torch.zeros(2, plan.network.num_classes, dtype=torch.int64)
    losses = []
    device = next(network.parameters()).device
    for image, mask in loader:
        image, mask = image.to(device), mask.to(device)
        logits = network(image)
        losses.append(loss_of(logits, mask).item())
        target, known = to_targets(mask, plan.data)
        found = to_targets(to_classes(logits, plan.data), plan.data)[0] * known  # as a mask would tell it
        overlap += (found * target).sum((0, 2, 3), dtype=torch.int64).cpu()
        both += (found + target).sum((0, 2, 3), dtype=torch.int64).cpu()
    dice = 2 * overlap / both.clamp(min=1)
    return {
        "validation_loss": round(sum(losses) / len(losses), 5),
        "validation_dice": {
            name: round(dice[output].item(), 5)
            for output, name in enumerate(plan.data.meaning.outputs)
            if name in plan.data.meaning.foreground and both[output]  # what is nowhere has no Dice
        },
    }


@contextmanager
def told_to_stop() -> Iterator[Callable[[], bool]]:
    """Within the block Ctrl-C (or a polite kill) only raises a flag; a second one ends at once."""
    stopping = False

    def handle(number: int, _: object) -> None:
        nonlocal stopping
        if stopping:
            raise KeyboardInterrupt
        stopping = True

    try:
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only the main thread may handle signals
        before = {}
    try:
        yield lambda: stopping
    except RuntimeError:
        if stopping:  # the signal went to the workers as well, and the loader complains of one's death
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _make_fabric(record: RunRecord) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightning_fabric import Fabric
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning_fabric")
    precision: Any = {"fp32": "32-true", "bf16": "bf16-mixed"}[record.precision]
    return Fabric(accelerator=record.device, devices=1, precision=precision)


def _make_patches(cases: Sequence[CachedCase], plan: Plan, augmentation: Augmentation) -> Patches:
    return Patches(
        cases,
        plan.data.patch,
        batch=plan.recipe.batch,
        foreground=plan.recipe.foreground,
        augmentation=augmentation,
        seed=plan.recipe.seed,
    )


def _make_loader(patches: Patches, first_step: int, last_step: int, workers: int) -> DataLoader[Any]:
    """The batches of the steps after `first_step` up to `last_step`."""
    return DataLoader(
        patches,
        batch_size=patches.batch,
        sampler=range(first_step * patches.batch, last_step * patches.batch),
        num_workers=workers,
        worker_init_fn=_leave_signals_to_the_parent,
        generator=torch.Generator(),  # its own: starting workers must not advance the one that drop path draws from
    )


def _leave_signals_to_the_parent(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _cut_log(path: Path, last_step: int) -> None:
    """Drop what was logged after the checkpoint: those steps are done again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= last_step]
        with whole_file(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


def _write_line(log: Any, entry: dict[str, Any]) -> None:
    log.write(json.dumps(entry) + "\n")
    log.flush()


def _since(started: float, before: float) -> float:
    return round(before + time.monotonic() - started, 2)
