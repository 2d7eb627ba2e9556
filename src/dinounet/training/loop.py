"""The training loop: steps, a look at the validation cases now and then, checkpoints, and an orderly end when told to.

Devices and precision are Lightning Fabric's business.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dinounet.data.augmentation import Augmentation
from dinounet.data.cache import CachedCase
from dinounet.data.sampling import Patches
from dinounet.errors import Interrupted, UserError
from dinounet.files import whole_file, write_json
from dinounet.network.build import Network
from dinounet.plans import Plan, Recipe
from dinounet.progress import progress, say
from dinounet.run import CHECKPOINT, LOG, MODEL, PREVIOUS_CHECKPOINT, RECORD, RunRecord
from dinounet.targets import to_classes, to_targets
from dinounet.training.average import Average
from dinounet.training.checkpoint import load_checkpoint, save_checkpoint, save_tensors
from dinounet.training.loss import Loss, make_loss
from dinounet.training.optimizer import learning_rate_at, make_optimizer

CHECKPOINT_SECONDS = 60.0
"""Longest time between two checkpoints, up to a step."""

VALIDATION_BATCHES = 10
"""Batches in a look at the validation cases, as published; nnU-Net takes 50."""

MOST_SKIPPED = 10
"""Steps in a row whose loss or gradient is not finite, after which a run stops."""

NEVER = 2**40
"""A step that no run reaches."""


def fit(
    network: Network,
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
        UserError: the loss stays non-finite, memory is too small for one patch, or patches can't be prepared.
    """
    plan, recipe = record.plan, record.plan.recipe
    fabric = _make_fabric(record)
    optimizer = make_optimizer(network, recipe)
    torch.manual_seed(recipe.seed)
    wrapped, optimizer = fabric.setup(network, optimizer)
    average = Average(network, recipe.average) if recipe.average else None
    averaged = average.tensors if average else None
    seconds_before, first_step = 0.0, 0
    if resume:
        facts = load_checkpoint(run, network, optimizer, averaged)
        seconds_before, first_step = facts["seconds"], facts["step"]
    _cut_log(run / LOG, first_step)

    loss_of = make_loss(plan.data)
    learner = Learner(fabric, wrapped, optimizer, loss_of, recipe.clip, record.micro_batch or recipe.batch)
    patches = _make_patches(training, plan, recipe.augmentation)
    last_step = NEVER if recipe.minutes else recipe.length
    loader = fabric.setup_dataloaders(_make_loader(patches, first_step, last_step, workers))
    watch = _make_loader(_make_patches(validation, plan, "none"), 0, VALIDATION_BATCHES, workers=0)
    started = saved = time.monotonic()
    left_out, closing = 0, 0.0
    parts: defaultdict[str, float] = defaultdict(float)

    def spent() -> float:
        return seconds_before + time.monotonic() - started

    def save(step: int, status: Literal["running", "interrupted", "finished"]) -> None:
        nonlocal record, saved
        save_checkpoint(run, network, optimizer, {"step": step, "seconds": round(spent(), 1)}, averaged)
        record = replace(
            record,
            status=status,
            steps_done=step,
            seconds=round(spent(), 1),
            skipped_steps=record.skipped_steps + left_out,
            micro_batch=learner.micro_batch if learner.micro_batch < recipe.batch else None,
        )
        write_json(run / RECORD, record)
        saved = time.monotonic()

    batches = iter(loader)
    step, finished = first_step, first_step >= last_step
    with (
        told_to_stop() as stop,
        (run / LOG).open("a", encoding="utf-8") as log,
        progress("training", recipe.length if not recipe.minutes else 100, done=0 if recipe.minutes else step) as tell,
    ):
        shown = 0
        while not finished:
            began = time.monotonic()
            image, mask = _next(batches, patches, step, stop)
            step += 1
            schedule = _schedule_at(step, spent(), recipe)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step - 1, schedule)
            learner.seconds["data"] += time.monotonic() - began
            loss = learner.learn(image, mask)
            if loss is None:  # a step from here would spoil the weights
                left_out += 1
                _write_line(log, {"step": step, "skipped": "loss or gradient not finite", "seconds": round(spent(), 2)})
                if learner.skipped_in_a_row == MOST_SKIPPED:
                    save(step, "interrupted")
                    raise UserError(
                        f"loss or gradient is not finite in {MOST_SKIPPED} steps in a row, up to step {step} of case "
                        f"{_cases_of(patches, step - 1)}; train anew with a lower --learning-rate, or look at that case"
                    )
            else:
                if average:
                    average.update(step)
                entry = {"step": step, "loss": round(loss, 5), "seconds": round(spent(), 2)}
                _write_line(log, {**entry, "learning_rate": optimizer.param_groups[0]["lr"], **learner.breakdown()})
            last_took = time.monotonic() - began
            finished = step >= last_step
            if recipe.minutes:  # keep time for the last look and for saving
                finished = spent() + last_took + closing >= 60 * recipe.minutes
            for name, seconds in learner.seconds.items():
                parts[name] += seconds
            learner.seconds.clear()
            share = {f"{name} %": 100 * part / max(sum(parts.values()), 1e-9) for name, part in parts.items()}
            done = int(100 * spent() / (60 * recipe.minutes)) if recipe.minutes else step - first_step
            tell(max(done - shown, 0), **({} if loss is None else {"loss": loss}), **share)
            shown = max(done, shown)
            if validation and (step % recipe.validate_every == 0 or finished):
                before = time.monotonic()
                with average.in_place() if average else nullcontext():
                    watched = validate(wrapped, learner.loss_of, watch, plan)
                _write_line(log, {"step": step, **watched})
                tell(0, **{f"Dice {name}": dice for name, dice in watched["validation_dice"].items()})
                closing = time.monotonic() - before
            if stop():
                save(step, "interrupted")
                of = f"{recipe.minutes:g} minutes" if recipe.minutes else recipe.length
                raise Interrupted(f"stopped after step {step} of {of}")
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                save(step, "running")
                left_out = 0
    with average.in_place() if average else nullcontext():
        save_tensors(run / MODEL, network.state_dict(), {"steps": step})
    save(step, "finished")
    for name in (CHECKPOINT, PREVIOUS_CHECKPOINT):  # the model is all that is needed from here on
        (run / name).unlink(missing_ok=True)
    if record.skipped_steps:
        say("skipped", f"{record.skipped_steps} steps had no effect: loss or gradient was not finite")
    return record


