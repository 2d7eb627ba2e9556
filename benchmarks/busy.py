"""What a busy process beside costs: with threads that spin while they wait (by default), and with threads that sleep.

    python benchmarks/busy.py              # four minutes on a machine that does nothing else

Prediction and a training step by PyTorch, and prediction by onnxruntime; each with the ways of waiting (spinning as by
default, sleeping soon as the program has it, sleeping at once), alone and with one other process that never rests. Each
way has a process of its own; they take turns, and a ratio is the median over turns of the ratio within a turn. Weights
are random: they change no cost.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from dinounet.backbones.frozen import build_network
from dinounet.backbones.registry import network_config
from dinounet.system import CHOSEN_BY_USER, WAITING

TASKS = ("prediction", "training step", "onnxruntime")
SIDE = 256
SPINS, SLEEPS, AT_ONCE = "spin", "sleep soon", "sleep at once"
ENVIRONMENTS: dict[str, dict[str, str]] = {SPINS: {}, SLEEPS: WAITING, AT_ONCE: WAITING | {"GOMP_SPINCOUNT": "0"}}
NEVER_RESTS = "while True: pass"


def make_task(task: str, way: str, file: Path) -> Callable[[], Any]:
    """One prediction of an image by Dino U-Net S, or one training step of two, in float32."""
    image = np.random.default_rng(0).normal(size=(2 if task == "training step" else 1, 1, SIDE, SIDE))
    if task == "onnxruntime":
        from dinounet.inference.onnx_backend import open_session

        if way == SPINS:
            os.environ["OMP_WAIT_POLICY"] = "active"  # as onnxruntime does by default
        session = open_session(file, "cpu")
        return lambda: session.run(None, {"image": image.astype(np.float32)})
    import torch

    network = make_network().train(task == "training step")
    images = torch.from_numpy(image).float()
    if task == "prediction":
        return torch.inference_mode()(lambda: network(images))
    optimizer = torch.optim.AdamW([parameter for parameter in network.parameters() if parameter.requires_grad])
    truth = torch.randint(0, 2, (len(images), SIDE, SIDE))

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), truth).backward()
        optimizer.step()

    return step


def make_network() -> Any:
    import torch

    from dinounet.system import keep_freed_memory

    keep_freed_memory()
    torch.manual_seed(0)
    return build_network(network_config("dinov3_vits16"))


def export(file: Path) -> None:
    """Write the network as `dinounet export` does."""
    from dinounet.bundle.onnx import write_network

    write_network(make_network().eval(), file)


def work(task: str, way: str, file: Path) -> None:
    """Do the task once for every line that comes in, and answer with its seconds."""
    run = make_task(task, way, file)
    run(), run()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(json.dumps(time.perf_counter() - start), flush=True)


def start_worker(task: str, way: str, file: Path) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in CHOSEN_BY_USER}
    worker = subprocess.Popen(
        [sys.executable, __file__, "--worker", task, way, str(file)],
        env=environment | ENVIRONMENTS[way],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    answer(worker)
    return worker


def answer(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout
    line = worker.stdout.readline()
    if not line:
        raise SystemExit("a worker has died; what it said stands above")
    return line


def ask(worker: subprocess.Popen[str]) -> float:
    assert worker.stdin
    worker.stdin.write("\n")
    worker.stdin.flush()
    seconds: float = json.loads(answer(worker))
    return seconds


@contextmanager
def busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", NEVER_RESTS])
    try:
        time.sleep(0.3)
        yield
    finally:
        process.kill()
        process.wait()


def measure(task: str, turns: int, file: Path) -> dict[tuple[str, str], list[float]]:
    """Seconds of each turn, by the way of waiting and by who is beside."""
    ways = [way for way in ENVIRONMENTS if task != "onnxruntime" or way != AT_ONCE]  # which spins or sleeps
    workers = {way: start_worker(task, way, file) for way in ways}
    seconds: dict[tuple[str, str], list[float]] = {}
    for turn in range(turns):
        order = list(workers.items())[:: 1 if turn % 2 else -1]
        for way, worker in order:
            seconds.setdefault((way, "alone"), []).append(ask(worker))
        with busy_process():
            for way, worker in order:
                seconds.setdefault((way, "beside"), []).append(ask(worker))
    for worker in workers.values():
        worker.communicate()
    return seconds


def ratio(above: list[float], below: list[float]) -> float:
    return median(a / b for a, b in zip(above, below, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--worker", nargs=3, metavar=("TASK", "WAY", "FILE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        work(asked.worker[0], asked.worker[1], Path(asked.worker[2]))
        return
    import onnxruntime
    import torch

    print(
        f"{shlex.join(['python', *sys.argv])}\n{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads; python {platform.python_version()}, torch {torch.__version__}, "
        f"onnxruntime {onnxruntime.__version__}; Dino U-Net S, {SIDE} x {SIDE}, float32; {asked.turns} turns\n"
    )
    print("| | threads | alone, s | one busy process beside, s | beside / alone | alone, to threads that spin |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        if "onnxruntime" in asked.tasks:
            export(file)
        for task in asked.tasks:
            seconds = measure(task, asked.turns, file)
            for way in [way for way in ENVIRONMENTS if (way, "alone") in seconds]:
                alone, beside = seconds[way, "alone"], seconds[way, "beside"]
                print(
                    f"| {task} | {way} | {spread(alone)} | {spread(beside)} | {ratio(beside, alone):.2f} "
                    f"| {ratio(alone, seconds[SPINS, 'alone']):.2f} |",
                    flush=True,
                )


def spread(seconds: list[float]) -> str:
    return f"{median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


if __name__ == "__main__":
    main()
