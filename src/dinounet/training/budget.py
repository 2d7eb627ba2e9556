"""How long a run lasts: so many steps, or so many minutes, to which the learning rate's schedule is fitted."""

from __future__ import annotations

import time
from dataclasses import replace

from dinounet.plans import Recipe

NEVER = 2**40
"""A step that no run reaches."""


class Budget:
    """Tells when a run is over and how far it is.

    Args:
        recipe: has steps, epochs or minutes.
        seconds_before: that were spent in sessions before this one.
    """

    def __init__(self, recipe: Recipe, seconds_before: float) -> None:
        self.recipe = recipe
        self.seconds = 60 * recipe.minutes if recipe.minutes else None
        self.last_step = NEVER if self.seconds else recipe.length
        self.total = 100 if self.seconds else recipe.length
        self.started = time.monotonic() - seconds_before

    def spent(self) -> float:
        """Seconds up to now, over all sessions."""
        return time.monotonic() - self.started

    def is_over(self, step: int, reserve: float) -> bool:
        """Whether the run is to end after this step.

        Args:
            step: that was done, counted from 1.
            reserve: seconds that another step and the last look at the validation cases would take.
        """
        if self.seconds:
            return self.spent() + reserve >= self.seconds
        return step >= self.last_step

    def guess_of_closing(self, a_batch: float, batches: int) -> float:
        """Seconds to set aside for the last look while there was none yet, at most a tenth of the time."""
        return min(a_batch * batches, self.seconds / 10) if self.seconds else 0.0

    def done(self, step: int, spent: float) -> int:
        """How much of `total` is done: steps, or percent of the time."""
        return min(int(100 * spent / self.seconds), 100) if self.seconds else step

    def schedule_at(self, step: int, spent: float, reserve: float) -> Recipe:
        """The recipe with the length that the clock foretells, where it is measured in minutes.

        The last step comes when no more than the reserve of `is_over` is left.
        """
        if not self.seconds:
            return self.recipe
        share = min(max(spent, 1e-6 * self.seconds) / max(self.seconds - reserve, 1e-6), 1.0)
        return replace(self.recipe, minutes=None, steps=max(step, round(step / share)))
