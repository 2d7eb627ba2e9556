"""Writes the files of an older version that `tests/test_old_files.py` reads; see the README beside them.

PYTHONPATH=OLD/src OMP_NUM_THREADS=1 python tests/old_files/make.py FOLDER
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

import dinounet
from dinounet.cli.main import main

SMALL = {
    "stem_width": 2, "attention_heads": 2, "attention_points": 2, "rank": 2, "widths": [2, 2, 2, 2],
    "convolutions_per_stage": 1,
}  # fmt: skip
VIT = {"backbone_args": {"embed_dim": 8, "depth": 4, "num_heads": 2}, "taps": [0, 1, 2, 3], **SMALL}
WIDE = {**VIT, "backbone_args": {**VIT["backbone_args"], "mlp_ratio": 64}}
"""Mostly linear layers, which int8 is for."""
TIMM = {"backbone_args": {"embed_dim": 8, "num_heads": 2}, **SMALL}
PYRAMID = {"backbone_args": {"dims": [4, 4, 8, 8], "depths": [1, 1, 1, 1]}, **SMALL}
UNET = {"widths": [4, 4, 6, 8], "strides": [[1, 1], [2, 2], [2, 2], [2, 1]]}
STEPS = ("--augmentation", "none", "--validate-every", 20, "--warmup", 0, "--learning-rate", 0.02)


def program(*words: Any, code: int = 0) -> None:
    sys.argv = ["dinounet", *map(str, words)]
    assert main(sys.argv[1:]) == code, words


def train(data: str, run: str, planned: tuple[Any, ...], network: dict[str, Any], *words: Any, code: int = 0) -> None:
    """Plan for small patches, change some of the network's fields, and train by that."""
    file = Path(f"{run}.json")
    program("plan", data, "-o", file, "--patch", 32, 32, "--batch", 2, "--device", "cpu", *STEPS, *planned)
    content = json.loads(file.read_text())
    content["network"] |= network
    file.write_text(json.dumps(content))
    weights = () if network is UNET else ("--weights", "random")
    options = ("--plan", file, "--device", "cpu", "--precision", "fp32", *weights, *words)
    program("train", data, "-o", run, *options, code=code)


def interrupt(log: Path, lines: int) -> None:
    """Press Ctrl-C once so many lines are written."""
    while not log.exists() or log.read_text().count("\n") < lines:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)


def noise() -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(0).standard_normal((1, 1, 32, 64)).astype(np.float32))


def rounding() -> np.ndarray:
    """What PyTorch alone makes of noise: where this differs, so may a network's last digits."""
    x = noise()
    maps = F.instance_norm(F.conv2d(x, x[:, :, :8, :27].reshape(8, 1, 3, 9), padding="same"))
    tokens = F.layer_norm(maps.flatten(2).transpose(1, 2), (8,)) @ x[0, 0, :8, :16]
    return F.gelu(F.scaled_dot_product_attention(tokens, tokens, tokens)).mean(1).numpy()


def compute(names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Of each model the probabilities of an image, and by PyTorch the logits of each network for noise."""
    found = {"rounding": rounding()}
    for name in names:
        precision = "auto" if "onnx" in name else "fp32"
        predictor = dinounet.load(name, device="cpu", precision=precision)
        found[f"{name} probabilities"] = predictor.predict_proba(Path("data/imagesTs/case_4_0000.png"))
        for index, network in enumerate(() if "onnx" in name else predictor.networks):
            with torch.inference_mode():
                found[f"{name} logits {index}"] = network(noise()).numpy().copy("C")  # a file holds what lies in memory
    return found


def make() -> None:
    steps = ("--steps", 40)
    train("data", "run", steps, VIT, "--fold", 0)
    train("data", "unet", ("--network", "unet", *steps), UNET)
    program("predict", "unet", "data/imagesTs", "-o", "predicted", "--device", "cpu", "--precision", "fp32")
    program("evaluate", "predicted", "data/labelsTs")
    train("regions", "paper", ("--recipe", "paper", *steps), VIT, "--fold", "all", "--no-report")
    program("predict", "paper", "regions/imagesTs", "-o", "paper_masks", "--device", "cpu", "--precision", "fp32")
    program("evaluate", "paper_masks", "regions/labelsTs")
    program("export", "paper", "-o", "bundle", "--licence", "mit")
    labels = ("--labels", "background=#000000,disc=#ff0000,square=#0080ff")
    train("coloured", "coloured_run", ("--network", "unet", "--steps", 20, *labels), UNET, *labels)
    program("predict", "coloured_run", "coloured/images", "-o", "coloured_masks", "--device", "cpu")
    program("evaluate", "coloured_masks", "coloured/masks")
    train("data", "int8", ("--backbone-precision", "int8", *steps), WIDE, "--no-report")
    cached = ("--backbone", "timm:vit_tiny_patch16_224", "--cache-features", "on")
    train("data", "timm", (*cached, *steps), TIMM, "--no-report")
    train("data", "pyramid", ("--backbone", "dinov3_convnext_tiny", *steps), PYRAMID, "--no-report")
    program("export", "int8", "timm", "pyramid", "-o", "ensemble")
    program("export", "run", "-o", "onnx", "--format", "onnx")
    static = ("--format", "onnx", "--int8", "static", "--calibrate", "data/imagesTr")
    program("export", "unet", "-o", "onnx_int8", *static)
    threading.Thread(target=interrupt, args=(Path("half/log.jsonl"), 50), daemon=True).start()
    train("data", "half", ("--steps", 60, "--average", 0.9), VIT, "--checkpoint-minutes", 0, code=130)
    shutil.copytree("half", "ended")
    program("train", "data", "-o", "ended", "--resume", "--no-report")
    save_file(compute(("run", "unet", "bundle", "ensemble", "onnx", "onnx_int8")), "outputs.safetensors")


if __name__ == "__main__":
    os.chdir(sys.argv[1])  # where data/, regions/ and coloured/ are, small datasets
    torch.set_num_threads(1)
    make()
