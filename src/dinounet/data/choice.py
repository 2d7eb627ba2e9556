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
