"""What an older checkout takes beside this one: to start, to train, and to predict, by the program alone.

    git worktree add ../older 1f84803
    python benchmarks/against_older.py --old ../older                  # seven minutes on two quiet cores
    python benchmarks/against_older.py --old ../older --network unet

The older checkout plans and trains a run once, on noise with random weights, which change no cost; both train by its
plan and predict by its run. Every measurement is a process of its own, and the checkouts take turns, the first of them
another one in each; a ratio is the median over turns of the ratio within a turn. Steps are timed by the run's own log,
and images by prediction.json, so that no start is in them; the first two steps of a run are not counted.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).resolve().parent.parent
SIDE, CASES = 256, 10
GETTING_READY = 2
"""Steps in which processes start and memory is first asked for."""


def write_pictures(root: Path) -> None:
    random = np.random.default_rng(0)
    for index in range(CASES):
        mask = np.kron(random.integers(0, 2, (8, 8), np.uint8), np.ones((SIDE // 8, SIDE // 8), np.uint8))
        for folder, pixels in (("images", random.integers(0, 128, mask.shape, np.uint8) + 100 * mask), ("masks", mask)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"case_{index}.png")


def run(checkout: Path, *words: str) -> float:
    """Seconds that Python takes with these words and the checkout's sources."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": str(checkout / "src")},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{checkout}: {shlex.join(words)}\n{done.stderr}")
    return time.perf_counter() - began


def train(checkout: Path, asked: argparse.Namespace, output: str) -> float:
    """Seconds of a step."""
    weights = ("--weights", "random") if asked.network == "dinounet" else ()
    options = ("--device", "cpu", "--precision", asked.precision, "--fold", "0", "--no-report", *weights)
    run(checkout, "-m", "dinounet", "train", "data", "-o", output, "--plan", "plan.json", *options)
    lines = [json.loads(line) for line in Path(output, "log.jsonl").read_text().splitlines()]
    ends = [line["seconds"] for line in lines if "loss" in line]
    return (ends[-1] - ends[GETTING_READY]) / (len(ends) - 1 - GETTING_READY)  # the log has hundredths


def predict(checkout: Path, asked: argparse.Namespace, output: str) -> float:
    """Seconds of an image."""
    options = ("--device", "cpu", "--precision", asked.precision)
    run(checkout, "-m", "dinounet", "predict", "run", "data/images", "-o", output, *options)
    record = json.loads(Path(output, "prediction.json").read_text())
    return record["seconds"] / record["images"]


def take_turns(asked: argparse.Namespace, old: Path) -> None:
    steps = str(asked.steps + 1 + GETTING_READY)
    options = ("--network", asked.network, "--patch", str(SIDE), str(SIDE), "--steps", steps, "--device", "cpu")
    run(old, "-m", "dinounet", "plan", "data", "-o", "plan.json", *options)
    train(old, asked, "run")
    tasks = {
        "`dinounet --help`": lambda checkout: run(checkout, "-m", "dinounet", "--help"),
        "`import dinounet`, `load(RUN)`": lambda checkout: run(
            checkout, "-c", "import dinounet; dinounet.load('run', device='cpu')"
        ),
        "a training step": lambda checkout: train(checkout, asked, "again"),
        "an image predicted": lambda checkout: predict(checkout, asked, "masks"),
    }
    seconds: dict[tuple[str, Path], list[float]] = {(name, side): [] for name in tasks for side in (old, HERE)}
    for turn in range(asked.repeat):
        for name, task in tasks.items():
            for checkout in (old, HERE) if turn % 2 else (HERE, old):
                seconds[name, checkout].append(task(checkout))
                for left in ("again", "masks"):
                    shutil.rmtree(left, ignore_errors=True)
    print("| | older, s | here, s | here / older |\n|---|---|---|---|")
    for name in tasks:
        before, now = seconds[name, old], seconds[name, HERE]
        ratios = [one / other for one, other in zip(now, before, strict=True)]
        print(f"| {name} | {spread(before)} | {spread(now)} | {spread(ratios)} |")


def spread(numbers: Sequence[float]) -> str:
    return f"{median(numbers):.3g} ({min(numbers):.3g} to {max(numbers):.3g})"


def commit(checkout: Path) -> str:
    words = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True, help="a checkout of the older version")
    parser.add_argument("--network", default="dinounet", choices=("dinounet", "unet"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--steps", type=int, default=10, help="of each training that are counted")
    parser.add_argument("--repeat", type=int, default=5, help="turns")
    asked = parser.parse_args()
    old = asked.old.resolve()
    print(f"python {shlex.join(sys.argv)}")
    print(
        f"{commit(old)} and {commit(HERE)}; Python {platform.python_version()}, PyTorch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, {platform.machine()}; {asked.network}, {asked.precision}, {SIDE} x {SIDE}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        write_pictures(Path("data"))
        take_turns(asked, old)
