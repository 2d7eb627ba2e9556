"""Export to ONNX: networks written as graphs, in float32 or 8 bits, checked, and compared with PyTorch's."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dinounet.backbones.frozen import Network
from dinounet.bundle.export import describe_runs
from dinounet.bundle.exportable import Exportable
from dinounet.bundle.load import find_models, is_bundle, load
from dinounet.bundle.verify import data_of, hash_file, read_bundle
from dinounet.console import progress, say, without_other_loggers
from dinounet.errors import ConfigError, naming_the_extra, reason_of
from dinounet.inference.inputs import find_inputs
from dinounet.inference.models import TrainedModel, require_alike
from dinounet.inference.onnx_backend import enlarge, open_session
from dinounet.inference.predictor import Predictor
from dinounet.inference.torch_backend import load_networks
from dinounet.io import atomic_dir, require_new, require_outside, write_json
from dinounet.schema.bundle import EXPORTED, INPUT, OUTPUT, BundleRecord, OnnxFile, OnnxRecord, names_of

OPSET = 23
"""The newest that the exporter and onnxruntime both know well; it has an operator for attention."""

LARGEST_FILE = 1_900_000_000
"""Bytes of weights that are written into the file itself, which can't have 2 GiB."""

TOLERANCE = 1e-3
"""Maximum difference of the logits from PyTorch's."""

Int8 = Literal["none", "weights", "static"]


def export_onnx(
    given: Sequence[str | Path],
    output: Path,
    *,
    licence: str | None = None,
    weights: str | None = None,
    int8: Int8 = "none",
    calibrate: Sequence[Path] = (),
) -> Path:
    """Write the networks of runs, or of a bundle, with all that prediction needs.

    Args:
        given: folders of runs, or one bundle.
        output: a new folder.
        licence: that is given to the trained weights of runs; a bundle has its own.
        weights: where the backbone's are, if not where they were in training.
        int8: what is held and computed in 8 bits.
        calibrate: images that static scales are measured on.

    Raises:
        UserError: what is given is not finished or doesn't fit together, the backbone can't be had, or a network can't
            be exported.
    """
    with naming_the_extra("an export as ONNX"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    for folder in given:
        require_outside(output, Path(folder), what="the ONNX files", inside="what is exported")
    require_new(output, what="the ONNX files")
    models = find_models(given)
    for model in models:
        require_alike(model, models[0], in_one_order=True)
    bundle = _describe(models, licence)
    names = names_of(len(models))
    images = [case.images for case in find_inputs(calibrate, bundle.data)] if calibrate else []
    with atomic_dir(output) as folder:
        networks, _ = load_networks(models, weights)
        with progress("exporting", len(networks)) as advance:
            for network, name in zip(networks, names, strict=True):
                write_network(network, folder / name)
                advance()
        multiple = models[0].plan.network.multiple
        record = OnnxRecord(bundle, tuple(map(_hash, [folder / name for name in names])), multiple, OPSET)
        write_json(folder / EXPORTED, record)
        if int8 != "none":
            quantise(folder, record, int8, images)
            files = tuple(map(_hash, [folder / name for name in names]))
            write_json(folder / EXPORTED, replace(record, files=files, int8=int8, calibration_images=len(images)))
        size = sum(path.stat().st_size for path in folder.iterdir())
    say("onnx", f"{output}: {', '.join(names)}, {size / 1e6:.1f} MB", output=str(output), bytes=size)
    return output


def _describe(models: Sequence[TrainedModel], licence: str | None) -> BundleRecord:
    """As a bundle tells it."""
    folders = {model.file.parent for model in models}
    bundles = [folder for folder in folders if is_bundle(folder)]
    if any(model.is_onnx for model in models):
        raise ConfigError(f"{models[0].named} is ONNX already; give the run or the bundle that it was made of")
    if not bundles:
        return describe_runs(models, licence)
    if len(folders) > 1:
        raise ConfigError(f"{bundles[0]} is a bundle, which is exported by itself; give it alone")
    if licence:
        raise ConfigError(f"{bundles[0]} has a licence already; leave --licence out")
    return read_bundle(bundles[0])


def write_network(network: Network, path: Path) -> None:
    """Write one network, and make sure that it computes what PyTorch does.

    Raises:
        ConfigError: it can't be exported, or it computes something else.
    """
    import onnx_ir

    rows, columns = network.config.multiple
    module = Exportable(network)
    try:
        with without_other_loggers():
            traced = trace(module, network.config.in_channels, rows, columns)
            program: Any = torch.onnx.export(
                traced, dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT], verbose=False
            )
    except Exception as error:  # PyTorch's exporter raises what it likes
        raise ConfigError(
            f"the network can't be exported to ONNX ({reason_of(error)}); give one with another backbone"
        ) from None
    model = program.model
    graph = model.graph
    config = network.config
    for one, channels in ((graph.inputs[0], config.in_channels), (graph.outputs[0], config.num_classes)):
        one.shape = onnx_ir.Shape(["batch", channels, "height", "width"])
    _forget_places(model)
    large = sum(value.const_value.nbytes for value in graph.initializers.values()) > LARGEST_FILE
    onnx_ir.save(model, path, external_data=data_of(path.name) if large else None)
    _compare(module, path, rows, columns)


