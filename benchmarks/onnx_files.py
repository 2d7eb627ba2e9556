"""ONNX against PyTorch: a run's masks on its test images, and the time of a tile; in fp32, bf16 and int8.

    OMP_NUM_THREADS=1 python benchmarks/onnx_files.py run test_images test_masks --calibrate images

Exports the run three times. Dice is the mean over cases and classes by `dinounet evaluate`. Times are of the network
alone, one tile of the run's patch, all engines taking turns; each line tells the median, the quartiles, and the ratio
to PyTorch in float32. OpenVINO reads the same file where it is installed: its logits are compared, and it is timed.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import dinounet
from dinounet.data.masks import read_mask
from dinounet.inference.predictor import Predictor
from dinounet.inference.torch_backend import TorchBackend


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--calibrate", type=Path, required=True, help="images that were trained on")
    parser.add_argument("--weights", help="of the backbone")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--keep", type=Path, help="folder for the ONNX files, used again if they are there")
    asked = parser.parse_args()
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as temporary:
        home = asked.keep or Path(temporary)
        home.mkdir(parents=True, exist_ok=True)
        exact = dinounet.load(asked.run, weights=asked.weights, device="cpu", precision="fp32")
        rounded = Predictor(TorchBackend(exact.networks, "cpu", "bf16"), exact.plan, exact.backbone)
        rounded.postprocessing = exact.postprocessing
        predictors = {"PyTorch fp32": exact, "PyTorch bf16": rounded}
        for name, options in {
            "ONNX fp32": {},
            "ONNX int8 weights": {"int8": "weights"},
            "ONNX int8 static": {"int8": "static", "calibrate": asked.calibrate},
        }.items():
            folder = home / name.replace(" ", "_")
            if not folder.exists():
                dinounet.export(asked.run, folder, format="onnx", weights=asked.weights, **options)
            size = sum(path.stat().st_size for path in folder.glob("*.onnx*")) / 1e6
            print(f"{name}: {size:.1f} MB")
            predictors[name] = dinounet.load(folder)
        compare_masks(predictors, asked.images, asked.truth, Path(temporary))
        shape = 1, len(exact.plan.data.channels), *exact.plan.data.patch
        openvino = openvino_of(home / "ONNX_fp32" / "model.onnx")
        compare_times(predictors, openvino, np.random.default_rng(0), shape, asked.rounds)


def compare_masks(predictors: dict[str, Predictor], images: Path, truth: Path, home: Path) -> None:
    """Dice of each, and where its masks differ from PyTorch's."""
    masks: dict[str, np.ndarray] = {}
    for name, predictor in predictors.items():
        folder = home / f"masks_{name.replace(' ', '_')}"
        folder.mkdir()
        for path in sorted(images.iterdir()):
            labels = predictor.predict(path)
            write_like(labels, truth / path.name, folder / path.name)
        names = ",".join(f"{label}={number}" for label, number in predictor.labels.items())
        dice = dinounet.evaluate(folder, truth, labels=names).mean_over_cases_and_classes.dice
        masks[name] = np.concatenate([read_mask(path).array.ravel() for path in sorted(folder.glob("*.png"))])
        same = (masks[name] == masks["PyTorch fp32"]).mean()
        print(f"{name}: Dice {dice:.4f}, {same:.4%} of the pixels as PyTorch", flush=True)


def write_like(labels: np.ndarray, truth: Path, path: Path) -> None:
    """A mask under the name of its truth."""
    from PIL import Image

    assert truth.is_file(), f"{truth} is missing"
    Image.fromarray(labels.astype(np.uint8)).save(path)


def openvino_of(file: Path) -> Callable[[np.ndarray], np.ndarray] | None:
    """The file as OpenVINO computes it, in as many threads as PyTorch."""
    try:
        import openvino
    except ImportError:
        print("OpenVINO is not installed: pip install openvino")
        return None
    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    try:
        compiled = openvino.Core().compile_model(file, "CPU", options)
    except RuntimeError as error:
        print(f"OpenVINO {openvino.__version__} can't read it: {str(error).strip().splitlines()[-1]}")
        return None
    return lambda image: compiled(image)[0]


def compare_times(
    predictors: dict[str, Predictor],
    openvino: Callable[[np.ndarray], np.ndarray] | None,
    random: np.random.Generator,
    shape: tuple[int, ...],
    rounds: int,
) -> None:
    """Median times of a tile, all taking turns, and how far logits are from PyTorch's."""
    ask: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        name: lambda image, one=one.engine: np.asarray(one.forward(one.networks[0], one.to_device(image)))
        for name, one in predictors.items()
    }
    if openvino:
        ask["OpenVINO fp32"] = openvino
    for sides in ((64, 96), (160, 128), shape[2:]):
        image = random.standard_normal((1, shape[1], *sides)).astype(np.float32)
        reference = ask["PyTorch fp32"](image)
        far = {name: np.abs(one(image) - reference).max() for name, one in ask.items() if name != "PyTorch fp32"}
        told = ", ".join(f"{name} {value:.2g}" for name, value in far.items())
        print(f"{sides[0]} x {sides[1]}, largest difference of logits (up to {np.abs(reference).max():.1f}): {told}")
    image = random.standard_normal(shape).astype(np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in ask}
    for _ in range(rounds):
        for name, one in ask.items():
            started = time.perf_counter()
            one(image)
            seconds[name].append(time.perf_counter() - started)
    for name, own in seconds.items():
        low, middle, high = statistics.quantiles(own, n=4)
        ratio = statistics.median(a / b for a, b in zip(seconds["PyTorch fp32"], own, strict=True))
        print(f"{name}: {middle:.3f} s a tile ({low:.3f} to {high:.3f}), {ratio:.2f} times as fast as PyTorch")


if __name__ == "__main__":
    main()
