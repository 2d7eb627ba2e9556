"""What the processor can compute by itself."""

from __future__ import annotations

from functools import cache


@cache
def processor_has(instructions: str) -> bool:
    """Whether it has these instructions, by PyTorch's name for them (`avx512_bf16`, `amx_bf16`); older versions of
    PyTorch can't tell, which counts as no."""
    import torch

    told = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(told.get(instructions))
