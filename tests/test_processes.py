"""Several processes, on one and on two (simulated) machines: the run of a single one, and one message at the end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import dinounet
from datasets import write_png_dataset
from dinounet.data.dataset import read_dataset
from dinounet.distributed import require_shares, unused_parameters
from dinounet.errors import ConfigError, Interrupted, UserError
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data
from dinounet.schema.plan import Plan
from dinounet.schema.recipe import Recipe
from dinounet.schema.run import MODEL, read_log, read_run
from dinounet.system import DistInfo, dist_info
from dinounet.training.step import TrainStep
from networks import tiny_config
from test_training import ctrl_c_at

STEPS = 8


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def torchrun(*words: str, processes: int = 2, nodes: int = 1) -> list[subprocess.Popen[str]]:
    """Start the launcher, once a (simulated) node."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(nodes)]
    launcher += ["--nproc-per-node", str(processes), "--rdzv-backend", "c10d", "--rdzv-id", "test"]
    launcher += ["--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--local-addr", "127.0.0.1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return [
        subprocess.Popen(
            [*launcher, "-m", "dinounet", *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True,
        )
        for _ in range(nodes)
    ]  # fmt: skip


def told_by(launched: list[subprocess.Popen[str]], seconds: float = 120) -> str:
    """Everything that the processes said, when all have ended."""
    try:
        return "".join(process.communicate(timeout=seconds)[0] for process in launched)
    finally:
        for process in launched:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A dataset, and a plan of a tiny network whose numbers don't depend on who computes them."""
    root = tmp_path_factory.mktemp("processes")
    data = write_png_dataset(root / "pictures")
    write_plan(root)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    dinounet.train(data, root / "single", **OPTIONS, plan=root / "plan.json")
    yield root
    torch.set_num_threads(before)


OPTIONS: dict[str, Any] = {"weights": "random", "device": "cpu", "precision": "fp32"}
WORDS = ["--weights", "random", "--device", "cpu", "--precision", "fp32"]


def write_plan(root: Path, name: str = "plan.json", drop_path: float = 0.0, **changes: Any) -> Path:
    # of a bias before instance norm, whose gradient is noise, AdamW would make steps of full length
    # gradients of a batch and of its parts differ by 1e-5 of themselves, in any way of computing them; where that moves
    # a number across a ReLU's zero it grows, with this seed least of four
    fixed = {"seed": 2, "steps": STEPS, "batch_size": 4, "eval_interval": 4, "warmup": 2, "deep_supervision": False}
    sgd = {"optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.9}
    recipe = Recipe(**{**fixed, **sgd, **changes})
    network = tiny_config(num_classes=3, drop_path=drop_path)
    write_json(root / name, Plan(plan_data(read_dataset(root / "pictures"), (64, 64)), network, recipe))
    return root / name


def numbers(run: Path, key: str) -> list[float]:
    return [entry[key] for entry in read_log(run) if key in entry]


def assert_same_run(run: Path, single: Path) -> None:
    """Up to what another order of sums does in float32: nothing in two steps, and by the eighth 3e-4 of a variance."""
    assert [entry["step"] for entry in read_log(run)] == [entry["step"] for entry in read_log(single)]
    for key in ("loss", "validation_loss"):
        assert numbers(run, key) == pytest.approx(numbers(single, key), rel=1e-4, abs=2e-5)
    ours, theirs = load_file(run / MODEL), load_file(single / MODEL)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "nodes"), [(2, 1), (1, 2)])
def test_several_processes_are_as_one(processes: int, nodes: int, place: Path, tmp_path: Path) -> None:
    words = ["train", str(place / "pictures"), "-o", str(tmp_path / "run"), "--plan", str(place / "plan.json"), *WORDS]
    launched = torchrun(*words, processes=processes, nodes=nodes)
    told = told_by(launched)
    assert [process.returncode for process in launched] == [0] * nodes, told
    assert_same_run(tmp_path / "run", place / "single")
    assert read_run(tmp_path / "run").processes == 2
    assert sum('"event": "trained"' in line for line in told.splitlines()) == 1


@pytest.mark.slow
def test_one_process_goes_on_as_two(place: Path, tmp_path: Path) -> None:
    """And two have deep supervision and an average of the weights as one has."""
    plan = write_plan(place, "deep.json", ema_decay=0.9, steps=4)
    content = json.loads(plan.read_text())
    content["network"]["deep_supervision"] = content["recipe"]["deep_supervision"] = True
    plan.write_text(json.dumps(content))
    data = place / "pictures"
    single = dinounet.train(data, tmp_path / "single", **OPTIONS, plan=plan)
    with ctrl_c_at(2), pytest.raises(Interrupted):
        dinounet.train(data, tmp_path / "run", **OPTIONS, plan=plan)
    launched = torchrun("train", str(data), "-o", str(tmp_path / "run"), "--resume")
    told = told_by(launched)
    assert launched[0].returncode == 0, told
    assert_same_run(tmp_path / "run", single)


