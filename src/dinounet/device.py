"""Which device computes, and how precisely."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dinounet.errors import ConfigError

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda", "mps"]
"""auto: CUDA if there is one, else MPS, else the CPU."""

Precision = Literal["auto", "fp32", "bf16"]
"""auto: bf16 where the device computes with it natively, else fp32."""


def choose_device(device: Device) -> torch.device:
    """The device to use.

    Raises:
        ConfigError: this machine (or this build of PyTorch) has no such device.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, available in there.items() if available))
    if not there[device]:
        raise ConfigError(f"this machine has no {device} device that PyTorch can use; choose --device auto")
    return torch.device(device)


def choose_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """The precision to compute with; weights are float32 in any case."""
    import torch

    if precision != "auto":
        return precision
    native = {
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
        "mps": lambda: False,
        "cpu": lambda: bool(torch.cpu.get_capabilities().get("avx512_bf16")),
    }
    return "bf16" if native[device.type]() else "fp32"
