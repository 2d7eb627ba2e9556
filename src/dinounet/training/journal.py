"""What a run tells while it trains: a line a step in the log, the trackers, and the display."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from dinounet.files import whole_file
from dinounet.progress import Advance, progress
from dinounet.training.budget import Budget
from dinounet.training.tracking import Track


class Journal:
    """Told of every step and look; see `journal`."""

    def __init__(self, log: TextIO, track: Track, tell: Advance, budget: Budget, batch: int, shown: int) -> None:
        self.log, self.track, self.tell, self.budget, self.batch, self.shown = log, track, tell, budget, batch, shown
        self.parts: defaultdict[str, float] = defaultdict(float)
        self.steps = 0

    def step(
        self, step: int, loss: float | None, spent: float, learning_rate: float, breakdown: dict[str, float]
    ) -> None:
        """A step is done; its loss is None if it was skipped."""
        when = {"step": step, "seconds": round(spent, 2)}
        if loss is None:
            self._write({**when, "skipped": "loss or gradient not finite"})
        else:
            self._write({**when, "loss": round(loss, 5), "learning_rate": learning_rate, **breakdown})
            self.track(step, {"loss": loss, "learning_rate": learning_rate, "seconds": spent})
        self.steps += 1
        for name, seconds in breakdown.items():
            self.parts[name] += seconds
        busy = max(sum(self.parts.values()), 1e-9)
        done = self.budget.done(step, spent)
        self.tell(
            done - self.shown,
            **({} if loss is None else {"loss": loss}),
            **{"patches/s": self.steps * self.batch / busy},
            **{f"{name} %": 100 * seconds / busy for name, seconds in self.parts.items()},
        )
        self.shown = done

    def look(self, step: int, numbers: dict[str, Any], picture: Path | None) -> None:
        """The validation cases were looked at."""
        self._write({"step": step, **numbers})
        dice = numbers["validation_dice"]
        loss = {"validation_loss": numbers["validation_loss"]}
        self.track(step, {**loss, **{f"validation_dice/{name}": value for name, value in dice.items()}}, picture)
        self.tell(0, **{f"Dice {name}": value for name, value in dice.items()})

    def _write(self, entry: dict[str, Any]) -> None:
        self.log.write(json.dumps(entry) + "\n")
        self.log.flush()


@contextmanager
def journal(log: Path | None, track: Track, budget: Budget, batch: int, step: int) -> Iterator[Journal]:
    """Within the block a run's progress is told.

    Args:
        log: to append to; None for none.
        track: tells the trackers.
        budget: of the run.
        batch: patches of a step.
        step: that is done already.
    """
    shown = budget.done(step, budget.spent())
    with (
        (log or Path(os.devnull)).open("a", encoding="utf-8") as file,
        progress("training", budget.total, done=shown) as tell,
    ):
        yield Journal(file, track, tell, budget, batch, shown)


def cut_log(path: Path, last_step: int) -> None:
    """Drop what was logged after the checkpoint: those steps are done again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= last_step]
        with whole_file(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
