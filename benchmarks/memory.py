"""Whether the trial step foretells what a training step takes: largest memory of a real step against the estimate.

    python benchmarks/memory.py --patch 512 --batch 2

One process a measurement, so that what an earlier one left doesn't count.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace

import dinounet
from dinounet.backbones.registry import network_config


def measure(backbone: str, side: int, batch: int, precision: str) -> dict[str, float]:
    """Estimate and truth, GB."""
    import torch

    from dinounet.backbones.frozen import build_network
    from dinounet.planning.planner import make_plan
    from dinounet.schema.labels import Labels
    from dinounet.schema.plan import ChannelPlan, DataPlan, Fingerprint, Intensities
    from dinounet.schema.recipe import Recipe
    from dinounet.training.memory import measure_step, watch_memory
    from dinounet.training.step import make_loss, make_optimizer

    shape = (1, side, side)
    seen = Fingerprint(1, shape, shape, shape, None, {"background": 1, "lesion": 1})
    channels = (ChannelPlan("MR", "zscore", Intensities(0, 1, 0, 1)),)
    data = DataPlan("none", channels, Labels({"background": 0, "lesion": 1}), None, 0, None, (side, side), seen)
    plan = make_plan(data, replace(Recipe(), batch_size=batch), network_config(backbone))
    network = build_network(plan.network)
    memory = measure_step(network, plan, "cpu", precision)
    estimate = memory.fixed + memory.a_pixel * side * side * batch

    optimizer, loss_fn = make_optimizer(network, plan.recipe), make_loss(data)
    with watch_memory("cpu") as most:
        for _ in range(2):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                logits = network(torch.randn(batch, 1, side, side))
            loss_fn(logits, torch.zeros(batch, side, side, dtype=torch.int64)).backward()
            optimizer.step()
    return {"estimate": estimate / 1e9, "measured": most[0] / 1e9, "ratio": estimate / most[0]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", default="dinov3_vits16")
    parser.add_argument("--patch", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"))
    asked = parser.parse_args()
    if asked.precision:
        print(json.dumps(measure(asked.backbone, asked.patch, asked.batch, asked.precision)))
    else:
        print(
            f"dinounet {dinounet.__version__}, {asked.backbone}, {asked.batch} patches of {asked.patch} x {asked.patch}"
        )
        for precision in ("fp32", "bf16"):
            child = subprocess.run(
                [sys.executable, *sys.argv, "--precision", precision], capture_output=True, check=True
            )
            found = json.loads(child.stdout)
            print(f"{precision}: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
