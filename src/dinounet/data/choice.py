"""An even choice among things of which more and more are seen, such as the pixels of a volume plane by plane."""

from __future__ import annotations

import numpy as np

Choice = tuple[np.ndarray, np.ndarray]
"""What is chosen so far, (n, ...), and (n,) what each has drawn."""


def choose_evenly(before: Choice | None, more: np.ndarray, most: int, random: np.random.Generator) -> Choice:
    """Choose among what was seen before and what is seen now: of all, those that draw the least.

    Args:
        before: the choice so far.
        more: (n, ...) to choose from.
        most: of all, so many are kept.
        random: what is drawn from.
    """
    chosen, draws = more, random.random(len(more))
    if before is not None:
        chosen, draws = np.concatenate([before[0], chosen]), np.concatenate([before[1], draws])
    if len(chosen) > most:
        least = np.argpartition(draws, most)[:most]
        chosen, draws = chosen[least], draws[least]
    return chosen, draws


class Reservoir:
    """An even choice among rows of arrays of which more and more come, in bounded memory (reservoir sampling).

    As long as they are not more than `most`, it is all of them, in the order that they came in.

    Args:
        most: rows that are chosen.
        seed: of all randomness.
    """

    def __init__(self, most: int, seed: int = 0) -> None:
        self.most = most
        self._random = np.random.default_rng(seed)
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._held, self._least_drawn = 0, 1.0

    def add(self, *rows: np.ndarray) -> None:
        """Rows that belong together, each array (n, ...): of all that have come, those that draw the least are kept."""
        draws = self._random.random(len(rows[0]))
        if self._least_drawn < 1:  # whoever draws more than all that are kept is not chosen
            rows = tuple(array[draws < self._least_drawn] for array in rows)
            draws = draws[draws < self._least_drawn]
        self._parts.append((draws, *rows))
        self._held += len(draws)
        if self._held > self.most * 5 // 4:
            self._drop_the_rest()

    def chosen(self) -> tuple[np.ndarray, ...]:
        """The chosen rows of each array, (n, ...) with n at most `most`."""
        if self._held > self.most:
            self._drop_the_rest()
        return tuple(np.concatenate(arrays) for arrays in list(zip(*self._parts, strict=True))[1:])

    def _drop_the_rest(self) -> None:
        draws = np.concatenate([part[0] for part in self._parts])
        kept = np.sort(np.argpartition(draws, self.most)[: self.most])
        arrays = (np.concatenate(array)[kept] for array in list(zip(*self._parts, strict=True))[1:])
        self._parts = [(draws[kept], *arrays)]
        self._held, self._least_drawn = self.most, float(draws[kept].max())
