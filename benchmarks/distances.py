"""What measuring a class takes: ours, and MONAI's HD95, and MONAI's HD95, ASSD and NSD, on a whole brain.

    python benchmarks/distances.py

The truth is the grey matter of the ICBM 152 average brain at 1 mm (extra `demo`), the prediction the same with noise at
its border. Prints the median of five rounds with its spread, in turns, and the ratios.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable

import monai
import numpy as np
import scipy
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from nilearn.datasets import load_mni152_gm_mask
from scipy import ndimage

from dinounet.evaluation.metrics import measure

ROUNDS = 5
SPACING = (1.0, 1.0, 1.0)


def main() -> None:
    torch.set_num_threads(1)
    truth = load_mni152_gm_mask(resolution=1).get_fdata() > 0
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=truth.shape).astype(np.float32), 1.5)
    prediction = ndimage.gaussian_filter(truth.astype(np.float32), 1) + noise > 0.5
    pair = [torch.tensor(mask[None, None]) for mask in (prediction, truth)]
    how = {"include_background": True, "spacing": SPACING}

    def hd95() -> float:
        return compute_hausdorff_distance(*pair, percentile=95, **how).item()

    def all_three() -> tuple[float, ...]:
        assd = compute_average_surface_distance(*pair, symmetric=True, **how).item()
        return hd95(), assd, compute_surface_dice(*pair, class_thresholds=[1.0], **how).item()

    def ours() -> tuple[float, ...]:
        found = measure(truth, prediction, SPACING)
        return found.hd95, found.assd, found.nsd

    sides: dict[str, Callable[[], object]] = {"ours": ours, "MONAI, HD95": hd95, "MONAI, HD95 + ASSD + NSD": all_three}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - started)
    assert np.allclose(ours(), all_three(), rtol=1e-5)
    versions = f"MONAI {monai.__version__}, SciPy {scipy.__version__}, Python {platform.python_version()}"
    print(f"{versions}, {truth.shape} voxels")
    for name, taken in seconds.items():
        ratio = statistics.median(other / own for own, other in zip(seconds["ours"], taken, strict=True))
        print(
            f"{name}: {statistics.median(taken):.2f} s ({min(taken):.2f} to {max(taken):.2f}), {ratio:.1f} times ours"
        )


if __name__ == "__main__":
    main()
