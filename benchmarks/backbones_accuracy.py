"""Backbones side by side: the same data, folds, seeds and steps; prints the paper's kind of table.

    python benchmarks/backbones_accuracy.py DATASET WORK --models dinov3_vits16=hub dinov3_vitb16=hub unet \
        --features off on --folds 0 1 2 3 4 --seeds 0 1 2 --steps 1000

DATASET is one of nnU-Net's layout, or plain images and masks. A model is a backbone with its weights (hub, random, or a
file), or unet. Runs are kept in WORK: what is finished isn't run again, what was interrupted goes on. Every run is
measured on its fold's validation cases; a case's number is the mean over classes and seeds, and the intervals are
bootstrapped over cases. With `--crops` the dataset is written first, from the micrograph `axon_sem`: eight squares of
256 pixels from its left half to learn from, four from its right to be measured on.
"""

import argparse
from pathlib import Path
from statistics import mean

import torch

import dinounet
from dinounet.evaluation.means import describe_bootstrap, read_metrics
from dinounet.io import METRICS
from dinounet.schema.metrics import Metrics
from dinounet.schema.run import RECORD, RunRecord, read_run
from micrograph import write_squares
from summaries import by_case, cell, means

SIDE = 256
LEARN = [(row, column) for row in (0, 256, 512, 768) for column in (0, 256)]
WATCH = [(row, column) for row in (0, 512) for column in (1028, 1284)]
"""Upper left corners of the squares."""


def run_once(
    asked: argparse.Namespace, model: str, features: str, fold: int | None, seed: int
) -> tuple[RunRecord, Metrics]:
    """Train and evaluate, or read what was found before."""
    backbone, _, weights = model.partition("=")
    words = (backbone, Path(weights).stem, features, str(fold or 0), str(seed), str(asked.steps))
    run = asked.work / "-".join(word for word in words if word)
    if not (run / "validation" / METRICS).exists():
        if (run / RECORD).exists():
            dinounet.train(asked.dataset, run, resume=True, cache=asked.work / "cache", precision=asked.precision)
        else:
            asked.work.mkdir(parents=True, exist_ok=True)
            network = {"network": "unet"} if backbone == "unet" else {"backbone": backbone, "weights": weights or "hub"}
            changes = {
                "steps": asked.steps, "seed": seed, "eval_interval": asked.steps, "cache_features": features,
                "feature_variants": asked.variants,
            }  # fmt: skip
            dinounet.train(
                asked.dataset, run, **network, changes=changes, fold=fold, cache=asked.work / "cache",
                patch=tuple(asked.patch) if asked.patch else None, precision=asked.precision,
            )  # fmt: skip
    return read_run(run), read_metrics(run / "validation" / METRICS)


def row(model: str, features: str, runs: list[tuple[RunRecord, Metrics]]) -> str:
    """One line of the table."""
    found = by_case((case.case, (case.dice, case.hd95)) for _, metrics in runs for case in metrics.cases)
    cells = [cell(one, digits) for one, digits in zip(means(found), (3, 2), strict=True)]
    seeds: dict[int, list[float]] = {}
    for record, metrics in runs:
        seeds.setdefault(record.plan.recipe.seed, []).extend(case.dice for case in metrics.cases)
    each = " ".join(f"{mean(found):.3f}" for found in seeds.values())
    hours = mean(record.seconds for record, _ in runs) / 3600
    trained = runs[0][0].trained_parameters / 1e6
    backbone, _, weights = model.partition("=")
    name = f"{backbone} ({Path(weights).stem})" if weights else backbone
    return f"| {name} | {features} | {cells[0]} | {each} | {cells[1]} | {trained:.1f} | {hours:.3f} |"


def main(asked: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    if asked.crops and not asked.dataset.exists():
        write_squares(asked.crops, asked.dataset, SIDE, LEARN, WATCH)
    jobs = [
        (model, features)
        for model in asked.models
        for features in (["off"] if model == "unet" else asked.features)
    ]  # fmt: skip
    found = {job: [run_once(asked, *job, fold, seed) for fold in asked.folds for seed in asked.seeds] for job in jobs}
    unit = next(iter(found.values()))[0][1].unit
    print(
        f"dinounet {dinounet.__version__}, {asked.steps} steps, folds {asked.folds}, seeds {asked.seeds}. "
        f"{describe_bootstrap('cases')}"
    )
    print(f"\n| backbone | cached | Dice | of each seed | HD95, {unit} | trained, millions | hours of training |")
    print("|---|---|---|---|---|---|---|")
    for job, runs in found.items():
        print(row(*job, runs))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--models", nargs="+", default=["dinov3_vits16=hub", "dinov3_vitb16=hub", "unet"])
    parser.add_argument("--features", nargs="+", choices=("off", "on", "auto"), default=["off"])
    parser.add_argument("--variants", type=int, default=1)
    parser.add_argument("--folds", nargs="+", type=int, default=[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--patch", nargs=2, type=int)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--crops", type=Path, help="folder axon_sem, to write the dataset from")
    main(parser.parse_args())
