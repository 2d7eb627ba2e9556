"""What a training step costs when the backbone's features come from the disk, and which part of the network takes it.

    python benchmarks/feature_cache.py time --side 512 --backbones dinov3_vits16 dinov3_vitb16 dinov3_vitl16
    python benchmarks/feature_cache.py memory dinov3_vit7b16 --sides 128 192 256

`time`: CPU seconds of steps of one image, random weights and taps; backbones take turns, so that whatever else the
computer does meets all of them; the ratio is to the first one's, round by round. `memory`: what steps with given taps
take on top of weights, at some sides, and at 512 by a line through them; no backbone is in memory.
"""

import argparse
import time
from collections import defaultdict
from statistics import median

import numpy as np
import torch

import dinounet
from dinounet.backbones.frozen import build_backbone
from dinounet.backbones.registry import network_config
from dinounet.network.dinounet import DinoUNet
from dinounet.training.memory import watch_memory

PARTS = ("prior", "interactions", "merging", "fapm", "enlarge", "decoder")


def build(name: str) -> DinoUNet:
    """The network with a backbone of sizes only."""
    config = network_config(name, deep_supervision=True)
    with torch.device("meta"):
        bare = build_backbone(config)
    bare.drop_weights()
    return DinoUNet(config, bare).train()


def step(network: DinoUNet, side: int, precision: str, optimizer: torch.optim.Optimizer | None) -> list[float]:
    """One training step of one image; CPU seconds of forward, backward and optimizer."""
    backbone = network.backbone
    taps = [
        torch.randn(1, rows * columns, width)
        for (rows, columns), width in zip(backbone.grids((side, side)), backbone.widths, strict=True)
    ]
    image, mask = torch.randn(1, 1, side, side), torch.zeros(1, side, side, dtype=torch.int64)
    clock = [time.process_time()]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        scales = network(image, *taps)
    loss = sum(
        torch.nn.functional.cross_entropy(logits.float(), mask[:, :: 2**scale, :: 2**scale])
        for scale, logits in enumerate(scales)
    )
    clock.append(time.process_time())
    loss.backward()
    clock.append(time.process_time())
    if optimizer:
        optimizer.step()
    network.zero_grad()
    return np.diff([*clock, time.process_time()]).tolist()


def watch_parts(network: DinoUNet) -> dict[str, float]:
    """CPU seconds of the parts' forwards, added up as the network runs."""
    seconds: dict[str, float] = defaultdict(float)
    adapter = network.adapter
    extractors = [extractor for group in adapter.interactions for extractor in group]
    watched = [
        ("adapter", adapter),
        ("prior", adapter.prior),
        *(("interactions", extractor) for extractor in extractors),
    ]
    watched += [("fapm", network.fapm), *(("enlarge", part) for part in network.enlarge), ("decoder", network.decoder)]
    for name, part in watched:
        part.register_forward_pre_hook(
            lambda *_, name=name: seconds.update({name: seconds[name] - time.process_time()})
        )
        part.register_forward_hook(lambda *_, name=name: seconds.update({name: seconds[name] + time.process_time()}))
    return seconds


def measure_time(names: list[str], side: int, precision: str, rounds: int) -> None:
    networks = {name: build(name) for name in names}
    parts = {name: watch_parts(network) for name, network in networks.items()}
    optimizers = {name: torch.optim.AdamW(p for p in n.parameters() if p.requires_grad) for name, n in networks.items()}
    taken: dict[str, list[list[float]]] = defaultdict(list)
    for number in range(rounds + 1):  # the first one warms up
        for name, network in networks.items():
            seconds = step(network, side, precision, optimizers[name])
            if number:
                taken[name].append(seconds)
            else:
                parts[name].clear()
    print(f"one image of {side} x {side}, {precision}, {rounds} rounds, {torch.get_num_threads()} thread")
    for name in names:
        ratios = [sum(own) / sum(first) for own, first in zip(taken[name], taken[names[0]], strict=True)]
        parts[name]["merging"] = parts[name]["adapter"] - parts[name]["prior"] - parts[name]["interactions"]
        stages = zip(("forward", "backward", "optimizer"), np.median(taken[name], axis=0), strict=True)
        whole = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in stages)
        forward = ", ".join(f"{part} {parts[name][part] / rounds:.2f}" for part in PARTS)
        ratio = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) of {names[0]}'s"
        print(f"{name}: {ratio}; {whole} s; forward of {forward}")


def measure_backbones(names: list[str], side: int, precision: str, rounds: int) -> None:
    for name in names:
        backbone, taken = build_backbone(network_config(name)), []
        for _ in range(rounds):
            began = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                backbone(torch.randn(1, 3, side, side))
            taken.append(time.process_time() - began)
        print(f"{name}: {min(taken):.2f} s for the backbone, which the cache saves", flush=True)


def measure_memory(name: str, sides: list[int], precision: str) -> None:
    network = build(name)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    grown = []
    for side in sides:
        with watch_memory("cpu") as most:
            step(network, side, precision, None)
        grown.append(most[0])
        print(f"{side}: {most[0] / 1e9:.2f} GB on top of weights, gradients (of {4 * trained / 1e9:.2f}) included")
    slope, offset = np.polyfit(np.square(sides), grown, 1)
    whole = 4 * 3 * trained + offset + slope * 512**2  # weights and AdamW's moments; gradients are in what was measured
    print(f"{name}, {precision}: {whole / 1e9:.1f} GB for a step of one image of 512 x 512, by a line through these")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("time")
    verb.add_argument("--side", type=int, default=512)
    verb.add_argument("--rounds", type=int, default=5)
    verb.add_argument("--backbones", nargs="+", default=["dinov3_vits16", "dinov3_vitb16", "dinov3_vitl16"])
    verb.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    verb = verbs.add_parser("memory")
    verb.add_argument("backbone")
    verb.add_argument("--sides", nargs="+", type=int, default=[128, 192, 256])
    verb.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    asked = parser.parse_args()
    print(f"dinounet {dinounet.__version__}, torch {torch.__version__}")
    torch.set_num_threads(1)
    if asked.verb == "time":
        measure_time(asked.backbones, asked.side, asked.precision, asked.rounds)
        measure_backbones(asked.backbones, asked.side, asked.precision, 2)
    else:
        measure_memory(asked.backbone, asked.sides, asked.precision)
