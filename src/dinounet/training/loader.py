"""From cached cases to the batches of a run's steps, distributed over the processes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from dinounet.console import claim_process
from dinounet.data.cache import CachedCase
from dinounet.data.patches import PatchDataset
from dinounet.errors import UnreachableError, UserError, reason_of
from dinounet.schema.plan import Plan
from dinounet.schema.recipe import Augmentation


@dataclass(frozen=True)
class DistributedStepSampler:
    """Numbers of the patches that one process trains on, step by step: all processes together have those of one."""

    batch_size: int
    """Patches of a step, over all processes."""

    first_step: int
    """The first step, counted from 0; those before it are done."""

    last_step: int
    """The step after the last."""

    rank: int
    """Of the process."""

    world_size: int
    """Number of processes that share a step; it divides `batch_size`."""

    def __iter__(self) -> Iterator[range]:
        share = self.batch_size // self.world_size
        for step in range(self.first_step, self.last_step):
            first = step * self.batch_size + self.rank * share
            yield range(first, first + share)

    def __len__(self) -> int:
        return self.last_step - self.first_step


class PatchSequence(Protocol):
    """A sequence of patches whose cases can be named in an error."""

    batch_size: int
    """Patches of a step."""

    def case_of(self, index: int) -> str:
        """Name of the case that the n-th patch is of."""


def make_patches(cases: Sequence[CachedCase], plan: Plan, augmentation: Augmentation) -> PatchDataset:
    """The endless sequence of a plan's patches."""
    return PatchDataset(
        cases,
        plan.data.patch,
        batch_size=plan.recipe.batch_size,
        foreground_fraction=plan.recipe.foreground_fraction,
        augmentation=augmentation,
        seed=plan.recipe.seed,
    )


def make_loader(patches: Dataset[Any], sampler: DistributedStepSampler, workers: int) -> DataLoader[Any]:
    """The batches of this process, prepared by worker processes."""
    return DataLoader(
        patches,
        batch_sampler=sampler,  # type: ignore[arg-type]
        num_workers=workers,
        worker_init_fn=_leave_signals_to_the_parent,
        generator=torch.Generator(),  # its own: starting workers must not advance the one that drop path draws from
    )


def next_batch(batches: Iterator[Any], patches: PatchSequence, step: int, stop: Callable[[], bool]) -> Any:
    """The next batch; None if it can't be made because a signal to stop has ended the workers, too.

    Raises:
        UnreachableError: the cache's file system is away.
        UserError: it can't be made otherwise; a worker was killed, or a file of the cache is damaged.
    """
    try:
        return next(batches)
    # a worker that is killed while it sends leaves an end of file, or half a pickle of PyTorch's
    except (RuntimeError, OSError, ValueError, EOFError, UnpicklingError, UserError) as error:
        if stop():
            return None
        if isinstance(error, UnreachableError):  # with the worker's traceback before it
            raise UnreachableError(str(error).strip().splitlines()[-1].partition(": ")[2] or str(error)) from error
        raise _unprepared(error, patches, step) from error


@contextmanager
def worker_errors_as_user_errors(
    patches: PatchSequence, step: Callable[[], int], stop: Callable[[], bool]
) -> Iterator[None]:
    """Turns the death of a worker within the block into a UserError that names the cases of its batch.

    Raises:
        UserError: a worker was killed; without it, and but for a signal to stop, nothing is changed.
    """
    try:
        yield
    except RuntimeError as error:
        if stop() or not is_worker_dead(error):
            raise
        raise _unprepared(error, patches, step()) from error


def is_worker_dead(error: BaseException) -> bool:
    """Whether an error is PyTorch's report of a dead data worker."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def _unprepared(error: Exception, patches: PatchSequence, step: int) -> UserError:
    if hasattr(signal, "SIGCHLD"):
        with suppress(ValueError):  # only the main thread may; PyTorch would report the death again later
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    reason = reason_of(error, -1)
    return UserError(
        f"patches of {cases_of(patches, step)} could not be prepared for step {step + 1} ({reason}); if a worker "
        "was killed, memory was short: close other programs or choose a smaller --patch; then resume"
    )


def cases_of(patches: PatchSequence, step: int) -> str:
    """Names of the cases in the batch of a step, counted from 0."""
    names = {patches.case_of(index) for index in range(step * patches.batch_size, (step + 1) * patches.batch_size)}
    return ", ".join(sorted(names))


def _leave_signals_to_the_parent(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    claim_process()
