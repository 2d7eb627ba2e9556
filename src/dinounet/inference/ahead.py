"""Working ahead: what a generator gives is made in a thread while its user is busy with what came before."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

SECONDS_BETWEEN_LOOKS = 0.2
"""Whether anybody still wants what was made."""


def ahead(items: Iterable[T], most: int) -> Iterator[T]:
    """The same items, of which up to `most` are made before they are asked for.

    An error in making them is raised where it would have been; a user that stops early ends the thread.
    """
    made: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(most)
    unwanted = threading.Event()

    def put(item: tuple[T] | BaseException | None) -> None:
        while not unwanted.is_set():
            try:
                return made.put(item, timeout=SECONDS_BETWEEN_LOOKS)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put((item,))
                if unwanted.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        unwanted.set()
        thread.join()
