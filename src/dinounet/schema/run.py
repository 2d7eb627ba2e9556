"""A run's folder: the names of its files, and `run.json`, which says everything that made it."""

from __future__ import annotations

import json
from dataclasses import asdict, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from dinounet.errors import DataError
from dinounet.schema.base import Migrations, read_record, record
from dinounet.schema.migrations import rename_micro_batch
from dinounet.schema.network import BackboneRecord
from dinounet.schema.plan import Fold, Plan
from dinounet.schema.recipe import TrackerName

PLAN = "plan.json"
RECORD = "run.json"
LOG = "log.jsonl"
CHECKPOINT = "checkpoint.safetensors"
PREVIOUS_CHECKPOINT = "checkpoint.previous.safetensors"
MODEL = "model.safetensors"
CACHE = "cache"
REPORT = "report.html"
EXAMPLES = "examples"


@record
class DataRecord:
    """Which data it was."""

    name: str
    """The dataset folder's name."""

    sha256: str
    """Of the names and contents of all training images and masks."""

    training_cases: tuple[str, ...]
    """Learned from."""

    validation_cases: tuple[str, ...]
    """Watched, not learned from."""

    test_cases: tuple[str, ...] = ()
    """Held out: neither learned from nor watched, and in no decision of the plan."""

    absent_classes: tuple[str, ...] = ()
    """Classes, or regions, without a pixel in the training cases: they can't be learned, and are in no mean over
    classes."""


@record
class Result:
    """How the finished network did on some of the cases, in short; `metrics.json` beside their masks has all of it."""

    cases: int
    """How many there were."""

    dice: float
    """Mean over cases and classes; a class that is correctly absent scores 1."""

    dice_where_present: float | None
    """Mean Dice over the cases that have the class, and over classes; null where no case has one."""

    false_alarms: int
    """Pairs of case and class that the prediction has but the truth lacks."""

    floor: float
    """What an all-background prediction would score in `dice` on the same cases."""

    clearly_above_floor: bool | None
    """Whether `dice` is above the floor by more than chance among the cases; null of too few cases to tell."""


@record
class RunRecord:
    """Everything that made a run."""

    plan: Plan
    """Every decision, seed included."""

    data: DataRecord
    """What it learned from."""

    backbone: BackboneRecord | None
    """What it stands on; a U-Net has none."""

    fold: Fold
    """Which of the dataset's splits; all: every case is learned from."""

    device: Literal["cpu", "cuda", "mps"]
    """Where it was trained."""

    precision: Literal["fp32", "bf16", "fp16"]
    """Of the computation; the weights are float32."""

    trained_parameters: int
    """Numbers in the checkpoint."""

    frozen_parameters: int
    """Numbers in the backbone."""

    command: tuple[str, ...]
    """As typed."""

    versions: dict[str, str]
    """Of what computed."""

    machine: dict[str, str]
    """That it computed on."""

    started: str
    """Time in UTC."""

    status: Literal["running", "interrupted", "finished"] = "running"
    """finished: the model is there."""

    steps_done: int = 0
    """Steps up to the last checkpoint."""

    seconds: float = 0.0
    """Spent training, over all sessions."""

    skipped_steps: int = 0
    """Steps without effect, because loss or gradient was not finite."""

    micro_batch_size: int | None = None
    """Patches that go through the network together in each process; None: its whole share of a batch."""

    processes: int = 1
    """Number of processes that share each step."""

    offload: bool = False
    """Whether the backbone's blocks stay on the disk and are brought one by one."""

    deterministic: bool = False
    """Only operations that give the same numbers again on the same machine."""

    track: tuple[TrackerName, ...] = ()
    """Experiment trackers that log it."""

    notes: tuple[str, ...] = ()
    """What a reader of the results must know."""

    results: dict[str, Result] = field(default_factory=dict)
    """Of a reviewed run, by part: validation, test, or training where no case was kept from it."""

    readers: int = 1
    """Version of how its files were read when it was started, `data.formats.READERS`."""

    format: Literal[2] = 2
    """Version of this file's keys."""

    MIGRATIONS: ClassVar[Migrations] = {1: rename_micro_batch}


def read_run(folder: Path) -> RunRecord:
    """Read a run's record.

    Raises:
        DataError: the folder is no run.
        ConfigError: the record has unknown, missing or wrong keys.
    """
    if not (folder / RECORD).is_file():
        raise DataError(f"{folder} is not a run: it holds no {RECORD}; give the folder that `dinounet train` wrote")
    return read_record(RunRecord, folder / RECORD, what="the record of a run")


def tell(record: RunRecord) -> dict[str, Any]:
    """The record as a report reads it: with its length in words, and all that a reader must know among the notes."""
    groups = record.plan.data.groups
    notes = (*record.notes, *groups.remarks_on_files, *groups.remarks_on_pixels)
    return {**asdict(record), "duration": record.plan.recipe.duration, "notes": notes}


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log: one per step, and one a look at the validation cases."""
    path = folder / LOG
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]  # the last may still be written
