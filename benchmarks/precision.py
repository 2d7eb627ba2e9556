"""What bf16 costs in prediction: one run, the same images, both precisions.

    python benchmarks/precision.py demo/run demo/Dataset152_ICBM/imagesTs demo/Dataset152_ICBM/labelsTs

Prints the mean foreground Dice and HD95 of each, and the share of pixels on which they agree: of all, and of those that
either calls foreground. No times: those are another script's.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import dinounet
from dinounet.data.masks import read_mask


def main(run: Path, images: Path, truth: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        masks = {}
        for precision in ("fp32", "bf16"):
            folder = Path(temporary) / precision
            paths = dinounet.predict(run, [images], folder, precision=precision)
            mean = dinounet.evaluate(folder, truth).mean_over_cases_and_classes
            print(f"{precision}: Dice {mean.dice:.4f}, HD95 {mean.hd95:.3f}")
            masks[precision] = np.concatenate([read_mask(path).array.ravel() for path in sorted(paths)])
    equal = masks["fp32"] == masks["bf16"]
    foreground = (masks["fp32"] > 0) | (masks["bf16"] > 0)
    print(f"equal pixels: {equal.mean():.4%} of all, {equal[foreground].mean():.4%} of the foreground")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
