"""nnU-Net and dinounet head to head: the same data, folds, steps, patches and test cases; and with fewer slices.

    python benchmarks/against_nnunet.py run DATASET WORK --weights hub --steps 1000 --folds 0 1 --seeds 0 1 2 \
        --shares 100 50 20 10 5
    python benchmarks/against_nnunet.py table WORK                # prints it, and draws label efficiency into WORK
    python benchmarks/against_nnunet.py table WORK --page docs/against-nnunet.md   # puts both into the page

In an environment with `pip install 'dinounet[nnunet]'`. DATASET is any of nnU-Net's: its imagesTs and labelsTs are the
test cases if both are there, else the fold's validation cases are. Methods:

    nnunet          stock nnU-Net 2d, its trainer, optimizer and schedule
    in-nnunet       Dino U-Net in nnU-Net, by DinoUNetTrainer
    default, paper  Dino U-Net in our engine, by either recipe
    unet            our engine's U-Net, by the default recipe

All train on patches of nnU-Net's planned size and batch (or --patch, --batch), and predict without mirrored copies.
nnU-Net's schedule falls once an epoch, so its steps are cut into at least ten. A share of the training slices is spread
evenly over those of all the fold's training cases; plans are of the whole dataset. Every piece is a process of its own,
and leaves a JSON file in WORK/pieces: what is there isn't done again, so a stopped run goes on. Several processes share
the work with --part 1/2 and --part 2/2, once one of them has prepared the data (--prepare).

With --micrograph FOLDER the dataset is written first, of squares of the micrograph `axon_sem`: 20 of its left half to
learn from, 15 of its right to be tested on, and a strip of a square's width between the two.
"""

import argparse
import json
import math
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dinounet
from against_nnunet_data import Place, prepare, share_of
from dinounet.backbones.registry import network_config
from dinounet.data.dataset import read_dataset
from dinounet.evaluation.evaluate import evaluate_folders
from dinounet.evaluation.means import describe_bootstrap
from dinounet.io import write_json
from dinounet.planning.planner import choose_recipe, make_plan
from dinounet.schema.network import plan_unet
from dinounet.schema.plan import Plan, read_plan
from dinounet.schema.run import read_run
from dinounet.system import choose_training_device, machine, versions
from micrograph import write_squares
from summaries import by_case, cell, means, put_into_page

METHODS = {
    "nnunet": "nnU-Net 2d",
    "in-nnunet": "Dino U-Net in nnU-Net",
    "default": "Dino U-Net, our engine, default recipe",
    "paper": "Dino U-Net, our engine, paper recipe",
    "unet": "U-Net, our engine",
}
EPOCHS = 10
"""Of nnU-Net's schedule, at least."""

SIDE = 192
LEARN = [(row, column) for row in range(0, 5 * SIDE, SIDE) for column in range(0, 4 * SIDE, SIDE)]
WATCH = [(0, 4 * SIDE)]
TEST = [(row, column) for row in range(0, 5 * SIDE, SIDE) for column in range(5 * SIDE, 8 * SIDE, SIDE)]
"""Squares of the micrograph by their upper left corners; one to watch, since both programs want one."""

COLOURS = ("#4c4c4c", "#d1495b", "#00798c", "#edae49", "#8d6cab")


