"""OpenVINO's masks against PyTorch's in float32: shares of pixels that are other ones, in both precisions.

    OMP_NUM_THREADS=1 python benchmarks/openvino_masks.py run images --weights backbone.safetensors

Exports the run, and computes crops of its images by onnxruntime, by OpenVINO at its own choice (bf16 where the
processor has that) and in f32, and by PyTorch in bf16. Images smaller than a size are mirrored up to it.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import dinounet
from dinounet.data.preprocessing import image_to_slices
from dinounet.inference.inputs import open_input
from dinounet.inference.onnx_backend import open_session
from dinounet.inference.predictor import Predictor
from dinounet.inference.torch_backend import TorchBackend

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # else importing openvino tells its makers so


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("images", type=Path, nargs="+", help="of one file each")
    parser.add_argument("--weights", help="of the backbone")
    parser.add_argument("--sizes", nargs="+", default=["224x224", "256x320"], help="multiples of 32")
    asked = parser.parse_args()
    import openvino

    print(f"torch {torch.__version__}, openvino {openvino.__version__}, {torch.get_num_threads()} threads")
    exact = dinounet.load(asked.run, weights=asked.weights, device="cpu", precision="fp32")
    with tempfile.TemporaryDirectory() as home:
        folder = dinounet.export(asked.run, Path(home) / "onnx", format="onnx", weights=asked.weights)
        ways = {"PyTorch bf16": by(TorchBackend(exact.networks, "cpu", "bf16"))} | read_by_others(folder / "model.onnx")
        for size in asked.sizes:
            rows, columns = map(int, size.split("x"))
            compare(exact, ways, asked.images, (rows, columns))


def by(engine: TorchBackend) -> Callable[[np.ndarray], np.ndarray]:
    """Logits of an image (1, C, H, W)."""
    return lambda image: np.asarray(engine.forward(engine.networks[0], engine.to_device(image)))


def read_by_others(file: Path) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Logits as onnxruntime and OpenVINO compute them."""
    import openvino

    session = open_session(file, "cpu")
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "onnxruntime": lambda image: session.run(None, {"image": image})[0]
    }
    for options in ({}, {"INFERENCE_PRECISION_HINT": "f32"}):
        compiled = openvino.Core().compile_model(
            file, "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads(), **options}
        )
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        ways[f"OpenVINO {'as asked' if options else 'at its own choice'} ({precision})"] = (
            lambda image, compiled=compiled: compiled(image)[0]
        )
    return ways


def compare(
    exact: Predictor, ways: dict[str, Callable[[np.ndarray], np.ndarray]], images: list[Path], size: tuple[int, int]
) -> None:
    """Print how far each is from PyTorch in float32."""
    shares: dict[str, list[float]] = {name: [] for name in ways}
    errors: dict[str, list[float]] = {name: [] for name in ways}
    for path in images:
        slices = image_to_slices(open_input([path], exact.plan.data), exact.plan.data)[:1]
        lacking = [max(0, wanted - side) for wanted, side in zip(size, slices.shape[-2:], strict=True)]
        slices = np.pad(slices, ((0, 0), (0, 0), *((0, part) for part in lacking)), "symmetric")
        image = np.ascontiguousarray(slices[..., : size[0], : size[1]])
        reference = by(exact.engine)(image)
        for name, way in ways.items():
            logits = way(image)
            shares[name].append(float((logits.argmax(1) != reference.argmax(1)).mean()))
            errors[name].append(float(np.abs(logits - reference).mean()))
    print(f"{size[0]} x {size[1]}, {len(images)} images")
    for name, own in shares.items():
        off = np.mean(errors[name])
        print(f"  {name}: {np.mean(own):.4%} other pixels (at most {max(own):.4%}), logits off by {off:.2g}")


if __name__ == "__main__":
    main()