def members(launcher: int) -> dict[int, int]:
    """The processes that a launcher has started, by their ranks."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0") if parent == launcher else []
        except OSError:
            continue
        found |= {int(line[5:]): int(folder.name) for line in environment if line.startswith(b"RANK=")}
    return found


def children(parent: int) -> list[int]:
    stats = {int(f.name): f / "stat" for f in Path("/proc").glob("[0-9]*")}
    return [pid for pid, stat in stats.items() if stat.exists() and f") S {parent} " in stat.read_text()]


def interrupt(launcher: subprocess.Popen[str]) -> None:
    os.killpg(launcher.pid, signal.SIGINT)  # as a terminal does; torchrun hands it on


def kill_second(launcher: subprocess.Popen[str]) -> None:
    os.kill(members(launcher.pid)[1], signal.SIGKILL)


def kill_worker_of_second(launcher: subprocess.Popen[str]) -> None:
    os.kill(children(members(launcher.pid)[1])[0], signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (interrupt, r"stopped after step \d+ of 100000; go on, by the same launcher, with: dinounet train .* --resume"),
        # the launcher tells the first process to stop, too, which may be what it hears of first
        (kill_second, "one of the 2 processes exited unexpectedly|stopped; the last checkpoint is of step 0"),
        (kill_worker_of_second, r"patches of case_.* could not be prepared for step .*; if a worker was killed"),
    ],
)
def test_the_end_of_one_is_the_end_of_all_with_one_message(
    harm: Callable[[subprocess.Popen[str]], None], message: str, place: Path, tmp_path: Path
) -> None:
    plan = write_plan(place, f"{harm.__name__}.json", drop_path=0.3, steps=100000)
    words = ["train", str(place / "pictures"), "-o", str(tmp_path / "run"), "--plan", str(plan), *WORDS]
    launched = torchrun(*words, "--micro-batch-size", "1")
    log, began = tmp_path / "run" / "log.jsonl", time.monotonic()
    while not (log.exists() and log.read_text().count("\n") > 3):
        assert time.monotonic() - began < 60
        time.sleep(0.1)
    harm(launched[0])
    harmed = time.monotonic()
    told = told_by(launched)
    assert time.monotonic() - harmed < 40
    assert launched[0].returncode != 0
    messages = re.findall("^dinounet: .*", told, re.MULTILINE)
    assert len(messages) == 1, told
    assert re.search(message, messages[0]), told


def test_a_batch_that_processes_cannot_share_is_answered() -> None:
    with pytest.raises(
        ConfigError,
        match=r"a step has 3 patches, which 2 processes can't share equally; .* or a new run with --batch-size 4",
    ):
        require_shares(3, 2)
    require_shares(4, 2)


def test_ranks_are_those_of_torchrun_and_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dist_info() == DistInfo()
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}  # sbatch alone starts one process
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    assert dist_info() == DistInfo()
    for name, value in {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "3"}.items():
        monkeypatch.setenv(name, value)
    assert dist_info() == DistInfo(3, 4, 2, "srun")
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "3")
    with pytest.raises(ConfigError, match="4 processes can't be shared equally by the nodes"):
        dist_info()
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "2"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    assert dist_info() == DistInfo(5, 8, 4, "torchrun")


def test_only_what_is_trained_and_used_is_synchronised() -> None:
    from dinounet.backbones.frozen import build_network

    for deep in (False, True):
        network = build_network(tiny_config(num_classes=3, deep_supervision=deep)).train()
        logits = network(torch.randn(2, 1, 64, 64))
        sum(scale.sum() for scale in ([logits] if isinstance(logits, torch.Tensor) else logits)).backward()
        for parameter in unused_parameters(network):
            parameter.requires_grad_(False)
        assert all((parameter.grad is not None) == parameter.requires_grad for parameter in network.parameters())


def test_want_of_memory_in_one_of_several_processes_is_answered() -> None:
    train_step = TrainStep(
        SimpleNamespace(world_size=2), None, None, None, max_grad_norm=1.0, micro_batch_size=4, seed=0
    )
    with pytest.raises(
        UserError, match="out of memory with 4 patches at a time; go on with --resume and --micro-batch-size 2"
    ):
        train_step._halve()
