"""A run's numbers and pictures in TensorBoard, Weights & Biases or MLflow, where the user asks for them.

Nothing leaves the machine otherwise. TensorBoard writes files into the run's folder; so does MLflow, unless
MLFLOW_TRACKING_URI names a server; W&B sends to its server unless WANDB_MODE is offline. A run that is resumed goes on
under its own name in each.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dinounet.errors import ConfigError, reason_of
from dinounet.plans import TrackerName
from dinounet.progress import say
from dinounet.run import RunRecord

Track = Callable[..., None]
"""track(step, numbers, picture=None): tell the numbers of a step by their names, and a PNG file."""


def require_trackers(names: Sequence[str]) -> None:
    """Make sure that trackers are installed, before there is anything to track.

    Raises:
        ConfigError: one is not.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"--track {name} needs the package {name}; pip install 'dinounet[track]', or leave it out"
            )


@contextmanager
def tracking(names: Sequence[TrackerName], run: Path, record: RunRecord, first_step: int) -> Iterator[Track]:
    """Within the block, what is told goes to the named trackers; one that fails meanwhile is left out, which is told.

    Args:
        names: of the trackers; may be none.
        run: its folder.
        record: goes to the trackers as the run's configuration.
        first_step: steps that are done already; what trackers know of later ones is of a session that was broken off.

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
                        f"--track {name} has failed at step {step} ({reason_of(error)}) and is left out from here on; "
                        "the training goes on, and log.jsonl has all its numbers",
                        tracker=name,
                        step=step,
                    )

        yield track


def _close(name: str, opened: AbstractContextManager[Track], *error: Any) -> None:
    """Leave a tracker's context; what it can't tell any more at its end is no fault of the training's."""
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
    """What a tracker knows a run by, also when it is resumed or its folder has another name."""
    return hashlib.sha256(json.dumps([record.started, record.data.sha256, *record.command]).encode()).hexdigest()[:12]


def _pixels(picture: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(picture).convert("RGB"))
