"""Prediction against nnU-Net's own predictor driving the same network on the same files: throughput, cold start, masks.

    python benchmarks/prediction.py --data ../shared/data          # in an environment with the extra nnunet

Two datasets are made of real images: crops of 256 x 256 of a micrograph (20 PNGs to predict), and the CTs (one to
predict). nnU-Net fingerprints and plans them; a Dino U-Net S is trained on them for a few steps, with nnU-Net's patch,
spacing and statistics, so that both do the same. Every measurement is a process of its own; the two take turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from dinounet.backbones.registry import network_config

HERE = Path(__file__).resolve()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with axon_sem and lung_ct")
    parser.add_argument("--cases", nargs="+", default=["pngs", "ct"], choices=["pngs", "ct"])
    parser.add_argument("--tta", nargs="+", default=["none", "flip"], choices=["none", "flip"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="of training, so that masks are not noise")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--keep", type=Path, help="folder for datasets and runs, used again if it is there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = asked.keep or Path(temporary)
        home.mkdir(parents=True, exist_ok=True)
        print("| images | tta | ours | cold start | warm | equal pixels |\n|---|---|---|---|---|---|", flush=True)
        for case in asked.cases:
            make = make_pngs if case == "pngs" else make_ct
            if not (home / case / "run").is_dir():
                prepare(make(home / case, asked.data), home / case, asked.steps, asked.weights)
            for tta in asked.tta:
                compare(home / case, case, tta, asked.runs)


def compare(home: Path, case: str, tta: str, runs: int) -> None:
    """Print a line of the table for each of our precisions."""
    measured: dict[str, list[dict[str, float]]] = {"nnunet": [], "fp32": [], "bf16": []}
    for _ in range(runs):
        for who, results in measured.items():
            started = time.monotonic()
            command = [sys.executable, str(HERE.with_name(HERE.name)), str(home), who, tta]
            done = subprocess.run([*command, "--work"], capture_output=True, text=True, env=environment(home))
            if done.returncode:
                sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
            cold = time.monotonic() - started
            warm = json.loads(done.stdout.splitlines()[-1])
            results.append({"cold": cold - warm["second"], "warm": warm["second"]})
    for precision in ("fp32", "bf16"):
        ratios = {
            name: [
                theirs[name] / ours[name] for theirs, ours in zip(measured["nnunet"], measured[precision], strict=True)
            ]
            for name in ("cold", "warm")
        }
        seconds = {
            who: {name: statistics.median(one[name] for one in measured[who]) for name in ("cold", "warm")}
            for who in ("nnunet", precision)
        }
        told = [
            f"{statistics.median(ratios[name]):.2f}x ({min(ratios[name]):.2f} to {max(ratios[name]):.2f}; "
            f"{seconds['nnunet'][name]:.1f} s, ours {seconds[precision][name]:.1f} s)"
            for name in ("cold", "warm")
        ]
        equal = equal_pixels(home / f"nnunet_{tta}", home / f"{precision}_{tta}")
        print(f"| {case} | {tta} | {precision} | {told[0]} | {told[1]} | {equal:.3%} |", flush=True)


def equal_pixels(theirs: Path, ours: Path) -> float:
    from dinounet.data.images import ENDINGS, ending_of, read_image

    equal = total = 0
    for path in sorted(theirs.iterdir()):
        if ending_of(path) in ENDINGS:
            a, b = (read_image([folder / path.name]).array for folder in (theirs, ours))
            equal, total = equal + int((a == b).sum()), total + a.size
    return equal / total


def make_pngs(home: Path, data: Path) -> Path:
    """A dataset in nnU-Net's layout: 12 crops to learn from, 20 to predict."""
    from PIL import Image

    root = home / "raw" / "Dataset911_Axons"
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (root / folder).mkdir(parents=True)
    image = np.asarray(Image.open(data / "axon_sem" / "image.png").convert("L"))
    mask = np.asarray(Image.open(data / "axon_sem" / "mask.png").convert("L"))
    random = np.random.RandomState(0)
    for index in range(32):
        y, x = random.randint(0, image.shape[0] - 256), random.randint(0, image.shape[1] - 256)
        part = "Tr" if index < 12 else "Ts"
        Image.fromarray(image[y : y + 256, x : x + 256]).save(root / f"images{part}" / f"axon_{index:02}_0000.png")
        if part == "Tr":
            labels = np.digitize(mask[y : y + 256, x : x + 256], (64, 192)).astype(np.uint8)
            Image.fromarray(labels).save(root / "labelsTr" / f"axon_{index:02}.png")
    describe(root, ".png", {"0": "EM"}, {"background": 0, "myelin": 1, "axon": 2}, 12)
    return root


