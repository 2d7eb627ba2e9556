"""What the network costs: against another checkout of it, against the device's peak, and by area, batch and backbone.

    git worktree add ../first fd9cc18      # the network as it first landed
    python benchmarks/network.py --baseline ../first
    python benchmarks/network.py --scaling --plot docs/scaling.png

Each checkout, task and precision has a process of its own. These take turns, so that whatever else the machine does
meets all of them; a ratio is the median over turns of the ratio within a turn. Processor time (of all threads) is told
besides the clock's, since on a machine that is shared it varies far less. Weights are random: they change no cost.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dinounet.backbones.frozen import build_network
from dinounet.backbones.registry import network_config

GMAC = {"dinov3_vits16": 80.8, "dinov3_vitb16": 186.7, "dinov3_vitl16": 471.5}
"""Multiplications with additions for one image of 512 x 512, 10^9; a training step takes three times as many, but for
the frozen backbone's."""

SIDE = 512
HERE = Path(__file__).resolve().parent.parent
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_network(backbone: str) -> Any:
    with suppress(ImportError):  # the first checkouts have none
        from dinounet.system import keep_freed_memory

        keep_freed_memory()

    torch.manual_seed(0)
    return build_network(network_config(backbone)).to(DEVICE)


def make_task(task: str, precision: str, batch: int, backbone: str) -> Callable[[], None]:
    """A prediction of `batch` images, or a training step of as many: forward, backward, optimizer."""
    network = make_network(backbone).train(task == "train")
    image = torch.randn(batch, 1, SIDE, SIDE, device=DEVICE)
    truth = torch.randint(0, 2, (batch, SIDE, SIDE), device=DEVICE)
    optimizer = torch.optim.AdamW([parameter for parameter in network.parameters() if parameter.requires_grad])
    lower = torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16")

    def predict() -> None:
        with torch.inference_mode(), lower:
            network(image)

    def train() -> None:
        optimizer.zero_grad()
        with lower:
            logits = network(image)
        torch.nn.functional.cross_entropy(logits.float(), truth).backward()
        optimizer.step()

    return {"predict": predict, "train": train}[task]


