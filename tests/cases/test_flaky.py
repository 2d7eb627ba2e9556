"""A file system that is away for a moment, and a tracker that goes away, end no training and remove no cache."""

import builtins
import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

import dinounet
from datasets import write_png_dataset
from dinounet.data.dataset import read_dataset
from dinounet.data.images import read_image
from dinounet.errors import DataError, UnreachableError
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data
from dinounet.schema.plan import Plan
from dinounet.schema.recipe import Recipe
from dinounet.schema.run import read_log, read_run
from networks import planned

Break = Callable[..., list[str]]


@pytest.fixture
def break_reading(monkeypatch: pytest.MonkeyPatch) -> Break:
    """break_reading(part, times, number, after): opening files whose path contains `part` fails so often, as NFS may,
    after it has succeeded so often."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    usual = builtins.open

    def start(part: str, times: int, number: int = errno.EIO, after: int = 0) -> list[str]:
        failed: list[str] = []
        opened: list[str] = []

        def open_sometimes(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if not isinstance(file, int) and part in os.fsdecode(file) and "r" in mode and len(failed) < times:
                opened.append(os.fsdecode(file))
                if len(opened) <= after:
                    return usual(file, mode, *arguments, **options)
                failed.append(os.fsdecode(file))
                raise OSError(number, os.strerror(number), os.fsdecode(file))
            return usual(file, mode, *arguments, **options)

        monkeypatch.setattr(builtins, "open", open_sometimes)
        monkeypatch.setattr(io, "open", open_sometimes)
        return failed

    return start


PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30)).astype(np.uint8)


def write(path: Path) -> Path:
    if path.name.endswith(".nii.gz"):
        nibabel.save(nibabel.Nifti1Image(PIXELS.T[..., None], np.eye(4)), path)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, PIXELS)
    else:
        Image.fromarray(PIXELS).save(path)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.nii.gz"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_file_that_can_not_be_read_for_a_moment_is_read(
    name: str, number: int, tmp_path: Path, break_reading: Break
) -> None:
    path = write(tmp_path / name)
    failed = break_reading(name, 2, number)
    assert np.array_equal(read_image([path]).array[0, 0], PIXELS)
    assert len(failed) == 2


def test_a_file_that_can_not_be_read_at_all_is_one_sentence(tmp_path: Path, break_reading: Break) -> None:
    path = write(tmp_path / "a.png")
    failed = break_reading("a.png", 1000)
    with pytest.raises(
        UnreachableError, match=r"a\.png can't be read though it was tried 4 times \(.*error\); check its disk"
    ):
        read_image([path])
    assert len(failed) == 4


def test_a_damaged_file_is_not_tried_again(tmp_path: Path, break_reading: Break) -> None:
    path = write(tmp_path / "a.png")
    failed = break_reading("a.png", 1000, errno.EACCES)
    with pytest.raises(DataError, match=r"a\.png can't be read as an image"):
        read_image([path])
    assert len(failed) == 1


@pytest.mark.slow
def test_a_training_survives_both(
    tmp_path: Path, break_reading: Break, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    data, run = write_png_dataset(tmp_path / "pictures"), tmp_path / "run"
    recipe = Recipe(steps=3, batch_size=1, eval_interval=2, augmentation="none")
    write_json(tmp_path / "plan.json", Plan(plan_data(read_dataset(data), (32, 32)), planned(num_classes=3), recipe))
    last = sorted((data / "imagesTr").iterdir())[-1].name
    break_reading(last, 1000, after=1)  # it is hashed before it is cached
    with pytest.raises(UnreachableError, match=rf"{last} can't be read .*; go on with: dinounet train .* --resume"):
        dinounet.train(
            data, run, plan=tmp_path / "plan.json", weights="random", device="cpu", precision="fp32",
            track=("tensorboard",), report=False,
        )  # fmt: skip
    kept = sorted(path.name for path in (run / "cache").glob("*-*"))
    assert len(kept) == len(list((data / "imagesTr").iterdir())) - 1

    told = []

    def refuse(self: Any, name: str, *_: Any) -> None:
        told.append(name)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensorboard.SummaryWriter, "add_scalar", refuse)
    failed = break_reading("image.npy", 3)
    dinounet.train(data, run, resume=True, report=False)
    assert {*kept} < {path.name for path in (run / "cache").glob("*-*")}
    assert read_run(run).status == "finished" and [entry["step"] for entry in read_log(run) if "loss" in entry] == [
        1,
        2,
        3,
    ]
    assert len(failed) == 3 and len(told) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (line,) = [line for line in lines if line["event"] == "track"]
    assert "--track tensorboard has failed at step 1 ([Errno 28] No space left on device)" in line["text"]