def make_ct(home: Path, data: Path) -> Path:
    """A dataset in nnU-Net's layout: both CTs to learn from, the second to predict."""
    root = home / "raw" / "Dataset912_Lungs"
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (root / folder).mkdir(parents=True)
    for name in ("lung1", "lung2"):
        image, label = (data / "lung_ct" / f"{name}_{what}.nrrd" for what in ("image", "label"))
        (root / "imagesTr" / f"{name}_0000.nrrd").symlink_to(image.resolve())
        (root / "labelsTr" / f"{name}.nrrd").symlink_to(label.resolve())
    (root / "imagesTs" / "lung2_0000.nrrd").symlink_to((data / "lung_ct" / "lung2_image.nrrd").resolve())
    describe(root, ".nrrd", {"0": "CT"}, {"background": 0, "tumour": 1}, 2)
    return root


def describe(root: Path, ending: str, channels: dict[str, str], labels: dict[str, int], count: int) -> None:
    content = {"channel_names": channels, "labels": labels, "numTraining": count, "file_ending": ending}
    (root / "dataset.json").write_text(json.dumps(content))


def environment(home: Path) -> dict[str, str]:
    folders = {f"nnUNet_{name}": str(home / name) for name in ("raw", "preprocessed", "results")}
    return {**os.environ, **folders, "nnUNet_compile": "0", "nnUNet_def_n_proc": str(os.cpu_count())}


def prepare(root: Path, home: Path, steps: int, weights: str) -> None:
    """nnU-Net's plan, and our run by the same decisions."""
    os.environ |= environment(home)
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    import dinounet
    from dinounet.data.dataset import read_dataset
    from dinounet.io import write_json
    from dinounet.planning.data_plan import plan_data
    from dinounet.planning.planner import make_plan
    from dinounet.schema.plan import Intensities
    from dinounet.schema.recipe import RECIPES

    extractor = DatasetFingerprintExtractor(root.name, num_processes=1)
    fingerprint = extractor.run()
    planner = ExperimentPlanner(root.name)
    planned = planner.plan_experiment()["configurations"]["2d"]
    (measured,) = fingerprint["foreground_intensity_properties_per_channel"].values()
    names = ("mean", "std", "percentile_00_5", "percentile_99_5")
    known = plan_data(read_dataset(root), tuple(int(side) for side in planned["patch_size"]))
    same = replace(known.channels[0], intensities=Intensities(**{name: float(measured[name]) for name in names}))
    spacing = known.spacing and tuple(float(distance) for distance in planned["spacing"])
    recipe = replace(RECIPES["default"], steps=steps)
    plan = make_plan(replace(known, channels=(same,), spacing=spacing), recipe, network_config())
    write_json(home / "plan.json", plan)
    dinounet.train(root, home / "run", plan=home / "plan.json", weights=weights, fold="all", report=False)


def work(home: Path, who: str, tta: str) -> None:
    """Predict twice in this process, and print what the second time took."""
    (root,) = (home / "raw").iterdir()
    images = sorted((root / "imagesTs").iterdir())
    output = home / f"{who}_{tta}"
    predict = by_nnunet(home, root, tta) if who == "nnunet" else by_us(home, who, tta)
    for _ in range(2):
        started = time.monotonic()
        predict(images, output)
    print(json.dumps({"second": time.monotonic() - started}))


def by_us(home: Path, precision: str, tta: str):
    import shutil

    import dinounet
    from dinounet.inference.folder import predict_folder, record_prediction
    from dinounet.inference.inputs import find_inputs
    from dinounet.inference.outputs import Outputs, choose_endings

    predictor = dinounet.load(home / "run", precision=precision, tta=tta)

    def predict(images: list[Path], output: Path) -> None:
        shutil.rmtree(output, ignore_errors=True)
        cases = find_inputs(images, predictor.plan.data)
        outputs = Outputs(output, choose_endings(cases, None, predictor.plan.data.labels.largest))
        predict_folder(predictor, cases, outputs, record_prediction(predictor))

    return predict


def by_nnunet(home: Path, root: Path, tta: str):
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    import dinounet

    (plans,) = (home / "preprocessed" / root.name).glob("*Plans.json")
    manager = PlansManager(json.loads(plans.read_text()))
    network = dinounet.load(home / "run", precision="fp32").networks[0]
    predictor = nnUNetPredictor(
        use_mirroring=tta == "flip", perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    description = json.loads((root / "dataset.json").read_text())
    predictor.manual_initialization(
        network, manager, manager.get_configuration("2d"), [network.state_dict()], description, "nnUNetTrainer", (0, 1)
    )

    def predict(images: list[Path], output: Path) -> None:
        output.mkdir(exist_ok=True)
        stems = [str(output / path.name.split("_0000")[0]) for path in images]
        predictor.predict_from_files([[str(path)] for path in images], stems, save_probabilities=False, overwrite=True)

    return predict


if __name__ == "__main__":
    if sys.argv[-1] == "--work":
        work(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
    else:
        main()
