"""Loss, schedule, loop, checkpoints and resuming."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

import dinounet
from datasets import write_nifti_dataset, write_png_dataset
from dinounet.data.dataset import hash_dataset, read_dataset
from dinounet.errors import ConfigError, DataError, Interrupted, UserError, WeightsError
from dinounet.io import write_json
from dinounet.network.dinounet import DinoUNet
from dinounet.planning.data_plan import plan_data
from dinounet.schema.plan import Plan
from dinounet.schema.recipe import Recipe
from dinounet.schema.run import CHECKPOINT, MODEL, PREVIOUS_CHECKPOINT, read_log, read_run
from dinounet.training.loop import load_checkpoint, save_checkpoint
from dinounet.training.step import learning_rate_at, make_loss
from networks import planned

pytestmark = pytest.mark.usefixtures("one_thread")  # equal runs are equal to the bit

NETWORK = planned(num_classes=3)


@pytest.fixture
def plan_file(png: Path, tmp_path: Path) -> Path:
    """A plan for the pictures with a tiny network."""
    recipe = Recipe(steps=6, eval_interval=3, warmup=2, augmentation="flip")
    write_json(tmp_path / "tiny.json", Plan(plan_data(read_dataset(png), (64, 64)), NETWORK, recipe))
    return tmp_path / "tiny.json"


def train(data: Path, run: Path, plan: Path, **changes: object) -> Path:
    return dinounet.train(
        data, run, plan=plan, weights="random", device="cpu", precision="fp32", report=False, **changes
    )


def test_loss_is_dice_plus_cross_entropy_by_hand() -> None:
    logits = torch.randn(2, 3, 8, 8)
    mask = torch.randint(0, 3, (2, 8, 8))
    share = logits.softmax(1)
    truth = torch.nn.functional.one_hot(mask, 3).permute(0, 3, 1, 2)
    overlap, sizes = (share * truth).sum((0, 2, 3)), (share + truth).sum((0, 2, 3))
    dice = ((2 * overlap + 1e-5) / (sizes + 1e-5))[1:].mean()  # over the batch, without background
    expected = 1 - dice + torch.nn.functional.cross_entropy(logits, mask)
    torch.testing.assert_close(make_loss()(logits, mask), expected)


def test_deep_supervision_weighs_scales_by_halves() -> None:
    loss, mask = make_loss(), torch.randint(0, 3, (2, 8, 8))
    fine, coarse = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4)
    expected = (loss(fine, mask) + 0.5 * loss(coarse, mask[:, 1::2, 1::2])) / 1.5  # as nnU-Net's "nearest-exact"
    torch.testing.assert_close(loss([fine, coarse], mask), expected)


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    recipe = Recipe(steps=100, warmup=10, learning_rate=1.0)
    rates = [learning_rate_at(step, recipe) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[55] == pytest.approx(0.5)
    assert max(rates) == 1.0
    assert rates[-1] < 1e-3


@pytest.mark.slow
def test_a_run_learns_and_says_everything_that_made_it(png: Path, plan_file: Path, tmp_path: Path) -> None:
    plan = json.loads(plan_file.read_text())
    plan["recipe"] |= {"steps": 60, "eval_interval": 30, "batch_size": 4, "learning_rate": 0.01}
    plan_file.write_text(json.dumps(plan))
    run = train(png, tmp_path / "run", plan_file)

    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 60
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])
    watched = [entry for entry in log if "validation_dice" in entry]
    assert [entry["step"] for entry in watched] == [30, 60]
    assert set(watched[0]["validation_dice"]) == {"disc", "square"}

    record = read_run(run)
    assert (record.status, record.steps_done, record.fold) == ("finished", 60, 0)
    assert record.plan.network == NETWORK
    assert record.data.sha256 == hash_dataset(read_dataset(png))
    assert set(record.data.training_cases) | set(record.data.validation_cases) == {f"case_{i}" for i in range(6)}
    assert record.backbone.weights == "random"
    assert len(record.backbone.sha256) == 64
    assert torch.__version__.startswith(record.versions["torch"])
    assert (run / MODEL).stat().st_size < 1.1 * 4 * record.trained_parameters + 200_000  # no backbone inside
    assert not [path for path in run.rglob("*") if path.suffix in (".pt", ".pth", ".pkl")]


def ctrl_c_at(step: int) -> RemovableHandle:
    """While it is entered, a run is sent SIGINT in its n-th step."""
    steps = itertools.count(1)

    def press(*_: object) -> None:
        if next(steps) == step:
            signal.raise_signal(signal.SIGINT)

    return register_optimizer_step_post_hook(press)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 4])
def test_a_stopped_run_goes_on_to_the_same_end(step: int, png: Path, plan_file: Path, tmp_path: Path) -> None:
    whole = train(png, tmp_path / "whole", plan_file)
    told = rf"stopped after step {step} of 6; go on with: dinounet train .* --resume"
    with ctrl_c_at(step), pytest.raises(UserError, match=told):
        train(png, tmp_path / "broken", plan_file)
    assert read_run(tmp_path / "broken").status == "interrupted"
    with pytest.raises(DataError, match=r"holds no model\.safetensors: its training is not finished"):
        dinounet.load(tmp_path / "broken")
    broken = train(png, tmp_path / "broken", plan_file, resume=True)

    ours, theirs = load_file(broken / MODEL), load_file(whole / MODEL)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    steps = [[line["step"] for line in read_log(run)] for run in (whole, broken)]
    assert steps[0] == steps[1]


@pytest.mark.slow
def test_a_signal_that_also_ends_the_workers_stops_the_run_and_no_more(
    png: Path, plan_file: Path, tmp_path: Path
) -> None:
    def end_all(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    told = "stopped; the last checkpoint is of step 0; go on with: dinounet train"
    with register_optimizer_step_pre_hook(end_all), pytest.raises(Interrupted, match=told):
        train(png, tmp_path / "run", plan_file)
    train(png, tmp_path / "run", plan_file, resume=True)
    assert read_run(tmp_path / "run").status == "finished"


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    png: Path, plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ctrl_c_at(4), pytest.raises(UserError, match="stopped after step 4"):
        train(png, tmp_path / "run", plan_file, checkpoint_minutes=0)
    (tmp_path / "run" / CHECKPOINT).write_bytes(b"half a file")
    assert (tmp_path / "run" / PREVIOUS_CHECKPOINT).exists()
    train(png, tmp_path / "run", plan_file, resume=True)
    assert "checkpoint.safetensors can't be read" in capsys.readouterr().out
    assert read_run(tmp_path / "run").status == "finished"


@pytest.mark.slow
def test_options_that_contradict_a_plan_or_an_interrupted_run_are_refused(
    png: Path, plan_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"tiny\.json has another recipe \(steps 6.*\) than --recipe asks for \(steps 9.*\); change"
    ):
        train(png, tmp_path / "run", plan_file, recipe=Recipe(steps=9))
    with ctrl_c_at(1), pytest.raises(UserError, match="stopped after step 1"):
        train(png, tmp_path / "run", plan_file)
    others = {"recipe": Recipe(steps=9), "fold": 2, "backbone": "dinov3_vitb16", "patch": (32, 32), "labels": "a=0,b=1"}
    for name, value in others.items():
        with pytest.raises(
            ConfigError, match=rf"was started with another {name} \(.*\) than --{name} asks .*; resume it"
        ):
            dinounet.train(png, tmp_path / "run", resume=True, **{name: value})


@pytest.mark.slow
def test_a_run_goes_on_on_another_device(
    png: Path, plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ctrl_c_at(1), pytest.raises(UserError, match="stopped after step 1"):
        train(png, tmp_path / "run", plan_file)
    write_json(tmp_path / "run" / "run.json", replace(read_run(tmp_path / "run"), device="cuda"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="this machine has no cuda device"):
        dinounet.train(png, tmp_path / "run", resume=True)
    run = dinounet.train(png, tmp_path / "run", resume=True, device="cpu", report=False)
    assert (read_run(run).status, read_run(run).device) == ("finished", "cpu")


@pytest.mark.slow
def test_images_are_checked_also_by_an_edited_plan(png: Path, plan_file: Path, tmp_path: Path) -> None:
    path = png / "labelsTr" / "case_2.png"
    mask = np.asarray(Image.open(path))
    for wrong, message in ((mask[:40, :40], r"is 1 x 40 x 40 but"), (mask * 9, r"holds 9, 18, but the labels are")):
        Image.fromarray(wrong).save(path)
        with pytest.raises(DataError, match=rf"case_2\.png {message}"):
            train(png, tmp_path / str(wrong.shape), plan_file)


@pytest.mark.slow
def test_a_run_that_diverges_stops_with_its_last_good_weights(png: Path, plan_file: Path, tmp_path: Path) -> None:
    plan = json.loads(plan_file.read_text())
    plan["recipe"] |= {"learning_rate": 1e30, "warmup": 0, "steps": 40}
    plan_file.write_text(json.dumps(plan))
    with pytest.raises(UserError, match=r"in 10 steps in a row, up to step \d+ of case case_\d.*lower --learning-rate"):
        train(png, tmp_path / "run", plan_file)
    assert read_run(tmp_path / "run").status == "interrupted"


def edit(plan_file: Path, **changes: object) -> None:
    plan = json.loads(plan_file.read_text())
    plan["recipe"] |= changes
    plan_file.write_text(json.dumps(plan))


@pytest.mark.slow
def test_one_step_that_is_not_finite_is_skipped_and_counted(png: Path, plan_file: Path, tmp_path: Path) -> None:
    steps = itertools.count(1)

    def spoil(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if isinstance(module, DinoUNet) and torch.is_grad_enabled() and next(steps) == 2:
            return (given[0] * float("nan"), *given[1:])
        return None

    with register_module_forward_pre_hook(spoil):
        run = train(png, tmp_path / "run", plan_file)
    assert read_run(run).skipped_steps == 1
    assert all(tensor.isfinite().all() for tensor in load_file(run / MODEL).values())


@pytest.mark.slow
def test_memory_that_runs_out_halves_the_micro_batch_and_the_step_is_done_again(
    png: Path, plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(plan_file, batch_size=4)

    def run_out(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, DinoUNet) and torch.is_grad_enabled() and len(given[0]) > 2:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")

    with register_module_forward_pre_hook(run_out):
        halved = train(png, tmp_path / "halved", plan_file)
    assert "out of memory: continuing with 2 patches at a time" in capsys.readouterr().out
    asked = train(png, tmp_path / "asked", plan_file, micro_batch_size=2)
    ours, theirs = load_file(halved / MODEL), load_file(asked / MODEL)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.slow
def test_a_run_of_minutes_ends_in_time_with_the_schedule_at_its_end(png: Path, plan_file: Path, tmp_path: Path) -> None:
    edit(plan_file, max_minutes=0.2, eval_interval=1000)
    record = read_run(train(png, tmp_path / "run", plan_file))
    assert record.steps_done > 6
    assert record.seconds == pytest.approx(12, rel=0.1)  # with the look at the end, and saving
    rates = [line.get("learning_rate") for line in read_log(tmp_path / "run")]
    assert [rate for rate in rates if rate][-1] < 0.05 * record.plan.recipe.learning_rate


@pytest.mark.slow
def test_the_average_of_the_weights_is_kept_and_resumed(png: Path, plan_file: Path, tmp_path: Path) -> None:
    edit(plan_file, ema_decay=0.9)
    whole = train(png, tmp_path / "whole", plan_file)
    with ctrl_c_at(4), pytest.raises(UserError, match="stopped after step 4"):
        train(png, tmp_path / "broken", plan_file)
    broken = train(png, tmp_path / "broken", plan_file, resume=True)
    edit(plan_file, ema_decay=0.0)
    plain = train(png, tmp_path / "plain", plan_file)
    ours, theirs, last = (load_file(run / MODEL) for run in (whole, broken, plain))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert any(not torch.equal(tensor, last[name]) for name, tensor in ours.items())


@pytest.mark.slow
def test_a_record_of_another_version_is_refused(png: Path, plan_file: Path, tmp_path: Path) -> None:
    run = train(png, tmp_path / "run", plan_file)
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**content, "format": 7}))
    with pytest.raises(ConfigError, match=r"run\.json has the format 7, of a newer dinounet than this one"):
        dinounet.load(run)


@pytest.mark.slow
def test_what_cannot_be_resumed_is_answered(png: Path, plan_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is not a run: it holds no run\.json"):
        train(png, tmp_path / "nowhere", plan_file, resume=True)
    run = train(png, tmp_path / "run", plan_file)
    with pytest.raises(ConfigError, match="is finished; there is nothing to resume"):
        train(png, run, plan_file, resume=True)
    record = read_run(run)
    write_json(run / "run.json", replace(record, status="interrupted"))
    with pytest.raises(DataError, match="no longer, the dataset"):
        train(write_png_dataset(tmp_path / "other", cases=5), run, plan_file, resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fold": 9}, "pictures has 5 folds, numbered from 0, and no fold 9"),
        ({"weights": "nowhere.safetensors"}, r"nowhere\.safetensors does not exist; download the weights of"),
        ({"weights": __file__}, r"test_training\.py is not a file of weights, neither of"),
        ({"backbone": "dinov3_vitz16"}, "there is no backbone 'dinov3_vitz16'; the nearest names are dinov3_vit"),
    ],
)
def test_a_wrong_command_is_answered_and_leaves_nothing(changes: dict, message: str, png: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        dinounet.train(png, tmp_path / "run", **{"weights": "random", **changes})
    assert not (tmp_path / "run").exists()


def test_an_output_that_exists_and_a_dataset_that_does_not_are_answered(png: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"exists already; give the run another name with -o, or remove it"):
        dinounet.train(png, png, weights="random")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot create .*file/run: .*file is not a writable directory"):
        dinounet.train(png, tmp_path / "file" / "run", weights="random")
    with pytest.raises(DataError, match=r"nothing does not exist; give the folder that holds the images"):
        dinounet.train(tmp_path / "nothing", tmp_path / "run", weights="random")


def test_weights_of_another_backbone_are_refused_by_their_keys(png: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"cls_token": torch.zeros(1, 1, 384), "surprise": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(
        WeightsError, match=r"missing, as blocks\.0\..*; 1 unexpected, as surprise.*choose its backbone"
    ):
        dinounet.train(png, tmp_path / "run", weights=str(tmp_path / "other.safetensors"))


def test_an_edited_plan_must_still_fit_the_dataset(plan_file: Path, tmp_path: Path) -> None:
    other = write_nifti_dataset(tmp_path / "volumes")
    description = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps({**description, "channel_names": {"0": "CT"}}))
    with pytest.raises(ConfigError, match=r"the plan is for channels \['MR'\].* but volumes has \['CT'\]"):
        train(other, tmp_path / "run", plan_file)


def test_the_scale_of_fp16_is_kept(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())

    def scaler(scale: float) -> torch.amp.GradScaler:
        made = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=7)
        made.scale(layer(torch.ones(1, 2)).sum()).backward()
        made.step(optimizer)
        made.update()
        return made

    save_checkpoint(tmp_path, layer, optimizer, {"step": 3}, None, scaler(8.0))
    other = scaler(2.0)
    assert load_checkpoint(tmp_path, layer, optimizer, None, other)["step"] == 3
    assert other.get_scale() == 8.0
    assert other.state_dict()["_growth_tracker"] == 1


@pytest.mark.slow
def test_a_file_of_a_killed_process_is_no_content_and_is_removed(png: Path, plan_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".123.run.json").write_text("{")  # killed before it was a run
    with pytest.raises(DataError, match=r"run is not a run.*there is nothing to go on from, so start it again without"):
        train(png, run, plan_file, resume=True)
    train(png, run, plan_file)
    assert not (run / ".123.run.json").exists()


@pytest.mark.slow
def test_a_killed_worker_is_reported_with_the_cases_that_it_held(png: Path, plan_file: Path, tmp_path: Path) -> None:
    edit(plan_file, steps=100000)
    words = ["-o", str(tmp_path / "run"), "--plan", str(plan_file), "--weights", "random", "--device", "cpu"]
    command = [sys.executable, "-m", "dinounet", "train", str(png), *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        log, began = tmp_path / "run" / "log.jsonl", time.monotonic()
        while not (log.exists() and log.read_text().count("\n") > 3):
            assert time.monotonic() - began < 60
            time.sleep(0.1)
        os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 2, told
    assert re.search(
        r"^dinounet: patches of case_\d.* could not be prepared for step \d+ \(.+\); if a worker was killed", told
    ), told


@pytest.mark.slow
def test_a_deterministic_run_says_so_and_leaves_no_trace(png: Path, plan_file: Path, tmp_path: Path) -> None:
    runs = [train(png, tmp_path / name, plan_file, deterministic=True) for name in ("one", "two")]
    assert (runs[0] / MODEL).read_bytes() == (runs[1] / MODEL).read_bytes()
    assert read_run(runs[0]).deterministic
    assert not torch.are_deterministic_algorithms_enabled()
    write_json(runs[0] / "run.json", replace(read_run(runs[0]), status="interrupted", deterministic=False))
    with pytest.raises(ConfigError, match=r"was started with another deterministic .*; resume it without that option"):
        train(png, runs[0], plan_file, resume=True, deterministic=True)


def test_an_apple_gpu_is_answered_before_anything_is_done(png: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training on an Apple GPU is not possible yet.*choose --device cpu"):
        dinounet.train(png, tmp_path / "run", weights="random", device="mps")
    with pytest.raises(ConfigError, match="--checkpoint-minutes is -1; it must be a number of at least 0"):
        dinounet.train(png, tmp_path / "run", weights="random", checkpoint_minutes=-1)
    assert not (tmp_path / "run").exists()
