"""Logging of a run: its log file with a line a step, experiment trackers, and the time budget."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from dinounet.console import Advance, progress, say
from dinounet.errors import ConfigError, missing_package, reason_of
from dinounet.io import atomic_write
from dinounet.schema.recipe import Recipe, TrackerName
from dinounet.schema.run import RunRecord

NEVER = 2**40
"""A step that no run reaches."""


class Budget:
    """The length of a run in steps or minutes, and how far it is.

    Args:
        recipe: has steps, epochs or minutes.
        seconds_before: that were spent in sessions before this one.
    """

    def __init__(self, recipe: Recipe, seconds_before: float) -> None:
        self.recipe = recipe
        self.seconds = 60 * recipe.max_minutes if recipe.max_minutes else None
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
            reserve: seconds that another step and the last validation would take.
        """
        if self.seconds:
            return self.spent() + reserve >= self.seconds
        return step >= self.last_step

    def guess_of_closing(self, a_batch: float, batches: int) -> float:
        """Seconds to set aside for the last validation while there was none yet, at most a tenth of the time."""
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
        return replace(self.recipe, max_minutes=None, steps=max(step, round(step / share)))


Track = Callable[..., None]
"""track(step, numbers, picture=None): log the numbers of a step by their names, and a PNG file."""


def require_trackers(names: Sequence[str]) -> None:
    """Make sure that trackers are installed, before there is anything to track.

    Raises:
        MissingPackage: one is not.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise missing_package(f"--track {name}", name, ", or leave it out")


@contextmanager
def tracking(names: Sequence[TrackerName], run: Path, record: RunRecord, first_step: int) -> Iterator[Track]:
    """Opens the named trackers for the block; one that fails meanwhile is reported and left out.

    Args:
        names: of the trackers; may be none.
        run: its folder.
        record: goes to the trackers as the run's configuration.
        first_step: steps that are done already; a tracker's entries of later ones are of an interrupted session.

    Raises:
        ConfigError: one can't be started.
    """
    with ExitStack() as open_trackers:
        trackers: dict[TrackerName, Track] = {}
        for name in names:
            try:
                opened = TRACKERS[name](run, record, first_step)
                trackers[name] = opened.__enter__()
                open_trackers.push(partial(_close, name, opened))
            except Exception as error:  # each has its own kinds: no account, no server, no space
                raise ConfigError(
                    f"--track {name} can't be started ({reason_of(error)}); correct that and go on with --resume, or "
                    "with another --track"
                ) from error

        def track(step: int, numbers: Mapping[str, float], picture: Path | None = None) -> None:
            for name, tell in list(trackers.items()):
                try:
                    tell(step, numbers, picture)
                except Exception as error:  # a server that has gone, a disk that is full
                    del trackers[name]
                    say(
                        "track",
                        f"--track {name} has failed at step {step} ({reason_of(error)}) and is not used any further; "
                        "the training goes on, and log.jsonl has all its numbers",
                        tracker=name,
                        step=step,
                    )

        yield track


def _close(name: str, opened: AbstractContextManager[Track], *error: Any) -> None:
    """Leave a tracker's context; an error of the tracker at its end does not fail the training."""
    try:
        opened.__exit__(*error)
    except Exception as trouble:
        if trouble is not error[1]:
            say("track", f"--track {name} couldn't be closed ({reason_of(trouble)})", tracker=name)


@contextmanager
def _tensorboard(run: Path, record: RunRecord, first_step: int) -> Iterator[Track]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1 if first_step else None) as writer:
        if not first_step:
            writer.add_text("run", f"```\n{json.dumps(asdict(record), indent=2, default=str)}\n```")

        def tell(step: int, numbers: Mapping[str, float], picture: Path | None) -> None:
            for name, number in numbers.items():
                writer.add_scalar(name, number, step)
            if picture:
                writer.add_image("examples", _pixels(picture), step, dataformats="HWC")

        yield tell


