"""Which recipe measures best: variants of the default, one change each, at equal steps on fixed splits of real images.

    python benchmarks/recipes.py run ../shared work --share 1/2 &   # each process takes every second run, on one thread
    python benchmarks/recipes.py run ../shared work --share 2/2
    python benchmarks/recipes.py table                               # rewrites the table in docs/recipes.md

Every finished run is a line of docs/recipes.jsonl, and what stands there isn't run again. `../shared` holds `data/` and
`weights/`; `work` gets the runs' folders, and interrupted runs go on from there.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from PIL import Image

import dinounet
from dinounet.backbones.registry import network_config
from dinounet.data.dataset import read_dataset
from dinounet.io import write_json
from dinounet.planning.planner import choose_recipe, plan_dataset
from dinounet.schema.plan import ChannelPlan, Intensities, Plan
from dinounet.schema.recipe import Recipe, RecipeName
from dinounet.schema.run import RECORD, read_run
from dinounet.training.options import TrainOptions
from dinounet.training.session import resume_run, start_run
from summaries import put_into_page

RESULTS = Path(__file__).parents[1] / "docs" / "recipes.jsonl"
PAGE = RESULTS.with_suffix(".md")
WEIGHTS = "weights/dinov2_vits14_fp16.safetensors"
SEEDS = (0, 1, 2)
STEPS = 200


@dataclass(frozen=True)
class Setup:
    """A fixed split."""

    told: str
    write: Callable[[Path, Path], None]
    labels: dict[str, int]
    patch: tuple[int, int] = (192, 192)


@dataclass(frozen=True)
class Variant:
    """One change from the default as it was when the study began."""

    told: str
    recipe: dict[str, Any] = field(default_factory=dict)
    from_start: bool = True
    base: RecipeName = "default"
    architecture: Any = "dinounet"
    random_backbone: bool = False
    enlarged: float = 1.0
    percentiles: bool = False
    intensities: Intensities | None = None


def write_axon(learn: Any, test: Any, data: Path, root: Path) -> None:
    """One micrograph: a square of 256 pixels to learn from, another part of it to be tested on."""
    image, mask = (np.asarray(Image.open(data / "axon_sem" / f"{name}.png")) for name in ("image", "mask"))
    mask = mask if mask.ndim == 2 else mask[..., 0]
    for part, window in (("train", learn), ("test", test)):
        for name, pixels in (("images", image), ("masks", mask)):
            (root / part / name).mkdir(parents=True)
            Image.fromarray(np.ascontiguousarray(pixels[window])).save(root / part / name / "nerve.png")


def write_lung(data: Path, root: Path) -> None:
    """One chest CT: slices 19 to 34 to learn from, 12 to 16 to be tested on."""
    for name, kind in (("images", "image"), ("masks", "label")):
        volume = sitk.ReadImage(str(data / "lung_ct" / f"lung2_{kind}.nrrd"))
        for part, first, last in (("train", 19, 35), ("test", 12, 17)):
            (root / part / name).mkdir(parents=True)
            sitk.WriteImage(volume[:, :, first:last], str(root / part / name / "chest.nrrd"))


SETUPS = {
    "axon": Setup(
        "electron micrograph of nerve tissue, 256 x 256 pixels to learn from (rows from 420, columns from 222 on), "
        "columns from 800 on to be tested on",
        partial(write_axon, np.s_[420:676, 222:478], np.s_[:, 800:]),
        {"background": 0, "myelin": 128, "axon": 255},
    ),
    "axon2": Setup(
        "the same, 256 x 256 other pixels to learn from (rows from 700, columns from 1200 on), columns up to 700 to be "
        "tested on",
        partial(write_axon, np.s_[700:956, 1200:1456], np.s_[:, :700]),
        {"background": 0, "myelin": 128, "axon": 255},
    ),
    "lung": Setup(
        "one chest CT, slices 19 to 34 to learn from, 12 to 16 to be tested on",
        write_lung,
        {"background": 0, "tumour": 1},
    ),
}

# the study's start: what `default` was before it
START = {
    "optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-4, "schedule": "cosine", "warmup": 15,
    "initialisation": "pytorch", "augmentation": "nnunet", "batch_size": 2, "deep_supervision": False,
}  # fmt: skip

VARIANTS = {
    "start": Variant(
        "the start: AdamW 1e-3, warm-up 15, cosine, PyTorch's initial values, nnU-Net's augmentation, z-score"
    ),
    "he": Variant("He initialisation", {"initialisation": "he"}),
    "flip": Variant("augmentation: mirroring only", {"augmentation": "flip"}),
    "unet": Variant("`--network unet`", architecture="unet"),
    "lr 3e-3": Variant("learning rate 3e-3", {"learning_rate": 3e-3}),
    "deep": Variant("deep supervision", {"deep_supervision": True}),
    "random": Variant("random backbone", random_backbone=True),
    "sgd": Variant(
        "SGD, Nesterov 0.99, 1e-3, weight decay 3e-5, poly, no warm-up (the paper's)",
        {"optimizer": "sgd", "weight_decay": 3e-5, "schedule": "poly", "warmup": 0},
    ),
    "imagenet": Variant(
        "0 to 1, then ImageNet's statistics, instead of z-score",
        intensities=Intensities(mean=0.449 * 255, std=0.226 * 255, percentile_00_5=0, percentile_99_5=255),
    ),
    "warmup 0": Variant("no warm-up", {"warmup": 0}),
    "paper": Variant("`--recipe paper` with patches of 192 x 192, two a step", {"batch_size": 2}, base="paper"),
    "now": Variant("`--recipe default` as it came out of this", from_start=False),
    "ct": Variant("CT's percentiles instead of z-score", percentiles=True),
    "he deep": Variant("He initialisation and deep supervision", {"initialisation": "he", "deep_supervision": True}),
    "he deep flip": Variant(
        "He initialisation, deep supervision and mirroring only",
        {"initialisation": "he", "deep_supervision": True, "augmentation": "flip"},
    ),
    "he deep enlarged": Variant(
        "He initialisation, deep supervision and images enlarged to twice their size",
        {"initialisation": "he", "deep_supervision": True},
        enlarged=2.0,
    ),
}
CLOSE = ("start", "he", "deep", "flip", "unet", "lr 3e-3")
"""What gets a third seed, and is looked at on the CT."""
ELSEWHERE = ("start", "he", "deep", "he deep", "he deep enlarged", "paper", "flip", "unet")
"""What is looked at on the second split."""


def jobs() -> Iterator[tuple[str, str, int]]:
    """Setup, variant and seed of every run, the most telling first."""
    for seed in SEEDS[:2]:
        yield from (("axon", variant, seed) for variant in VARIANTS if variant != "ct")
    yield from (("lung", variant, SEEDS[0]) for variant in (*CLOSE, "ct"))
    yield from (("axon", variant, SEEDS[2]) for variant in (*CLOSE, "he deep", "he deep enlarged", "paper", "now"))
    yield from (("axon2", variant, seed) for seed in SEEDS[:2] for variant in ELSEWHERE)


def make_plan(setup: Setup, variant: Variant, train: Path, seed: int) -> Plan:
    """The variant's plan."""
    start = START if variant.from_start and variant.base == "default" else {}
    changes = {**start, **variant.recipe, "steps": STEPS, "eval_interval": STEPS, "seed": seed}
    recipe: Recipe = choose_recipe(variant.base, changes)
    dataset = read_dataset(train, setup.labels)
    network = network_config("dinov2_vits14") if variant.architecture == "dinounet" else None
    plan = plan_dataset(dataset, recipe, network, setup.patch)
    if variant.enlarged > 1:  # images that don't tell their pixels' size
        size = 1 / variant.enlarged
        plan = replace(plan, data=replace(plan.data, spacing=(size, size), unknown_spacing=1.0))
    if variant.intensities:  # clipped to and scaled by given numbers: what "ct" does
        channels = tuple(ChannelPlan(channel.name, "ct", variant.intensities) for channel in plan.data.channels)
        plan = replace(plan, data=replace(plan.data, channels=channels))
    if variant.percentiles:
        channels = tuple(replace(channel, normalisation="ct") for channel in plan.data.channels)
        plan = replace(plan, data=replace(plan.data, channels=channels))
    return plan


