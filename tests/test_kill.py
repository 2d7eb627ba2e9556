"""A run that is killed at any moment, without warning, goes on to the end that it would have had."""

import itertools
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dinounet
from datasets import write_png_dataset
from dinounet.data.dataset import read_dataset
from dinounet.data.patches import make_transform
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data
from dinounet.schema.plan import Plan
from dinounet.schema.recipe import Recipe
from dinounet.schema.run import CHECKPOINT, MODEL, PREVIOUS_CHECKPOINT, RECORD, read_log, read_run
from dinounet.training.step import make_loss
from networks import planned

KILLS = 20


def train_in_a_child(data: Path, run: Path, plan: Path, dies_at: int | None = None) -> int:
    """Start a process that trains, or goes on, in a group of its own; what is heavy to import is there already.

    Args:
        data: to learn from.
        run: the folder.
        plan: for the start.
        dies_at: which of its calls of fsync it doesn't survive; around each of them files get their names.
    """
    child = os.fork()
    if child:
        with suppress(ProcessLookupError, PermissionError):  # the child does it, too; who comes first
            os.setpgid(child, child)
        return child
    os.setpgid(0, 0)
    try:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 -- pytest's are closed in a child
        calls = itertools.count(1)
        fsync = os.fsync

        def die_or_write(handle: int) -> None:
            if next(calls) == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(handle)

        os.fsync = die_or_write
        torch.set_num_threads(1)
        options = {"resume": True} if (run / RECORD).exists() else {"plan": plan, "weights": "random"}
        options["report"] = False
        dinounet.train(data, run, device="cpu", precision="fp32", checkpoint_minutes=0, **options)
    finally:
        os._exit(0)


def is_finished(run: Path) -> bool:
    return (run / RECORD).exists() and read_run(run).status == "finished"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_a_run_that_is_killed_twenty_times_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    make_loss()
    make_transform("nnunet", (64, 64))
    data, plan = write_png_dataset(tmp_path / "pictures"), tmp_path / "plan.json"
    recipe = Recipe(steps=48, batch_size=2, eval_interval=16, ema_decay=0.9, augmentation="nnunet")
    network = planned(num_classes=3, drop_path=0.3)
    write_json(plan, Plan(plan_data(read_dataset(data), (64, 64)), network, recipe))
    unbroken = tmp_path / "unbroken"
    began = time.monotonic()
    os.waitpid(train_in_a_child(data, unbroken, plan), 0)
    took, training = time.monotonic() - began, read_run(unbroken).seconds
    assert is_finished(unbroken)

    moments, kills, run = random.Random(0), 0, tmp_path / "run"
    while kills < KILLS:
        if is_finished(run):  # sooner than thought; the kills that are left are another's
            assert_same(run, unbroken)
            run = tmp_path / f"run after {kills} kills"
        if kills % 2:
            child = train_in_a_child(data, run, plan, dies_at=moments.randint(1, 16))
        else:  # while it plans, caches, or trains
            child = train_in_a_child(data, run, plan)
            time.sleep(moments.uniform(0, took - training + training / 12))
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
    if not is_finished(run):
        os.waitpid(train_in_a_child(data, run, plan), 0)
    assert is_finished(run)
    assert_same(run, unbroken)


def assert_same(run: Path, unbroken: Path) -> None:
    """To the last bit, and with each step once in the log."""
    ours, theirs = load_file(run / MODEL), load_file(unbroken / MODEL)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert tensor.equal(ours[name]), name
    for name in ("step", "loss", "learning_rate", "validation_dice"):
        logged, expected = ([entry.get(name) for entry in read_log(folder)] for folder in (run, unbroken))
        assert logged == expected
    files = [{path.name for path in folder.iterdir()} for folder in (run, unbroken)]
    assert files[0] - {CHECKPOINT, PREVIOUS_CHECKPOINT} == files[1]  # which stay if the very last moment was hit
