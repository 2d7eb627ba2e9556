"""Which device computes, and how precisely."""

from __future__ import annotations

from typing import Literal

from dinounet.errors import ConfigError
from dinounet.memory import free_memory
from dinounet.processor import processor_has

Device = Literal["auto", "cpu", "cuda", "mps"]
"""auto: CUDA if there is one, else MPS, else the CPU."""

Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""auto: bf16 where the device computes with it natively, else fp32; fp16 on CUDA alone."""


def choose_device(device: Device) -> Literal["cpu", "cuda", "mps"]:
    """The device to use.

    Raises:
        ConfigError: this machine (or this build of PyTorch) has no such device.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return "cuda" if there["cuda"] else "mps" if there["mps"] else "cpu"
    if not there[device]:
        raise ConfigError(f"this machine has no {device} device that PyTorch can use; choose --device auto")
    return device


def choose_training_device(device: Device) -> Literal["cpu", "cuda", "mps"]:
    """The device to train on: CUDA or the CPU.

    Raises:
        ConfigError: this machine has no such device, or it is an Apple GPU.
    """
    if device == "mps":
        raise ConfigError(
            "training on an Apple GPU is not possible yet, since PyTorch lacks the gradient of grid_sample there; "
            "choose --device cpu (predicting works with --device mps)"
        )
    chosen = choose_device(device)
    return "cpu" if chosen == "mps" else chosen


def choose_precision(precision: Precision, device: Literal["cpu", "cuda", "mps"]) -> Literal["fp32", "bf16", "fp16"]:
    """The precision to compute with; weights are float32 in any case.

    Raises:
        ConfigError: fp16 anywhere but on CUDA.
    """
    import torch

    if precision == "fp16" and device != "cuda":
        raise ConfigError(f"fp16 is for CUDA and this run is on {device}; choose --precision bf16 or fp32")
    if precision != "auto":
        return precision
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device == "cpu":
        native = processor_has("avx512_bf16")
    else:
        native = False
    return "bf16" if native else "fp32"


def available_memory(device: str) -> int:
    """Bytes that are free on a device."""
    import torch

    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    if device == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return free_memory()
