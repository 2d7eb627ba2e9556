"""Checkpoints: one safetensors file with the trained tensors, the optimizer, and facts such as the step.

Written whole or not at all; the one before is kept. There is no random state in it: patches and drop path are functions
of the seed and the step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dinounet.console import say
from dinounet.errors import DataError
from dinounet.io import atomic_write
from dinounet.network.unet import rename_monai_keys
from dinounet.schema.run import CHECKPOINT, PREVIOUS_CHECKPOINT


def save_tensors(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors, and facts as JSON in the file's header."""
    with atomic_write(path) as temporary:
        _write(temporary, tensors, facts)


def save_checkpoint(
    run: Path,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    facts: dict[str, Any],
    average: dict[str, Tensor] | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Write the run's checkpoint and keep the one before.

    At every moment there is a whole checkpoint under one of the two names.
    """
    state = optimizer.state_dict()
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for index, moments in state["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    tensors |= {f"average.{name}": tensor for name, tensor in (average or {}).items()}
    facts = {**facts, "scaler": scaler.state_dict() if scaler else None}
    with atomic_write(run / CHECKPOINT) as temporary:
        _write(temporary, tensors, facts)
        if (run / CHECKPOINT).exists():
            (run / CHECKPOINT).replace(run / PREVIOUS_CHECKPOINT)


def load_checkpoint(
    run: Path,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor] | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> dict[str, Any] | None:
    """Fill network, optimizer, average and scaler from the run's newest readable checkpoint; return its facts.

    A run that was stopped before its first checkpoint has none.

    Raises:
        DataError: there are checkpoints, and none can be read.
    """
    errors: list[str] = []
    for path in (run / CHECKPOINT, run / PREVIOUS_CHECKPOINT):
        if not path.exists():
            continue
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as damage:
            errors.append(f"{path} can't be read ({damage})")
            continue
        network.load_state_dict(_part(tensors, "network."))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _part(tensors, "optimizer.").items():
            index, moment = name.split(".", 1)
            moments.setdefault(int(index), {})[moment] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        for name, tensor in _part(tensors, "average.").items():
            if average is not None:
                average[name].copy_(tensor)
        if scaler and facts["scaler"]:
            scaler.load_state_dict(facts["scaler"])
        for error in errors:
            say("damaged", f"{error}; going on from {path.name}, the checkpoint before it")
        return facts
    if errors:
        raise DataError(f"{'; '.join(errors)}; train a new run")
    return None


def _write(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(stored, path, metadata={"facts": json.dumps(facts)})


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    part = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return rename_monai_keys(part)
