"""Which backbone a network stands on, as it is written down. Who only predicts by ONNX reads it without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class BackboneRecord:
    """Which backbone it was: enough to find the same one again, and to notice another one."""

    name: str
    """As in `dinounet info`."""

    weights: str
    """hub, random, or the path of the file or folder that they were read from."""

    sha256: str
    """Of the numbers in the backbone, whatever file or format they came from."""

    licence: str
    """Of the weights."""

    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """How those of linear layers are held, which decides the features as well."""
