"""Exported networks in 8 bits, by onnxruntime's own tools and ONNX's own operators.

Weights alone: products with int8 weights, a scale for each column, whose other side is rounded as it comes
(DynamicQuantizeLinear, MatMulInteger). Static: products and convolutions between QuantizeLinear and DequantizeLinear,
whose scales were measured on images.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dinounet.bundle.load import load
from dinounet.bundle.verify import data_of
from dinounet.console import progress, without_other_loggers
from dinounet.inference.onnx_backend import enlarge
from dinounet.inference.predictor import Predictor
from dinounet.schema.bundle import INPUT, OnnxRecord

MOST_TILES = 64
"""That scales are measured on, drawn evenly from the images."""


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
