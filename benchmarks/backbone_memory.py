"""What a backbone takes of the computer's memory: Dino U-Net's forward and training step, one process a measurement.

    python benchmarks/backbone_memory.py --write /tmp/7b                      # random weights in bf16, 13.4 GB, once
    python benchmarks/backbone_memory.py --weights /tmp/7b --ways bf16 int8 bf16+offload
    python benchmarks/backbone_memory.py --weights vitl.safetensors --backbone dinov3_vitl16

Each process loads the weights, sends one image of one channel through, and takes two training steps (batch 1) by the
default recipe's loss and optimizer. Told is the largest memory of the process so far, all included, from Linux's
VmHWM. `--depth N` writes and measures the first N blocks alone.
"""

import argparse
import errno
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import dinounet
from dinounet.backbones.registry import find_variant, network_config
from dinounet.schema.network import NetworkConfig
from dinounet.system import choose_precision, keep_freed_memory


def config_of(backbone: str, depth: int | None, **options: Any) -> NetworkConfig:
    """The network, perhaps with fewer blocks, of which then the last four are read."""
    if depth:
        taps = depth - 4, depth - 3, depth - 2, depth - 1
        options |= {"taps": taps, "backbone_args": {"depth": depth}}
    return network_config(backbone, deep_supervision=True, **options)


def write_random(config: NetworkConfig, folder: Path) -> None:
    """Write random weights in bfloat16 by timm's names, a file a block, and the index; nothing else is in memory."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from dinounet.backbones.frozen import build_backbone
    from dinounet.backbones.hub import INDEX
    from dinounet.backbones.weights import random_numbers

    backbone = build_backbone(config, offload=True)
    size = 2 * sum(parameter.numel() for parameter in backbone.parameters())
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < size:
        sys.exit(f"{folder} has no room for {size / 1e9:.1f} GB of weights; choose a folder on another disk")
    weight_map = {}
    names = set(backbone.vit.state_dict())
    try:
        for block, tensors in groupby(_by_block(random_numbers(backbone, seed=0)), key=lambda item: item[0]):
            held = {name: tensor.to(torch.bfloat16) for _, name, tensor in tensors if name in names}
            file = f"{block}.safetensors"
            save_file(held, folder / file)
            weight_map |= dict.fromkeys(held, file)
            print(f"{file}: {len(held)} tensors", flush=True)
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            sys.exit(f"no space is left in {folder}, and the weights take {size / 1e9:.1f} GB; choose another disk")
        raise


def _by_block(tensors: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, str, Any]]:
    for name, tensor in tensors:
        yield ("-".join(name.split(".")[:2]) if name.startswith("blocks.") else "rest"), name, tensor


def measure(
    backbone: str, weights: str, depth: int | None, way: str, side: int, only_forward: bool
) -> dict[str, float]:
    """GB of this process after loading, after a forward and after two training steps; and the seconds of each."""
    import torch

    from dinounet.backbones.frozen import build_backbone
    from dinounet.backbones.weights import fill_backbone
    from dinounet.network.dinounet import DinoUNet

    keep_freed_memory()  # as the command does
    held, _, offload = way.partition("+")
    config = config_of(backbone, depth, backbone_precision=held)
    began, found = time.monotonic(), {"start": highest()}

    def told(what: str) -> None:
        nonlocal began
        found[what] = highest()
        found[f"{what}_seconds"], began = time.monotonic() - began, time.monotonic()
        print(f"{way} {what}: {found[what]:.2f} GB, {found[f'{what}_seconds']:.0f} s", file=sys.stderr, flush=True)

    frozen = build_backbone(config, offload=bool(offload))
    fill_backbone(frozen, backbone, weights)
    network = DinoUNet(config, frozen)
    told("load")
    computed = torch.autocast("cpu", torch.bfloat16, enabled=choose_precision("auto", "cpu") == "bf16")
    image, truth = torch.randn(1, 1, side, side), torch.zeros(1, side, side, dtype=torch.int64)
    with torch.inference_mode(), computed:
        network.eval()(image)
    told("forward")
    if only_forward:
        return found
    optimizer, loss_fn = training_parts(network, side)
    network.train()
    for step in (1, 2):
        optimizer.zero_grad()
        with computed:
            loss = loss_fn(network(image), truth)
        loss.backward()
        optimizer.step()
        told(f"step {step}")
    return found


def training_parts(network: Any, side: int) -> tuple[Any, Any]:
    """Optimizer and loss by the default recipe."""
    from dinounet.schema.labels import Labels
    from dinounet.schema.plan import ChannelPlan, DataPlan, Fingerprint, Intensities
    from dinounet.schema.recipe import Recipe
    from dinounet.training.step import make_loss, make_optimizer

    shape = (1, side, side)
    seen = Fingerprint(1, shape, shape, shape, None, {"background": 1, "lesion": 1})
    channels = (ChannelPlan("MR", "zscore", Intensities(0, 1, 0, 1)),)
    data = DataPlan("none", channels, Labels({"background": 0, "lesion": 1}), None, 0, None, (side, side), seen)
    return make_optimizer(network, replace(Recipe(), batch_size=1)), make_loss(data)


def highest() -> float:
    """GB that this process has had in memory at the most, so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="dinov3_vit7b16")
    parser.add_argument("--depth", type=int)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--write", type=Path, help="folder to write random weights to")
    parser.add_argument("--weights", default="random", help="as for dinounet train")
    parser.add_argument("--ways", nargs="+", default=["bf16", "int8", "bf16+offload", "int8+offload"])
    parser.add_argument("--forward", action="store_true", help="no training step")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.write:
        write_random(config_of(asked.backbone, asked.depth), asked.write)
        return
    if asked.child:
        print(json.dumps(measure(asked.backbone, asked.weights, asked.depth, asked.child, asked.side, asked.forward)))
        return
    depth = asked.depth or find_variant(asked.backbone).depth
    print(f"dinounet {dinounet.__version__}: {asked.backbone}, {depth} blocks, an image of {asked.side} x {asked.side}")
    for way in asked.ways:
        child = subprocess.run([sys.executable, *sys.argv, "--child", way], stdout=subprocess.PIPE, check=True)
        found = json.loads(child.stdout)
        print(f"{way}: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
