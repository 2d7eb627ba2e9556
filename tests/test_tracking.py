"""What a run tells while it trains: trackers, example pictures, the display."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dinounet
from datasets import write_png_dataset
from dinounet.cli.main import main
from dinounet.console import progress
from dinounet.data.dataset import read_dataset
from dinounet.errors import ConfigError, UserError
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data
from dinounet.schema.plan import Plan
from dinounet.schema.recipe import Recipe
from dinounet.schema.run import read_log, read_run
from dinounet.training.logging import TRACKERS
from dinounet.training.validation import FILES, write_example
from networks import planned
from test_training import ctrl_c_at


@pytest.fixture
def png(tmp_path: Path) -> Path:
    data = write_png_dataset(tmp_path / "pictures")
    recipe = Recipe(steps=4, eval_interval=2, warmup=2, augmentation="flip")
    write_json(tmp_path / "plan.json", Plan(plan_data(read_dataset(data), (64, 64)), planned(num_classes=3), recipe))
    return data


def train(png: Path, **options: Any) -> Path:
    run = png.parent / "run"
    start = {} if options.get("resume") else {"plan": png.parent / "plan.json", "weights": "random"}
    return dinounet.train(png, run, device="cpu", precision="fp32", **start, **options)


def stop_and_resume(png: Path, track: str) -> Path:
    with ctrl_c_at(3), pytest.raises(UserError, match="stopped after step 3"):
        train(png, track=(track,))
    return train(png, resume=True)


def logged(run: Path, key: str) -> dict[int, float]:
    return {entry["step"]: entry[key] for entry in read_log(run) if key in entry}


@pytest.mark.slow
def test_tensorboard_is_told_of_a_run_that_was_interrupted(png: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = stop_and_resume(png, "tensorboard")
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for name, key in (("loss", "loss"), ("learning_rate", "learning_rate"), ("validation_loss", "validation_loss")):
        told = {event.step: event.value for event in events.Scalars(name)}
        assert told == pytest.approx(logged(run, key), abs=1e-5)
    dice = {event.step: event.value for event in events.Scalars("validation_dice/disc")}
    assert dice == pytest.approx({step: of["disc"] for step, of in logged(run, "validation_dice").items()})
    pictures = [(picture.step, picture.width) for picture in events.Images("examples")]
    assert pictures == [(2, 3 * 64 + 2 * 4), (4, 3 * 64 + 2 * 4)]
    assert "dinov3_vits16" in events.Tensors("run/text_summary")[0].tensor_proto.string_val[0].decode()
    assert read_run(run).track == ("tensorboard",)


@pytest.mark.slow
def test_wandb_works_offline(png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = stop_and_resume(png, "wandb")
    (first, second) = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert first.name == second.name  # one run, of two sessions
    assert b"validation_dice/disc" in second.read_bytes()


@pytest.mark.slow
def test_mlflow_keeps_a_run_in_the_runs_folder(png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = stop_and_resume(png, "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{run}/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("dinounet").experiment_id])
    told = {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, "loss")}
    assert told == pytest.approx(logged(run, "loss"), abs=1e-5)
    assert found.info.status == "FINISHED"


def test_a_tracker_that_is_not_installed_is_answered_before_anything_is_done(
    png: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    run = png.parent / "run"
    assert main(["train", str(png), "-o", str(run), "--weights", "random", "--track", "tensorboard", "wandb"]) == 2
    assert (
        '--track tensorboard needs tensorboard: pip install "dinounet[track]", or leave it out'
        in capsys.readouterr().err
    )
    assert not run.exists()


@pytest.mark.slow
def test_a_tracker_that_cannot_start_is_answered(png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no account\nhelp")

    monkeypatch.setitem(TRACKERS, "tensorboard", refuse)
    with pytest.raises(
        ConfigError, match=r"--track tensorboard can't be started \(no account\); correct that and go on"
    ):
        train(png, track=("tensorboard",))


@pytest.mark.slow
def test_examples_show_image_truth_and_prediction_side_by_side(png: Path) -> None:
    run = train(png)
    assert sorted(path.name for path in (run / "examples").iterdir()) == ["step_000002.png", "step_000004.png"]
    pixels = np.asarray(Image.open(run / "examples" / "step_000004.png"))
    assert pixels.shape == (2 * 64 + 4, 3 * 64 + 2 * 4, 3)  # two patches a batch
    image, truth = pixels[:64, :64], pixels[:64, 68:132]
    assert (image == image[..., :1]).all()  # grey
    bright = image[..., 0] > 200  # the disc, which the first colour covers by half: orange
    assert bright.any()
    assert (truth[bright] != image[bright]).any(-1).mean() > 0.9


@pytest.mark.slow
def test_at_most_twelve_examples_are_kept_and_the_last_among_them(png: Path, tmp_path: Path) -> None:
    import torch

    plan = Plan(plan_data(read_dataset(png), (64, 64)), planned(num_classes=3), Recipe())
    seen = torch.zeros(1, 1, 600, 300), torch.zeros(1, 600, 300), torch.ones(1, 600, 300)
    (tmp_path / "out").mkdir()
    for step in range(10, 400, 10):
        path = write_example(tmp_path / "out", step, seen, plan)
        assert path.exists()
        assert len(list(path.parent.iterdir())) <= FILES
    with Image.open(path) as picture:
        assert picture.size == (3 * 100 + 2 * 4, 200)


def test_a_terminal_shows_a_bar_with_numbers_below(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with progress("training", 10) as tell:
        tell(4, loss=0.51234, **{"data %": 3.2})
    told = capsys.readouterr().out
    assert "4/10" in told
    assert told.index("4/10") < told.index("loss 0.512  data 3 %")
