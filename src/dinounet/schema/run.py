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
    """The dataset of a run."""

    name: str
    """The dataset folder's name."""

    sha256: str
    """sha256 of the names and contents of all training images and masks."""

    training_cases: tuple[str, ...]
    """Names of the training cases."""

    validation_cases: tuple[str, ...]
    """Names of the validation cases."""

    test_cases: tuple[str, ...] = ()
    """Names of the held-out test cases, which affect no decision of the plan."""

    absent_classes: tuple[str, ...] = ()
    """Classes, or regions, without a pixel in the training cases: they can't be learned, and are in no mean over
    classes."""


@record
class Result:
    """Summary of the finished network's results; `metrics.json` beside the masks has all of them."""

    cases: int
    """Number of cases."""

    dice: float
    """Mean over cases and classes; a class that is correctly absent scores 1."""

    dice_where_present: float | None
    """Mean Dice over the cases that have the class, and over classes; null where no case has one."""

    false_alarms: int
    """Pairs of case and class that the prediction has but the truth lacks."""

    floor: float
    """Dice of an all-background prediction on the same cases."""

    clearly_above_floor: bool | None
    """Whether `dice` is above the floor by more than chance; null if there are too few cases to say."""


@record
class RunRecord:
    """Provenance of a run."""

    plan: Plan
    """The plan: every decision, seed included."""

    data: DataRecord
    """The dataset and its split."""

    backbone: BackboneRecord | None
    """The frozen backbone; null for a U-Net."""

    fold: Fold
    """Index of the cross-validation fold; all: every case is used for training."""

    device: Literal["cpu", "cuda", "mps"]
    """Device that it was trained on."""

    precision: Literal["fp32", "bf16", "fp16"]
    """Precision of the computation; the weights are float32."""

    trained_parameters: int
    """Number of parameters in the checkpoint."""

    frozen_parameters: int
    """Number of parameters in the backbone."""

    command: tuple[str, ...]
    """Command as typed."""

    versions: dict[str, str]
    """Versions of the software."""

    machine: dict[str, str]
    """Machine that it was trained on."""

    started: str
    """Start time in UTC."""

    status: Literal["running", "interrupted", "finished"] = "running"
    """Status; finished: the model is complete."""

    steps_done: int = 0
    """Steps up to the last checkpoint."""

    seconds: float = 0.0
    """Training time in seconds, over all sessions."""

    skipped_steps: int = 0
    """Number of steps skipped because loss or gradient was not finite."""

    micro_batch_size: int | None = None
    """Patches per forward pass in each process; None: its whole share of a batch."""

    processes: int = 1
    """Number of processes that share each step."""

    offload: bool = False
    """Whether the backbone's blocks stay on disk and are loaded one by one."""

    deterministic: bool = False
    """Whether only deterministic operations are used."""

    track: tuple[TrackerName, ...] = ()
    """Experiment trackers in use."""

    notes: tuple[str, ...] = ()
    """Notes that matter for interpreting the results."""

    results: dict[str, Result] = field(default_factory=dict)
    """Results of a reviewed run by part: validation, test, or training where no case was held out."""

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