class Learner:
    """Takes optimizer steps, each from a batch that goes through the network in parts.

    Args:
        fabric: devices and precision.
        network: as fabric set it up.
        optimizer: as well.
        loss_of: logits and mask to a scalar.
        clip: largest norm of the gradient.
        micro_batch: patches of a part.
    """

    def __init__(self, fabric: Any, network: Any, optimizer: Any, loss_of: Loss, clip: float, micro_batch: int) -> None:
        self.fabric, self.network, self.optimizer = fabric, network, optimizer
        self.loss_of, self.clip, self.micro_batch = loss_of, clip, micro_batch
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.skipped_in_a_row = 0

    def learn(self, image: Tensor, mask: Tensor) -> float | None:
        """Take a step; return its loss, or None if loss or gradient is not finite, when nothing has changed.

        Raises:
            UserError: not even a single patch fits into memory.
        """
        self.network.train()
        statistics = {name: part.clone() for name, part in self._statistics()}
        while True:
            random = torch.get_rng_state()
            self.optimizer.zero_grad()
            try:
                loss = self._accumulate(image, mask)
                break
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
            if self.micro_batch == 1:
                raise UserError("one patch alone needs more memory than there is; train anew with a smaller --patch")
            self.micro_batch = (self.micro_batch + 1) // 2
            torch.set_rng_state(random)
            self._put_back(statistics)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            say("memory", f"out of memory: going on with {self.micro_batch} patches at a time", part=self.micro_batch)
        began = time.monotonic()
        norm = self.fabric.clip_gradients(self.network, self.optimizer, max_norm=self.clip, error_if_nonfinite=False)
        if not (math.isfinite(loss) and norm.isfinite()):
            self.skipped_in_a_row += 1
            self._put_back(statistics)
            scaler = getattr(self.fabric.strategy.precision, "scaler", None)
            if scaler is not None:  # fp16: it was the scale that was too large
                scaler.update()
            return None
        self.optimizer.step()
        self.seconds["backward"] += time.monotonic() - began
        self.skipped_in_a_row = 0
        return loss

    def _statistics(self) -> Iterator[tuple[str, Tensor]]:
        """What batch norm keeps, which already a forward pass changes."""
        norms = ("running_mean", "running_var", "num_batches_tracked")
        return ((name, part) for name, part in self.network.named_buffers() if name.endswith(norms))

    def _put_back(self, statistics: dict[str, Tensor]) -> None:
        for name, part in self._statistics():
            part.copy_(statistics[name])

    def breakdown(self) -> dict[str, float]:
        """Seconds that the step spent on data, forward and backward."""
        return {name: round(self.seconds[name], 4) for name in ("data", "forward", "backward")}

    def _accumulate(self, image: Tensor, mask: Tensor) -> float:
        """Gradients of a batch, part by part; returns the mean loss."""
        total = 0.0
        for some, truth in zip(image.split(self.micro_batch), mask.split(self.micro_batch), strict=True):
            began = time.monotonic()
            loss = self.loss_of(self.network(some), truth) * (len(some) / len(image))
            value = loss.item()
            middle = time.monotonic()
            self.fabric.backward(loss)
            total += value
            self.seconds["forward"] += middle - began
            self.seconds["backward"] += time.monotonic() - middle
        return total


def _is_out_of_memory(error: BaseException) -> bool:
    words = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in words


def _next(batches: Iterator[Any], patches: Patches, step: int, stop: Callable[[], bool]) -> Any:
    """The next batch; if it can't be made, the error names the cases."""
    try:
        return next(batches)
    except (RuntimeError, OSError, ValueError, UserError) as error:
        if stop():  # the signal went to the workers as well
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UserError(
            f"patches of {_cases_of(patches, step)} could not be prepared for step {step + 1} ({reason}); if a worker "
            "was killed, memory was short: close other programs or choose a smaller --patch; then resume"
        ) from error


def _cases_of(patches: Patches, step: int) -> str:
    """Names of the cases in the batch of a step, counted from 0."""
    names = {patches.case_of(index) for index in range(step * patches.batch, (step + 1) * patches.batch)}
    return ", ".join(sorted(names))


def _schedule_at(step: int, seconds: float, recipe: Recipe) -> Recipe:
    """The recipe with the length that the clock foretells, where it is measured in minutes."""
    if recipe.minutes is None:
        return recipe
    share = min(max(seconds / (60 * recipe.minutes), 1e-6), 1.0)
    return replace(recipe, minutes=None, steps=max(step, round(step / share)))


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
    precision: Any = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[record.precision]
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