def measure(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    clock, processor = time.perf_counter(), time.process_time()
    run()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - clock, time.process_time() - processor


def peak_memory() -> float:
    """GB that this process held at most."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024) / 1e9


def work(task: str, precision: str, batch: int, backbone: str) -> None:
    """Run the task once for every line that comes in, and answer with its cost."""
    run = make_task(task, precision, batch, backbone)
    for _ in sys.stdin:
        print(json.dumps([*measure(run), peak_memory()]), flush=True)


def start_worker(checkout: Path, asked: argparse.Namespace, task: str, precision: str) -> subprocess.Popen[str]:
    words = ["--worker", task, precision, "--batch", str(asked.batch if task == "train" else 1)]
    return subprocess.Popen(
        [sys.executable, __file__, *words, "--backbone", asked.backbone],
        env={**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def ask(worker: subprocess.Popen[str]) -> list[float]:
    assert worker.stdin and worker.stdout
    worker.stdin.write("\n")
    worker.stdin.flush()
    answer = worker.stdout.readline()
    if not answer:
        raise SystemExit("a worker has died; it may have run out of memory")
    cost: list[float] = json.loads(answer)
    return cost


def compare(asked: argparse.Namespace) -> None:
    """Print the costs of this checkout and of the baseline in both precisions, and the ratios to its float32."""
    checkouts = {"here": HERE, **({"baseline": asked.baseline.resolve()} if asked.baseline else {})}
    first = "baseline" if asked.baseline else "here"
    for task in ("predict", "train"):
        sides = sorted(((name, p) for name in checkouts for p in ("fp32", "bf16")), key=lambda side: side[0] != first)
        workers = {side: start_worker(checkouts[side[0]], asked, task, side[1]) for side in sides}
        costs: dict[tuple[str, str], list[list[float]]] = {side: [] for side in sides}
        for turn in range(asked.repeat + 1):
            for side, worker in workers.items():
                cost = ask(worker)
                if turn:  # the first is to get ready
                    costs[side].append(cost)
        for worker in workers.values():
            worker.communicate()
        reference = costs[first, "fp32"]
        for side, turns in costs.items():
            clock, processor, memory = zip(*turns, strict=True)
            faster = [median(r[kind] / cost[kind] for r, cost in zip(reference, turns, strict=True)) for kind in (0, 1)]
            print(
                f"{task:<8} {side[0]:<9} {side[1]}  clock "
                f"{spread(clock)}, x{faster[0]:.2f}   processor {spread(processor)}, x{faster[1]:.2f}   "
                f"memory {max(memory):.2f} GB, {max(memory) / max(m for _, _, m in reference):.2f}"
            )


def spread(seconds: Sequence[float]) -> str:
    return f"{median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def scale(asked: argparse.Namespace) -> None:
    """Print, and draw, what prediction costs by area, through tiles half a tile apart, by batch and by backbone."""
    lower = torch.autocast(DEVICE, torch.bfloat16, enabled=asked.precision == "bf16")
    peak = peak_of(asked.precision)
    print(f"a product of two matrices of 4096 x 4096 runs at {peak / 1e9:.0f} GFLOP/s")
    with torch.inference_mode(), lower:
        network = make_network(asked.backbone).eval()
        areas = scale_area(network)
        scale_batch(network, GMAC[asked.backbone], peak)
        scale_backbone(peak)
    if asked.plot:
        draw(areas, asked.plot, f"{asked.backbone}, {asked.precision}, {torch.get_num_threads()} threads")


def scale_area(network: Any) -> list[tuple[int, float]]:
    network(torch.zeros(1, 1, SIDE, SIDE, device=DEVICE))
    print("| image | tiles | s | processor s | processor s a tile | processor s a megapixel | memory, GB |")
    print("|---|---|---|---|---|---|---|")
    found = []
    for side in (256, 512, 1024, 2048, 4096):
        image = torch.randn(1, 1, side, side)
        starts = range(0, max(side - SIDE, 0) + 1, SIDE // 2)
        clock, processor = measure(lambda image=image, starts=starts: tile(network, image, starts))
        count = len(starts) ** 2
        print(
            f"| {side} x {side} | {count} | {clock:.2f} | {processor:.2f} | {processor / count:.2f} "
            f"| {processor / side**2 * 1e6:.2f} | {peak_memory():.2f} |",
            flush=True,
        )
        found.append((side, clock))
    return found


def scale_batch(network: Any, gmac: float, peak: float) -> None:
    print("\n| batch | s an image | processor s an image | of the device's peak | memory, GB |\n|---|---|---|---|---|")
    for batch in (1, 2, 4, 8):
        clock, processor = cost_of(network, batch)
        print(f"| {batch} | {clock:.2f} | {processor:.2f} | {2e9 * gmac / clock / peak:.0%} | {peak_memory():.2f} |")


def scale_backbone(peak: float) -> None:
    print("\n| backbone | GMAC | s an image | s a GMAC | of the device's peak |\n|---|---|---|---|---|")
    for backbone, gmac in GMAC.items():
        clock, _ = cost_of(make_network(backbone).eval(), 1)
        print(
            f"| {backbone} | {gmac} | {clock:.2f} | {clock / gmac:.4f} | {2e9 * gmac / clock / peak:.0%} |", flush=True
        )


def cost_of(network: Any, batch: int) -> tuple[float, float]:
    """Seconds an image by the clock and of the processor: median of three, after one to get ready."""
    image = torch.randn(batch, 1, SIDE, SIDE, device=DEVICE)
    costs = [measure(lambda: network(image)) for _ in range(4)][1:]
    clock, processor = (median(kind) / batch for kind in zip(*costs, strict=True))
    return clock, processor


def draw(areas: Sequence[tuple[int, float]], path: Path, title: str) -> None:
    """Time over area, on logarithmic axes, beside a line of equal time a pixel."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    megapixels = [side**2 / 1e6 for side, _ in areas]
    axes.loglog(megapixels, [seconds for _, seconds in areas], "o-", color="#0072B2", label="measured")
    pixels, seconds = megapixels[-1], areas[-1][1]
    axes.loglog(
        megapixels, [seconds * own / pixels for own in megapixels], "--", color="#555", label="as many seconds a pixel"
    )
    axes.set(xlabel="image, megapixels", ylabel="prediction, seconds", title=title)
    axes.legend()
    figure.savefig(path, dpi=150)


def tile(network: Any, image: torch.Tensor, starts: range) -> torch.Tensor:
    """Logits of an image tile by tile, added up where tiles overlap."""
    total = torch.zeros(1, 2, *image.shape[-2:])
    for y in starts:
        for x in starts:
            part = (..., slice(y, y + SIDE), slice(x, x + SIDE))
            total[part] += network(image[part].to(DEVICE)).float().cpu()
    return total


def peak_of(precision: str) -> float:
    """Operations a second of this device in a product of large matrices."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    matrix = torch.randn(4096, 4096, device=DEVICE, dtype=kind)
    return 2 * 4096**3 / min(measure(lambda: matrix @ matrix)[0] for _ in range(5))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--baseline", type=Path, help="another checkout to compare with")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--plot", type=Path, help="picture of --scaling to write")
    parser.add_argument("--backbone", default="dinov3_vits16", choices=GMAC)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="of --scaling")
    parser.add_argument("--batch", type=int, default=2, help="images of a training step")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        work(*asked.worker, asked.batch, asked.backbone)
    else:
        print(f"torch {torch.__version__}, {DEVICE}, {torch.get_num_threads()} threads, {asked.backbone}, {SIDE}²")
        scale(asked) if asked.scaling else compare(asked)