def measure(setup_name: str, variant_name: str, seed: int, shared: Path, work: Path) -> dict[str, Any]:
    """Train, predict and evaluate once."""
    setup, variant = SETUPS[setup_name], VARIANTS[variant_name]
    place = work / f"{setup_name}-{variant_name.replace(' ', '_')}-{seed}"
    data, run, masks = place / "data", place / "run", place / "masks"
    if not data.exists():
        setup.write(shared / "data", data)
    if not (run / RECORD).exists():
        plan = make_plan(setup, variant, data / "train", seed)
        write_json(place / "plan.json", plan)
        weights = "random" if variant.random_backbone else str(shared / WEIGHTS)
        weights = None if variant.architecture == "unet" else weights
        options = TrainOptions(
            plan=place / "plan.json", weights=weights, fold="all", device="cpu", precision="bf16",
            labels=",".join(f"{name}={label}" for name, label in setup.labels.items()),
        )  # fmt: skip
        start_run(data / "train", run, options)
    elif read_run(run).status != "finished":
        resume_run(data / "train", run, TrainOptions())
    if not masks.exists():
        dinounet.predict(run, [data / "test" / "images"], masks, device="cpu", precision="bf16")
    found = dinounet.evaluate(masks, data / "test" / "masks")
    record = read_run(run)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {
        "setup": setup_name,
        "variant": variant_name,
        "seed": seed,
        "dice": {
            name: round(mean(case.classes[name].dice for case in found.cases), 4) for name in found.cases[0].classes
        },
        "hd95": {
            name: round(mean(case.classes[name].hd95 for case in found.cases), 2) for name in found.cases[0].classes
        },
        "loss_of_last_20_steps": round(mean(line["loss"] for line in log[-20:]), 4),
        "seconds": record.seconds,
        "trained_parameters": record.trained_parameters,
        "versions": record.versions,
        "machine": record.machine,
    }


