"""Reading and working on many cases in several processes, where that is worth it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from dinounet.console import claim_process
from dinounet.errors import UserError
from dinounet.system import free_memory

T = TypeVar("T")

WORTH_PROCESSES = 64_000_000
"""Bytes of decoded images below which starting processes takes longer than it saves."""


@contextmanager
def run_jobs(jobs: Sequence[Callable[[], T]], workers: int, on_done: Callable[[], None]) -> Iterator[Iterator[T]]:
    """Give what each job returns, in the order of the jobs, as soon as it is there.

    Args:
        jobs: what can be sent to another process, and what they return as well.
        workers: number of processes; below 2 all is done in this one.
        on_done: called after each job, in this process.

    Raises:
        UserError: a process was killed. What a job raises is raised here, and the others are stopped.
    """
    if workers < 2:
        yield _run_here(jobs, on_done)
        return
    context = multiprocessing.get_context("spawn")  # forked ones would hold the cache's lock after our death
    stop = context.Event()
    with ProcessPoolExecutor(workers, context, _begin_worker, (stop,)) as pool:
        try:
            with _started_clean():
                places = {pool.submit(job): place for place, job in enumerate(jobs)}
            yield _in_order(places, on_done)
        except BrokenProcessPool:
            raise UserError(
                "a process that read images was killed, as happens when memory is short; close other programs and "
                "start again"
            ) from None
        except BaseException:  # the disk is full, or Ctrl-C: the others need not finish what they do
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _run_here(jobs: Sequence[Callable[[], T]], on_done: Callable[[], None]) -> Iterator[T]:
    for job in jobs:
        result = job()
        on_done()
        yield result


def _in_order(places: dict[Future[T], int], on_done: Callable[[], None]) -> Iterator[T]:
    """The results of jobs by their places; what comes early waits, and nothing is kept after it was given."""
    early: dict[int, T] = {}
    given = 0
    for task in as_completed(list(places)):
        early[places.pop(task)] = task.result()
        on_done()
        while given in early:
            yield early.pop(given)
            given += 1


def workers_for(jobs: int, decoded: int, memory: int) -> int:
    """Number of processes that this many jobs are worth.

    Args:
        jobs: to be done.
        decoded: bytes of all images once they are decoded.
        memory: bytes that the largest job takes.
    """
    return min(_cores(), jobs, free_memory() // 2 // max(memory, 1)) if decoded >= WORTH_PROCESSES else 1


_stop: Any = None
"""Event that is set, in a worker, when it should leave its job."""


def stop_if_told() -> None:
    """Raise a KeyboardInterrupt in a worker that should leave its job."""
    if _stop is not None and _stop.is_set():
        raise KeyboardInterrupt


def _begin_worker(stop: Any) -> None:
    global _stop
    _stop = stop
    claim_process()
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _MainOfNoFile(types.ModuleType):
    """Stands in for the main module: what has it run once more finds no file; all else is there for other threads."""

    def __init__(self, main: types.ModuleType) -> None:
        super().__init__("__main__")
        self._main = main

    def __getattr__(self, name: str) -> Any:
        if name == "__file__":
            raise AttributeError(name)
        return getattr(self._main, name)


_starting = threading.Lock()


@contextmanager
def _started_clean() -> Iterator[None]:
    """Processes that start in this block leave Ctrl-C to us, and don't run the user's own script once more.

    The latter would be a new training in each of them, unless the script guards itself against it.
    """
    blocks = hasattr(signal, "pthread_sigmask")  # not on Windows
    with _starting:  # two threads would put back each other's
        main = sys.modules["__main__"]
        sys.modules["__main__"] = _MainOfNoFile(main)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if blocks else None  # of this thread alone
        try:
            yield
        finally:
            sys.modules["__main__"] = main
            if before is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