def trace(module: torch.nn.Module, channels: int, rows: int, columns: int) -> Any:
    """What a module does with an image (batch, channels, height, width) of any size, multiples of rows and columns."""
    example = torch.zeros(2, channels, 3 * rows, 4 * columns)
    sizes = {0: torch.export.Dim("batch", min=1), 2: _multiple_of(rows, "height"), 3: _multiple_of(columns, "width")}
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=(sizes,), strict=False)


def _multiple_of(step: int, name: str) -> Any:
    """A size, at least two of its steps."""
    size = torch.export.Dim(name, min=2, max=2**16)
    return size if step == 1 else step * size


def _forget_places(model: Any) -> None:
    """Remove what the exporter notes of each operator: the lines of code it came from, in files of this machine."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _compare(module: Exportable, path: Path, rows: int, columns: int) -> None:
    """Ask the file and PyTorch about noise of two sizes, neither of them the example's."""
    session = open_session(path, "cpu")
    channels = module.network.config.in_channels
    random = np.random.default_rng(0)
    for batch, height, width in ((1, 2, 3), (3, 4, 2)):
        image = random.standard_normal((batch, channels, height * rows, width * columns)).astype(np.float32)
        try:
            (found,) = session.run([OUTPUT], {INPUT: image})
        except Exception as error:
            raise ConfigError(
                f"the network can't be exported to ONNX: a size is fixed in it ({str(error).splitlines()[0][:200]})"
            ) from None
        with torch.inference_mode():
            expected = module.network(torch.from_numpy(image)).numpy()
        differs = float(np.abs(found - expected).max()) / max(1.0, float(np.abs(expected).max()))
        if not math.isfinite(differs) or differs > TOLERANCE:
            raise ConfigError(f"the network can't be exported to ONNX: its logits would differ by {differs:.2g}")


def _hash(path: Path) -> OnnxFile:
    data = path.with_name(data_of(path.name))
    return OnnxFile(hash_file(path), hash_file(data) if data.is_file() else None)


MOST_TILES = 64
"""Maximum number of tiles to measure scales on, drawn evenly from the images."""


def quantise(
    folder: Path, record: OnnxRecord, int8: Literal["weights", "static"], images: Sequence[Sequence[Path]] = ()
) -> None:
    """Replace the files in a folder of exported networks by ones of 8 bits.

    Args:
        folder: with a record of networks in fp32.
        record: that one.
        int8: how far.
        images: of each its files; static scales are measured on them.

    Raises:
        UserError: an image can't be read, or isn't of the kind that the networks were trained on.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    tiles = _draw_tiles(load(folder), images) if int8 == "static" else []
    with progress("quantising", len(record.names)) as advance:
        for name in record.names:
            path, whole = folder / name, folder / "fp32" / name
            whole.parent.mkdir(exist_ok=True)
            for held in (name, data_of(name)):
                if (folder / held).is_file():
                    (folder / held).rename(whole.with_name(held))
            options: dict[str, Any] = {
                "per_channel": True,
                "weight_type": QuantType.QInt8,
                "use_external_data_format": whole.with_name(data_of(name)).is_file(),
            }
            with without_other_loggers():
                if int8 == "weights":
                    quantize_dynamic(whole, path, op_types_to_quantize=["MatMul"], **options)
                else:
                    quantize_static(
                        whole, path, _Reader(tiles, record.multiple), quant_format=QuantFormat.QDQ,
                        op_types_to_quantize=["Conv", "MatMul"], activation_type=QuantType.QUInt8, **options,
                    )  # fmt: skip
            shutil.rmtree(whole.parent)
            advance()


def _draw_tiles(predictor: Predictor, images: Sequence[Sequence[Path]]) -> list[np.ndarray]:
    """Tiles (C, h, w) as the networks see them, evenly drawn from each image's."""
    each = max(1, MOST_TILES // len(images))
    drawn: list[np.ndarray] = []
    for paths in images[:MOST_TILES]:
        chosen: list[np.ndarray] = []
        chance = random.Random(0)
        for count, tile in enumerate(predictor.tiles(predictor.read(paths))):  # of unknown number: Vitter's algorithm R
            if count < each:
                chosen.append(tile)
            elif (place := chance.randint(0, count)) < each:
                chosen[place] = tile
        drawn += chosen
    return drawn


class _Reader:
    """Gives onnxruntime's tools one tile after another, enlarged to what a network is for."""

    def __init__(self, tiles: Sequence[np.ndarray], multiple: tuple[int, int]) -> None:
        self._inputs = iter({INPUT: enlarge(tile[None], multiple)} for tile in tiles)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next one, None at the end."""
        return next(self._inputs, None)
