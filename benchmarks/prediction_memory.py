"""How much memory prediction takes, of images that are much larger than a tile.

    python benchmarks/prediction_memory.py            # a picture of 20000 x 20000, a CT of 600 slices
    python benchmarks/prediction_memory.py --side 4000 8000 --slices 60 120     # whether it grows with the image

Dino U-Net S, a patch of 512 x 512; with --narrow a narrow network, to see in minutes what the image adds. Each image is
predicted by `dinounet predict` in a process of its own, whose largest resident memory the operating system tells (on
Linux). Tiles don't overlap unless --step says so: it costs time, not memory.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import dinounet
from dinounet.backbones.registry import network_config
from dinounet.data.dataset import read_dataset
from dinounet.data.geometry import Geometry
from dinounet.data.images import write_image
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data
from dinounet.planning.planner import make_plan
from dinounet.schema.recipe import RECIPES


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, nargs="*", default=[20000], help="of RGB pictures of 5 classes")
    parser.add_argument("--slices", type=int, nargs="*", default=[600], help="of CTs of 512 x 512 and 20 classes")
    parser.add_argument("--step", type=float, default=1.0)
    parser.add_argument("--narrow", action="store_true", help="a narrow network: minutes instead of hours")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="further flags of dinounet predict")
    asked = parser.parse_args()
    print("| image | classes | largest memory | seconds |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        for side in asked.side:
            run = make_run(home, "picture", 5, asked.narrow)
            write_picture(home / "large.png", side)
            tell(f"{side} x {side} RGB, PNG", 5, predict(run, home / "large.png", home / f"out_{side}", asked))
        for slices in asked.slices:
            run = make_run(home, "scan", 20, asked.narrow)
            write_scan(home / "large.nii.gz", slices)
            tell(f"512 x 512 x {slices} CT", 20, predict(run, home / "large.nii.gz", home / f"out_{slices}", asked))


def tell(image: str, classes: int, measured: dict[str, float]) -> None:
    print(f"| {image} | {classes} | {measured['gigabytes']:.2f} GB | {measured['seconds']:.0f} |", flush=True)


def make_run(home: Path, kind: str, classes: int, narrow: bool) -> Path:
    """A run of one step, on one small image."""
    root = home / kind
    if root.is_dir():
        return root / "run"
    for folder in ("images", "masks"):
        (root / "data" / folder).mkdir(parents=True)
    mask = np.random.RandomState(0).randint(0, classes, (64, 64)).astype(np.uint8)
    if kind == "picture":
        from PIL import Image

        Image.fromarray(np.stack([mask * 9] * 3, -1)).save(root / "data" / "images" / "a.png")
        Image.fromarray(mask).save(root / "data" / "masks" / "a.png")
    else:
        write_image(root / "data" / "images" / "a.nii.gz", mask[None].astype(np.int16) * 9, PLACE)
        write_image(root / "data" / "masks" / "a.nii.gz", mask[None], PLACE)
    labels = {"background": 0} | {f"class {number}": number for number in range(1, classes)}
    data = plan_data(read_dataset(root / "data", labels, None if kind == "picture" else ("CT",)), (512, 512))
    plan = make_plan(data, replace(RECIPES["default"], steps=1, augmentation="none"), network_config())
    if narrow:
        plan = replace(plan, network=replace(plan.network, **NARROW))
    write_json(root / "plan.json", plan)
    labels_given = ",".join(f"{name}={number}" for name, number in labels.items())
    return dinounet.train(
        root / "data", root / "run", plan=root / "plan.json", weights="random", labels=labels_given, report=False
    )


NARROW = {
    "taps": (0, 1, 2, 3),
    "stem_width": 8,
    "rank": 16,
    "widths": (4, 8, 16, 32),
    "backbone_args": {"embed_dim": 64, "depth": 4, "num_heads": 4},
}

PLACE = Geometry((0.8, 0.8, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))


def write_picture(path: Path, side: int) -> None:
    import pyvips

    noise = pyvips.Image.gaussnoise(side, side, mean=128, sigma=40).cast("uchar")
    noise.bandjoin([noise, noise]).copy(interpretation="srgb").write_to_file(str(path), compression=1)


def write_scan(path: Path, slices: int) -> None:
    random = np.random.RandomState(0)
    tile = random.randint(-1000, 1000, (1, 512, 512)).astype(np.int16)
    write_image(path, np.repeat(tile, slices, axis=0), PLACE)


def predict(run: Path, image: Path, output: Path, asked: argparse.Namespace) -> dict[str, float]:
    started = time.monotonic()
    options = ["--step", str(asked.step), *asked.options]
    command = [sys.executable, __file__, "--work", str(run), str(image), "-o", str(output), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return {"seconds": time.monotonic() - started, **json.loads(done.stdout.splitlines()[-1])}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        from dinounet.cli.main import main as dinounet_main

        code = dinounet_main(["predict", *sys.argv[2:]])
        # of this process alone: getrusage tells of a child what its parent had when it was started
        most = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        print(json.dumps({"gigabytes": int(most[1]) * 1024 / 1e9}))
        sys.exit(code)
    main()
