"""What a backbone costs: memory of a prediction and of a training step, and the formula that `dinounet info` uses.

    python benchmarks/backbones.py

Weights, gradients and the optimizer's state are counted; what comes on top is measured, one process a measurement, on
the CPU in float32, one image of one channel, and fitted: pixels * (a + b * D + c * taps), D the width and taps the
thousands of numbers that the four hold of 512 x 512 pixels. Wide networks are measured with few blocks (frozen blocks
leave nothing behind) and on a smaller image. Prints the measurements, the coefficients for `backbones/registry.py`, and
how far the formula is off.
"""

import json
import subprocess
import sys

import numpy as np

import dinounet
from dinounet.backbones.frozen import build_network
from dinounet.backbones.registry import SIDE, VARIANTS, network_config, tap_numbers

WHOLE = [
    "dinov3_vits16", "dinov3_vits16plus", "dinov3_vitb16", "dinov3_convnext_tiny", "dinov3_convnext_small",
    "dinov3_convnext_base", "dinov2_vits14", "dinov2_vits14_reg", "dinov2_vitb14", "dinov2_vitb14_reg",
]  # fmt: skip
"""Measured as they are, at 512 x 512."""

RUNS = [
    *((name, 1.0, SIDE, None) for name in WHOLE),
    ("dinov3_vits16", 1.5, SIDE, None),
    ("dinov3_vits16", 2.0, SIDE, None),
    ("dinov3_vits16", 4.0, SIDE // 2, None),
    ("dinov3_vitb16", 2.0, SIDE // 2, None),
    ("dinov3_convnext_tiny", 2.0, SIDE // 2, None),
    ("dinov3_vitl16", 1.0, SIDE // 2, 4),
    ("dinov3_vith16plus", 1.0, SIDE // 2, 4),
    ("dinov2_vitg14", 1.0, SIDE // 2, 4),
]
"""Backbone, scale, side of the image, and blocks if not all."""


def measure(name: str, scale: float, side: int, depth: int | None) -> dict[str, float]:
    """Bytes on top of the weights that a forward takes, and a training step on top of gradients and moments."""
    import torch

    from dinounet.schema.recipe import Recipe
    from dinounet.training.memory import watch_memory
    from dinounet.training.step import make_optimizer

    few = {} if depth is None else {"backbone_args": {"depth": depth}, "taps": (0, 1, 2, 3)}
    network = build_network(network_config(name, backbone_scale=scale, **few))
    frozen, trained = (sum(p.numel() for p in network.parameters() if p.requires_grad == kind) for kind in (0, 1))
    image, truth = torch.randn(1, 1, side, side), torch.zeros(1, side, side, dtype=torch.int64)
    with watch_memory("cpu") as predicting, torch.inference_mode():
        network.eval()(image)
    optimizer = make_optimizer(network, Recipe())
    network.train()
    with watch_memory("cpu") as training:
        for _ in range(2):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(image), truth).backward()
            optimizer.step()
    return {"frozen": frozen, "trained": trained, "predict": predicting[0], "train": training[0] - 12 * trained}


def main() -> None:
    print(f"dinounet {dinounet.__version__}: bytes on top of what is counted, and GB in all")
    found = []
    for name, scale, side, depth in RUNS:
        arguments = json.dumps([name, scale, side, depth])
        child = subprocess.run([sys.executable, *sys.argv, arguments], capture_output=True, check=True)
        found.append(json.loads(child.stdout))
        seen = found[-1]
        predict = 4 * (seen["frozen"] + seen["trained"]) + seen["predict"]
        train = 4 * (seen["frozen"] + 4 * seen["trained"]) + seen["train"]
        print(name, scale, side, depth or "", seen, f"measured=({predict / 1e9:.2f}, {train / 1e9:.2f})", flush=True)
    pixels = np.array([side**2 for _, _, side, _ in RUNS], dtype=float)
    widths = np.array([VARIANTS[name].width for name, *_ in RUNS])
    taps = np.array([tap_numbers(VARIANTS[name], scale) / 1000 for name, scale, *_ in RUNS])
    terms = np.stack([np.ones(len(RUNS)), widths, taps], axis=1)
    for what in ("predict", "train"):
        bytes_a_pixel = np.array([seen[what] for seen in found]) / pixels
        weights = 1 / bytes_a_pixel  # so that it's relative errors that are small
        fitted, *_ = np.linalg.lstsq(terms * weights[:, None], bytes_a_pixel * weights, rcond=None)
        off = terms @ fitted / bytes_a_pixel - 1
        print(what, [float(f"{number:.4g}") for number in fitted], f"off by {off.min():+.0%} to {off.max():+.0%}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(*json.loads(sys.argv[1]))))
    else:
        main()
