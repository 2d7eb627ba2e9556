"""Telling how far it is: a bar with the time left on a terminal, JSON lines everywhere else.

Of several processes only the first one speaks.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dinounet.processes import my_place

SECONDS_BETWEEN_LINES = 5.0
"""Without a terminal a task tells its progress at most so often."""

Advance = Callable[..., None]
"""advance(done=1, **numbers): so much more is done, and these are the numbers to show."""


def say(event: str, text: str, **facts: Any) -> None:
    """Tell one thing: its text on a terminal, a JSON line with its facts elsewhere."""
    if my_place().rank:
        return
    if sys.stdout.isatty():
        from rich.console import Console

        Console(soft_wrap=True, highlight=False, markup=False).print(text)
    else:
        _line({"event": event, "text": text, **facts})


@contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Show a task's progress while the block runs."""
    if my_place().rank:
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
