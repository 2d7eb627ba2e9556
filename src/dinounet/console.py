"""What the program prints: events, progress bars with the time left, JSON lines without a terminal."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dinounet.system import dist_info

SECONDS_BETWEEN_LINES = 5.0
"""Without a terminal a task tells its progress at most so often."""

Advance = Callable[..., None]
"""advance(done=1, **numbers): so much more is done, and these are the numbers to show."""


def say(event: str, text: str, **facts: Any) -> None:
    """Tell one thing: its text on a terminal, a JSON line with its facts elsewhere."""
    if dist_info().rank:
        return
    if sys.stdout.isatty():
        from rich.console import Console

        Console(soft_wrap=True, highlight=False, markup=False).print(text)
    else:
        _line({"event": event, "text": text, **facts})


@contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Show a task's progress while the block runs."""
    if dist_info().rank:
        yield lambda *_, **__: None
    else:
        yield from (_bar if sys.stdout.isatty() else _lines)(what, total, done)


def _bar(what: str, total: int, done: int) -> Iterator[Advance]:
    """A bar, and the latest numbers on a line below it."""
    from rich.console import Group
    from rich.live import Live
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    bars = Progress(*columns)
    task = bars.add_task(what, total=total, completed=done)
    latest: dict[str, float] = {}

    def advance(more: int = 1, **numbers: float) -> None:
        latest.update(numbers)
        bars.update(task, advance=more)

    def render() -> Group:
        shown = "  ".join(_in_words(name, number) for name, number in latest.items())
        return Group(bars, *([Text(f"  {shown}")] if shown else []))

    with Live(get_renderable=render):
        yield advance


def _in_words(name: str, number: float) -> str:
    return f"{name[:-2]} {number:.0f} %" if name.endswith(" %") else f"{name} {number:.3g}"


def _lines(what: str, total: int, done: int) -> Iterator[Advance]:
    started, first = time.monotonic(), done
    told = started - SECONDS_BETWEEN_LINES
    latest: dict[str, float] = {}

    def advance(more: int = 1, **numbers: float) -> None:
        nonlocal done, told
        done += more
        latest.update(numbers)
        moment = time.monotonic()
        if done == total or moment - told >= SECONDS_BETWEEN_LINES:
            told = moment
            left = (moment - started) / max(done - first, 1) * (total - done)
            rounded = {name: round(number, 4) for name, number in latest.items()}
            _line({"event": what, "done": done, "total": total, "seconds_left": round(left, 1), **rounded})

    yield advance


def _line(content: dict[str, Any]) -> None:
    print(json.dumps(content, ensure_ascii=False, default=str), flush=True)


_is_ours = False


def claim_process() -> None:
    """From here on this process is dinounet's own, and other packages' warnings are not shown in it.

    A user can do nothing about them; who wants them says so to Python, by -W or PYTHONWARNINGS.
    """
    global _is_ours
    _is_ours = True
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # prints what it then also raises


@contextmanager
def without_other_loggers() -> Iterator[None]:
    """Within the block nobody's logger tells anything less than an error, in a process of our own."""
    before = logging.root.manager.disable
    if _is_ours:
        logging.disable(logging.WARNING)
    try:
        yield
    finally:
        if _is_ours:
            logging.disable(before)


_redirecting = threading.Lock()


@contextmanager
def without_standard_error() -> Iterator[None]:
    """Within the block, in a process of our own, nothing is printed there: C libraries print beside raising an error.

    As ITK's MetaIO does, of a damaged MHA. Elsewhere the host's own standard error would be away meanwhile.
    """
    if not _is_ours:
        yield
        return
    with _redirecting:  # two threads would put back each other's
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


def quieten_lightning() -> None:
    """Lightning Fabric tells errors alone, in a process of our own; importing it undoes that."""
    if _is_ours:
        logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
        if not sys.warnoptions:
            warnings.filterwarnings("ignore", module="lightning_fabric")


def quieten_itk(sitk: Any) -> None:
    """ITK prints no warnings any more, in a process of our own.

    Args:
        sitk: the module.
    """
    if _is_ours:
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