@contextmanager
def _wandb(run: Path, record: RunRecord, first_step: int) -> Iterator[Track]:
    import wandb

    with wandb.init(
        project=os.environ.get("WANDB_PROJECT", "dinounet"),
        name=run.name,
        id=_name_of(record),
        resume="allow",
        dir=run,
        config=asdict(record),
    ) as place:

        def tell(step: int, numbers: Mapping[str, float], picture: Path | None) -> None:
            pictures = {"examples": wandb.Image(_pixels(picture))} if picture else {}
            place.log({**numbers, **pictures}, step=step)

        yield tell


@contextmanager
def _mlflow(run: Path, record: RunRecord, first_step: int) -> Iterator[Track]:
    import mlflow

    group = os.environ.get("MLFLOW_EXPERIMENT_NAME", "dinounet")
    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{run.absolute()}/mlflow.db")
        if not mlflow.get_experiment_by_name(group):  # with its files beside, and not in the working folder
            mlflow.create_experiment(group, (run / "mlflow").absolute().as_uri())
    experiment = mlflow.set_experiment(group)
    tag = _name_of(record)
    known = mlflow.search_runs([experiment.experiment_id], f"tags.dinounet = '{tag}'", output_format="list")
    with mlflow.start_run(known[0].info.run_id if known else None, run_name=run.name) as place:
        mlflow.set_tag("dinounet", tag)
        mlflow.log_dict(json.loads(json.dumps(asdict(record), default=str)), "run.json")

        def tell(step: int, numbers: Mapping[str, float], picture: Path | None) -> None:
            mlflow.log_metrics(
                {name: float(number) for name, number in numbers.items()}, step, run_id=place.info.run_id
            )
            if picture:
                mlflow.log_artifact(str(picture), "examples")

        yield tell


TRACKERS: dict[TrackerName, Callable[[Path, RunRecord, int], Any]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}


def _name_of(record: RunRecord) -> str:
    """Identifier of a run for trackers, which stays when the run is resumed or its folder renamed."""
    return hashlib.sha256(json.dumps([record.started, record.data.sha256, *record.command]).encode()).hexdigest()[:12]


def _pixels(picture: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(picture).convert("RGB"))


class TrainingLogger:
    """Writes every step and validation to the log, the trackers and the progress bar; see `training_logger`."""

    def __init__(self, log: TextIO, track: Track, tell: Advance, budget: Budget, batch: int, shown: int) -> None:
        self.log, self.track, self.tell, self.budget, self.batch, self.shown = log, track, tell, budget, batch, shown
        self.parts: defaultdict[str, float] = defaultdict(float)
        self.steps = 0

    def log_step(
        self, step: int, loss: float | None, spent: float, learning_rate: float, breakdown: dict[str, float]
    ) -> None:
        """Log a step; its loss is None if it was skipped."""
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

    def log_validation(self, step: int, numbers: dict[str, Any], picture: Path | None) -> None:
        """Log the results of a validation."""
        self._write({"step": step, **numbers})
        dice = numbers["validation_dice"]
        loss = {"validation_loss": numbers["validation_loss"]}
        self.track(step, {**loss, **{f"validation_dice/{name}": value for name, value in dice.items()}}, picture)
        self.tell(0, **{f"Dice {name}": value for name, value in dice.items()})

    def _write(self, entry: dict[str, Any]) -> None:
        self.log.write(json.dumps(entry) + "\n")
        self.log.flush()


@contextmanager
def training_logger(log: Path | None, track: Track, budget: Budget, batch: int, step: int) -> Iterator[TrainingLogger]:
    """Opens a run's log and progress bar for the block.

    Args:
        log: to append to; None for none.
        track: of `tracking`.
        budget: of the run.
        batch: patches of a step.
        step: that is done already.
    """
    shown = budget.done(step, budget.spent())
    with (
        (log or Path(os.devnull)).open("a", encoding="utf-8") as file,
        progress("training", budget.total, done=shown) as tell,
    ):
        yield TrainingLogger(file, track, tell, budget, batch, shown)


def cut_log(path: Path, last_step: int) -> None:
    """Drop what was logged after the checkpoint: those steps are done again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= last_step]
        with atomic_write(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