def pieces(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All that is to be found out, the whole data first."""
    for share in sorted(asked.shares, reverse=True):
        for seed in asked.seeds:
            for fold in asked.folds:
                for method in asked.methods:
                    yield {"method": method, "fold": fold, "share": share, "seed": seed, "steps": asked.steps}


def run_all(asked: argparse.Namespace) -> None:
    """Do this process's part of what isn't done yet; a piece that fails is told, and the others go on."""
    if not re.fullmatch(r"\d+/\d+", asked.part):
        sys.exit("--part is written as 1/2")
    if asked.micrograph and not asked.dataset.exists():
        write_squares(asked.micrograph, asked.dataset, SIDE, LEARN, WATCH, TEST)
    place = prepare(asked)
    for fold in asked.folds:
        for share in asked.shares:
            share_of(place, fold, share)
    if asked.prepare:
        return
    part, parts = map(int, asked.part.split("/"))
    failed = []
    for index, piece in enumerate(pieces(asked)):
        result = asked.work / "pieces" / f"{name_of(piece)}.json"
        if index % parts != part - 1 or result.exists():
            continue
        words = [sys.executable, __file__, "piece", str(asked.work), json.dumps(piece)]
        words += ["--weights", asked.weights, "--backbone", asked.backbone, "--device", asked.device]
        began = time.monotonic()
        done = subprocess.run([*words, "--threads", str(asked.threads)], capture_output=True, text=True, check=False)
        log = result.with_suffix(".log")
        log.parent.mkdir(exist_ok=True)
        log.write_text(done.stdout + done.stderr)
        if not result.exists():
            failed.append(name_of(piece))
        told = "failed" if failed[-1:] == [name_of(piece)] else "done"
        print(f"{name_of(piece)}: {told} in {time.monotonic() - began:.0f} s; {log}", flush=True)
    if failed:
        sys.exit(
            f"{len(failed)} pieces failed: {', '.join(failed)}; their logs say why, and the same command tries again"
        )


def name_of(piece: dict[str, Any]) -> str:
    return "-".join(f"{value}" if key == "method" else f"{key}{value}" for key, value in piece.items())


def do_piece(asked: argparse.Namespace) -> None:
    """Train, predict and evaluate once, in this process."""
    piece = json.loads(asked.piece)
    torch.set_num_threads(asked.threads)
    place = Place(asked.work)
    data = share_of(place, piece["fold"], piece["share"])
    output = asked.work / "runs" / name_of(piece)
    masks = output / "masks"
    images, truth = place.test(piece["fold"])
    train = train_in_nnunet if "nnunet" in piece["method"] else train_in_ours
    found = train(asked, piece, data, output, images, masks)
    known = read_dataset(place.dataset).labels
    metrics = evaluate_folders(masks, truth, known, output / "metrics.json")
    result = {
        **piece,
        **found,
        "cases": {case.case: [case.dice, case.mean("nsd"), case.hd95] for case in metrics.cases},
        "unit": metrics.unit,
        "tolerance": metrics.tolerance,
        "peak_gb": peak_memory() / 1e9,
        "peak_gpu_gb": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None,
        "training_slices": json.loads((data / "share.json").read_text())["slices"],
        "backbone": f"{asked.backbone}, {asked.weights if asked.weights in ('hub', 'random') else 'file'}",
        "threads": asked.threads,
        "versions": versions(),
        "machine": machine(),
    }
    (asked.work / "pieces").mkdir(exist_ok=True)
    write_json(asked.work / "pieces" / f"{name_of(piece)}.json", result)


def peak_memory() -> int:
    """Bytes that this process has held at most; those that prepare patches are left out."""
    status = Path("/proc/self/status")
    if status.exists():  # since getrusage counts what the process held that started this one
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def train_in_nnunet(
    asked: argparse.Namespace, piece: dict[str, Any], data: Path, output: Path, images: Path, masks: Path
) -> dict[str, Any]:
    """By nnU-Net's trainer and predictor, in this process."""
    trainer_name, plans = (
        ("nnUNetTrainer", "nnUNetPlans") if piece["method"] == "nnunet" else ("DinoUNetTrainer", "DinoUNetPlans")
    )
    epochs = max(EPOCHS, piece["steps"] // 250)
    steps = math.ceil(piece["steps"] / epochs)
    Place(asked.work).tell_nnunet(output)
    os.environ |= {"DINOUNET_EPOCHS": str(epochs), "DINOUNET_STEPS_AN_EPOCH": str(steps)}
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.run.run_training import get_trainer_from_args

    device = torch.device(choose_training_device(asked.device))
    np.random.seed(piece["seed"])
    torch.manual_seed(piece["seed"])
    trainer = get_trainer_from_args(data.name, "2d", 0, trainer_name, plans, device=device)
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = epochs, steps, 1
    trainer.save_every = epochs  # the end is enough
    trainer.run_training()
    starts, ends = (trainer.logger.get_value(f"epoch_{when}_timestamps", step=None) for when in ("start", "end"))
    checkpoint = Path(trainer.output_folder, "checkpoint_final.pth")
    predictor = nnUNetPredictor(use_mirroring=False, device=device, perform_everything_on_device=device.type == "cuda")
    predictor.initialize_from_trained_model_folder(str(checkpoint.parents[1]), (0,))
    began = time.monotonic()
    masks.mkdir(exist_ok=True)
    predictor.predict_from_files_sequential(str(images), str(masks))
    return {
        "seconds": sum(end - start for start, end in zip(starts, ends, strict=True)),
        "predict_seconds": time.monotonic() - began,
        "steps_done": epochs * steps,
        "checkpoint_mb": checkpoint.stat().st_size / 1e6,
        "trained_millions": sum(p.numel() for p in trainer.network.parameters() if p.requires_grad) / 1e6,
    }


def train_in_ours(
    asked: argparse.Namespace, piece: dict[str, Any], data: Path, output: Path, images: Path, masks: Path
) -> dict[str, Any]:
    """By our engine, in this process; nothing is told of the validation cases, since nothing is chosen by them."""
    output.mkdir(parents=True, exist_ok=True)
    place, run = Place(asked.work), output / "run"
    write_json(output / "plan.json", plan_for(asked, piece, place))
    if (run / "run.json").exists():
        if read_run(run).status != "finished":
            dinounet.train(data, run, resume=True, report=False)
    else:
        network = {} if piece["method"] == "unet" else {"weights": asked.weights}
        dinounet.train(
            data, run, plan=output / "plan.json", fold=0, device=asked.device, precision=asked_precision(asked),
            cache=asked.work / "cache", report=False, **network,
        )  # fmt: skip
    began = time.monotonic()
    dinounet.predict(run, [images], masks, device=asked.device, precision=asked_precision(asked), overwrite=True)
    record = read_run(run)
    return {
        "seconds": record.seconds,
        "predict_seconds": time.monotonic() - began,
        "steps_done": record.steps_done,
        "checkpoint_mb": (run / "model.safetensors").stat().st_size / 1e6,
        "trained_millions": record.trained_parameters / 1e6,
    }


def asked_precision(asked: argparse.Namespace) -> Any:
    """As nnU-Net computes: fp16 on CUDA, else float32."""
    return "fp16" if choose_training_device(asked.device) == "cuda" else "fp32"


def plan_for(asked: argparse.Namespace, piece: dict[str, Any], place: Place) -> Plan:
    """The method's plan, of the data that was planned once."""
    planned = read_plan(place.plan)
    changes = {
        "steps": piece["steps"], "seed": piece["seed"], "eval_interval": piece["steps"],
        "batch_size": planned.recipe.batch_size,
    }  # fmt: skip
    recipe = choose_recipe("paper" if piece["method"] == "paper" else "default", changes)
    if piece["method"] == "unet":
        channels, outputs = len(planned.data.channels), len(planned.data.labels.outputs)
        return replace(
            make_plan(planned.data, recipe, None),
            network=plan_unet(planned.data.patch, in_channels=channels, num_classes=outputs),
        )
    return make_plan(planned.data, recipe, network_config(asked.backbone))


def read_pieces(work: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((work / "pieces").glob("*.json"))]


def table(asked: argparse.Namespace) -> None:
    """Print what is finished, and draw label efficiency."""
    found = read_pieces(asked.work)
    if not found:
        sys.exit(f"{asked.work} holds no finished piece; run first")
    text = "\n".join(lines_of(found))
    shares = {piece["share"] for piece in found}
    drawing = asked.page.with_suffix(".svg") if asked.page else asked.work / "label-efficiency.svg"
    if len(shares) > 1:
        draw(found, drawing)
        text += f"\n\n![Dice by the share of training slices]({drawing.name})"
    print(text)
    if asked.page:
        put_into_page(asked.page, text)


def lines_of(found: list[dict[str, Any]]) -> list[str]:
    """The tables: the whole data in full, fewer slices by Dice."""
    first = found[0]
    unit, told = first["unit"], ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    seeds, folds = (sorted({piece[key] for piece in found}) for key in ("seed", "fold"))
    machine_told = ", ".join(f"{name} {value}" for name, value in first["machine"].items())
    lines = [
        f"{first['steps']} steps, folds {folds}, seeds {seeds}, backbone {first['backbone']}; threads: "
        f"{first['threads']}, {machine_told}; {told}. "
        f"{describe_bootstrap('cases')} A case's number is its mean over classes, seeds and "
        f"folds; NSD at {first['tolerance']:g} {unit}; differences are to nnU-Net's, case by case. nnU-Net's "
        "checkpoints hold the optimizer's state as well.",
        "",
        f"| method | runs | Dice | of each seed | difference in Dice | better, worse | NSD | HD95, {unit} | minutes of "
        "training | peak memory, GB | trained, millions | checkpoint, MB |",
        "|---" * 12 + "|",
    ]
    whole = [piece for piece in found if piece["share"] == 100]
    reference = cases_of(whole, "nnunet")
    for method, name in METHODS.items():
        own = [piece for piece in whole if piece["method"] == method]
        if not own:
            continue
        cases = cases_of(own, method)
        dice, nsd, hd95 = means(cases)
        against = {case: cases[case][:1] - reference[case][:1] for case in cases if case in reference}
        difference = cell(means(against)[0], 3, "+") if against and method != "nnunet" else ""
        wins = [sum(sign * one[0] > 1e-9 for one in against.values()) for sign in (1, -1)]
        score = f"{wins[0]}, {wins[1]}" if difference else ""
        each = " ".join(f"{mean_dice([p for p in own if p['seed'] == seed]):.3f}" for seed in seeds)
        peak = max(piece["peak_gb"] for piece in own)
        gpu = max((piece["peak_gpu_gb"] or 0) for piece in own)
        memory = f"{peak:.2f}" + (f" ({gpu:.2f} on the GPU)" if gpu else "")
        minutes = np.mean([piece["seconds"] for piece in own]) / 60
        size = np.mean([piece["checkpoint_mb"] for piece in own])
        cells = [cell(dice, 3), each, difference, score, cell(nsd, 3), cell(hd95, 2), f"{minutes:.1f}", memory]
        cells += [f"{own[0]['trained_millions']:.1f}", f"{size:.0f}"]
        lines.append(f"| {name} | {len(own)} | {' | '.join(cells)} |")
    shares = sorted({piece["share"] for piece in found})
    if len(shares) > 1:
        counts = {s: next(piece["training_slices"] for piece in found if piece["share"] == s) for s in shares}
        heads = [f"{share} % ({counts[share]} slices)" for share in shares]
        lines += ["", f"| Dice by share | {' | '.join(heads)} |", "|---" * (len(shares) + 1) + "|"]
        for method, name in METHODS.items():
            rows = [cases_of([p for p in found if p["share"] == share], method) for share in shares]
            if any(rows):
                lines.append(f"| {name} | " + " | ".join(cell(means(row)[0], 3) if row else "" for row in rows) + " |")
    return lines


def cases_of(found: list[dict[str, Any]], method: str) -> dict[str, np.ndarray]:
    """Dice, NSD and HD95 of each case, averaged over seeds and folds."""
    return by_case(item for piece in found if piece["method"] == method for item in piece["cases"].items())


def mean_dice(found: list[dict[str, Any]]) -> float:
    return float(np.mean([numbers[0] for piece in found for numbers in piece["cases"].values()] or [math.nan]))


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Dice by share, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.8), layout="constrained")
    for index, (method, name) in enumerate(METHODS.items()):
        shares = sorted({piece["share"] for piece in found if piece["method"] == method})
        points = [means(cases_of([p for p in found if p["share"] == share], method))[0] for share in shares]
        if not points:
            continue
        middle = np.array([point[0] for point in points])
        ends = np.array([point[1] or (point[0], point[0]) for point in points])
        places = np.array(shares) * 1.02 ** (index - 2)  # beside each other
        bars = np.abs(ends.T - middle)
        axes.errorbar(places, middle, bars, label=name, color=COLOURS[index], marker="o", markersize=4, capsize=2)
    ticks = sorted({piece["share"] for piece in found})
    axes.set(xscale="log", xlabel="training slices, %", ylabel="Dice, mean of cases, 95 % interval")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run, piece, shown = (verbs.add_parser(name) for name in ("run", "piece", "table"))
    run.add_argument("dataset", type=Path)
    for verb in (run, piece, shown):
        verb.add_argument("work", type=Path)
    run.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    run.add_argument("--folds", nargs="+", type=int, default=[0])
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument("--shares", nargs="+", type=int, default=[100], help="per cent of the training slices")
    run.add_argument("--steps", type=int, default=1000)
    run.add_argument("--patch", nargs=2, type=int, help="instead of what nnU-Net plans")
    run.add_argument("--batch", type=int, help="instead of what nnU-Net plans")
    run.add_argument("--part", default="1/1", help="this process's part of the pieces")
    run.add_argument("--micrograph", type=Path, help="folder of axon_sem: write DATASET first, of its squares")
    run.add_argument("--prepare", action="store_true", help="prepare the data and stop")
    piece.add_argument("piece")
    shown.add_argument("--page", type=Path)
    for verb in (run, piece):
        verb.add_argument("--backbone", default="dinov3_vits16")
        verb.add_argument("--weights", default="hub")
        verb.add_argument("--device", default="auto")
        verb.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    asked = parse()
    asked.work = asked.work.resolve()
    {"run": run_all, "piece": do_piece, "table": table}[asked.verb](asked)
