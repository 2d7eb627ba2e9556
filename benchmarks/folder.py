"""Prediction of a folder beside the network's own time: what reading, cutting, adding up and writing cost.

    python benchmarks/folder.py                          # PNGs of 512 x 512, RGB, 5 classes, Dino U-Net S
    python benchmarks/folder.py --side 256 1024 --count 40 --tta none flip

Both in one process and in turns: the folder as `dinounet predict` does it once its network is loaded, and the same
batches of tiles sent through the network alone. Busy is the processor's time over the clock's and all threads.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

import dinounet
from dinounet.inference.folder import predict_folder, record_prediction
from dinounet.inference.inputs import find_inputs
from dinounet.inference.outputs import Outputs, choose_endings
from dinounet.system import keep_freed_memory
from prediction_memory import make_run, write_picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, nargs="+", default=[512])
    parser.add_argument("--count", type=int, default=20, help="images")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--tta", nargs="+", default=["none"])
    parser.add_argument("--repeat", type=int, default=3)
    asked = parser.parse_args()
    keep_freed_memory()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("| images | copies | precision | images a second | busy | of the network's own speed |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        run = make_run(home, "picture", 5, narrow=False)
        for side in asked.side:
            images = home / f"images_{side}"
            images.mkdir()
            write_picture(images / "0.png", side)
            for number in range(1, asked.count):
                shutil.copy(images / "0.png", images / f"{number}.png")
            for tta in asked.tta:
                for precision in asked.precision:
                    cells = compare(run, images, home / "masks", tta, precision, asked.repeat)
                    print(f"| {asked.count} of {side} x {side} | {tta} | {precision} | {cells} |", flush=True)


def compare(run: Path, images: Path, masks: Path, tta: Any, precision: Any, repeat: int) -> str:
    """Predict the folder and ask the network alone in turns; a line's last cells."""
    predictor = dinounet.load(run, tta=tta, precision=precision)
    cases = find_inputs([images], predictor.plan.data)
    outputs = Outputs(masks, choose_endings(cases, None, predictor.plan.data.labels.largest))
    engine, batches = predictor.engine, []

    def remember(network: Any, tiles: torch.Tensor) -> torch.Tensor:
        batches.append((network, tiles.clone()))
        return type(engine).forward(engine, network, tiles)

    def predict() -> None:
        shutil.rmtree(masks, ignore_errors=True)
        predict_folder(predictor, cases, outputs, record_prediction(predictor))

    def ask() -> None:
        for network, tiles in batches:
            engine.forward(network, tiles)

    engine.forward = remember  # type: ignore[method-assign]
    predict()
    del engine.forward
    whole, alone = zip(*[(measure(predict), measure(ask)) for _ in range(repeat)], strict=True)
    speed = len(cases) / median(clock for clock, _ in whole)
    busy = median(processor / clock / torch.get_num_threads() for clock, processor in whole)
    shares = [ours / theirs for (theirs, _), (ours, _) in zip(whole, alone, strict=True)]
    return f"{speed:.2f} | {busy:.0%} | {median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})"


def measure(run: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - clock, time.process_time() - processor


if __name__ == "__main__":
    main()