def read_results() -> list[dict[str, Any]]:
    """Every finished run."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def run_all(shared: Path, work: Path, share: str) -> None:
    """Do this process's share of what isn't done yet."""
    torch.set_num_threads(1)
    part, parts = map(int, share.split("/"))
    for index, job in enumerate(jobs()):
        done = {(line["setup"], line["variant"], line["seed"]) for line in read_results()}
        if index % parts == part - 1 and job not in done:
            result = measure(*job, shared, work)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")


def write_table() -> None:
    """Put what was measured between the page's marks."""
    lines: list[str] = []
    for name, setup in SETUPS.items():
        results = [result for result in read_results() if result["setup"] == name]
        if not results:
            continue
        classes = list(results[0]["dice"])
        lines += [
            "",
            f"**{name}**: {setup.told}; {STEPS} steps of two {setup.patch[0]} x {setup.patch[1]} patches.",
            "",
        ]
        lines += ["| variant | mean Dice | " + " | ".join(f"{c}: mean (seeds 0, 1 ...)" for c in classes) + " |"]
        lines += ["|---" * (len(classes) + 2) + "|"]
        rows = []
        for variant, told in VARIANTS.items():
            runs = sorted((r for r in results if r["variant"] == variant), key=lambda r: r["seed"])
            if not runs:
                continue
            dice = {c: [run["dice"][c] for run in runs] for c in classes}
            overall = mean(mean(values) for values in dice.values())
            cells = [f"{mean(values):.3f} ({' '.join(f'{v:.3f}' for v in values)})" for values in dice.values()]
            rows.append((overall, f"| {told.told} | {overall:.3f} | {' | '.join(cells)} |"))
        lines += [row for _, row in sorted(rows, reverse=True)]
    put_into_page(PAGE, "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("run")
    verb.add_argument("shared", type=Path)
    verb.add_argument("work", type=Path)
    verb.add_argument("--share", default="1/1")
    verbs.add_parser("table")
    asked = parser.parse_args()
    if asked.verb == "run":
        run_all(asked.shared, asked.work, asked.share)
    else:
        write_table()
