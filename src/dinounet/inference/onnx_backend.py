"""Exported networks that onnxruntime computes. PyTorch is not needed, and not imported."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinounet.errors import ConfigError, WeightsError, naming_the_extra
from dinounet.inference.models import TrainedModel
from dinounet.schema.bundle import INPUT, OUTPUT
from dinounet.system import Device, Precision, may_spin

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""Execution providers of onnxruntime, by device."""

QUIET = 3
"""Tells errors and no warnings."""


class OnnxBackend:
    """See `dinounet.inference.predictor.Engine`.

    Args:
        models: whose files are what their record says.
        device: where to compute; auto is the CPU, since an onnxruntime for GPUs is another package.
        precision: auto, or that of the files.

    Raises:
        UserError: onnxruntime isn't installed, has no such device, or can't load a file; or the precision is another.
    """

    def __init__(self, models: Sequence[TrainedModel], device: Device, precision: Precision) -> None:
        self.precision = "int8" if any(model.precision == "int8" for model in models) else "fp32"
        if precision not in ("auto", self.precision):
            raise ConfigError(f"{models[0].named} computes in {self.precision}; leave --precision {precision} out")
        self.device = "cpu" if device == "auto" else device
        self.networks = [(_open(model, self.device), model.multiple) for model in models]

    def to_device(self, pixels: np.ndarray) -> np.ndarray:
        """As they are."""
        return pixels

    def forward(self, network: tuple[Any, tuple[int, int]], tiles: np.ndarray) -> np.ndarray:
        """Enlarged to what the network is for, and cut again."""
        session, multiple = network
        (logits,) = session.run([OUTPUT], {INPUT: enlarge(tiles, multiple)})
        return logits[..., : tiles.shape[-2], : tiles.shape[-1]]

    def is_out_of_memory(self, error: Exception) -> bool:
        """By the words that onnxruntime has for it."""
        return any(words in str(error) for words in ("bad allocation", "allocate memory", "bad_alloc"))

    def describe_machine(self) -> dict[str, str]:
        """As Python sees it."""
        return {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": platform.processor() or "unknown",
            "cores": str(os.cpu_count()),
        }

    def versions(self) -> dict[str, str]:
        """Version of onnxruntime."""
        return {"onnxruntime": _onnxruntime().__version__}


def enlarge(tiles: np.ndarray, multiple: tuple[int, int]) -> np.ndarray:
    """Repeat the last row and column until both sides are multiples, and at least twice that."""
    below, right = (
        max(2, math.ceil(side / step)) * step - side for side, step in zip(tiles.shape[-2:], multiple, strict=True)
    )
    return np.pad(tiles, ((0, 0), (0, 0), (0, below), (0, right)), "edge")


def _onnxruntime() -> Any:
    with naming_the_extra("an ONNX file"):
        import onnxruntime
    return onnxruntime


def open_session(path: Path, device: str) -> Any:
    """Load an ONNX file.

    Raises:
        UserError: onnxruntime isn't installed, has no such device, or can't load it.
    """
    runtime = _onnxruntime()
    provider = PROVIDERS.get(device)
    if provider not in runtime.get_available_providers():
        raise ConfigError(f"this onnxruntime does not support {device}; choose --device cpu")
    options = runtime.SessionOptions()
    options.log_severity_level = QUIET
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit():  # which onnxruntime doesn't ask, and PyTorch does
        options.intra_op_num_threads = int(told)
    for pool in ("intra_op", "inter_op"):  # as OpenMP's threads in the program: see dinounet.threads
        options.add_session_config_entry(f"session.{pool}.allow_spinning", str(int(may_spin())))
    try:
        session = runtime.InferenceSession(path, options, providers=[provider])
    except Exception as error:  # each kind is a class of its own, of no common base
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"{path} can't be loaded by onnxruntime ({reason}); export it again") from None
    return session


def _open(model: TrainedModel, device: str) -> Any:
    """A session with the inputs and outputs that the record tells."""
    session = open_session(model.file, device)
    data = model.plan.data
    expected = {INPUT: len(data.channels), OUTPUT: len(data.labels.outputs)}
    ends = [*session.get_inputs(), *session.get_outputs()]
    found = {one.name: one.shape[1] if len(one.shape) == 4 else one.shape for one in ends}
    if found != expected:
        raise WeightsError(
            f"{model.file} is not the network that the record beside it describes: it has {found}, and {expected} are "
            "wanted; export it again"
        )
    return session
