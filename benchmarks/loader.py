"""What of a training step the data costs, as the loop's own log tells: it should be less than a tenth on two cores.

    python benchmarks/loader.py [STEPS]

Trains S with random weights by the default recipe (two patches of 256 x 256 a step, nnU-Net's augmentation) on pictures
made here, on the processor alone, and prints the shares of data, forward and backward. The first steps, in which
processes start and memory is first asked for, are not counted.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

import dinounet
from dinounet.schema.run import read_log

WARM_UP = 5
LIMIT = 0.1


def main(steps: int = 30) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        data, run = write_pictures(Path(temporary) / "pictures"), Path(temporary) / "run"
        dinounet.train(
            data, run, changes={"steps": steps}, weights="random", patch=(256, 256), device="cpu", precision="fp32"
        )
        log = [entry for entry in read_log(run) if "forward" in entry][min(WARM_UP, steps - 1) :]
    parts = {part: [entry[part] for entry in log] for part in ("data", "forward", "backward")}
    whole = sum(map(sum, parts.values()))
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {torch.get_num_threads()} threads")
    for part, seconds in parts.items():
        print(
            f"{part:>8}: {sum(seconds) / whole:6.1%}, median {1000 * median(seconds):7.1f} ms "
            f"(from {1000 * min(seconds):.1f} to {1000 * max(seconds):.1f})"
        )
    share = sum(parts["data"]) / whole
    verdict = "less" if share < LIMIT else "NOT less"
    print(f"data takes {share:.1%} of {len(log)} steps, which is {verdict} than {LIMIT:.0%}")


def write_pictures(root: Path) -> Path:
    """Twenty noisy pictures, somewhat larger than a patch, each with a bright square."""
    random = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for index in range(20):
        mask = np.zeros((320, 360), np.uint8)
        row, column = random.integers(0, 200, 2)
        mask[row : row + 100, column : column + 100] = 255
        image = random.normal(100 + mask / 5.0, 20).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"{index:02d}.png")
        Image.fromarray(mask).save(root / "masks" / f"{index:02d}.png")
    return root


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
