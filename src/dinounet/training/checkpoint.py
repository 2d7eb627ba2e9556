"""Checkpoints: one safetensors file with the trained tensors, the optimizer, the random state and the step.

Written whole or not at all; the one before is kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dinounet.errors import DataError
from dinounet.files import whole_file
from dinounet.progress import say
from dinounet.run import CHECKPOINT, PREVIOUS_CHECKPOINT


def save_tensors(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors, and facts as JSON in the file's header."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as temporary:
        save_file(stored, temporary, metadata={"facts": json.dumps(facts)})


def save_checkpoint(
    run: Path,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    facts: dict[str, Any],
    average: dict[str, Tensor] | None = None,
) -> None:
    """Write the run's checkpoint and keep the one before."""
    state = optimizer.state_dict()
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for index, moments in state["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    tensors |= {f"average.{name}": tensor for name, tensor in (average or {}).items()}
    tensors["random"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    if (run / CHECKPOINT).exists():
        (run / CHECKPOINT).replace(run / PREVIOUS_CHECKPOINT)
    save_tensors(run / CHECKPOINT, tensors, facts)


def load_checkpoint(
    run: Path,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Fill network, optimizer, average and random state from the run's newest readable checkpoint; return its facts.

    A run that was stopped before its first checkpoint goes on from step 0.

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
        torch.set_rng_state(tensors["random"])
        if torch.cuda.is_available() and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"])
        for error in errors:
            say("damaged", f"{error}; going on from {path.name}, the checkpoint before it")
        return facts
    if errors:
        raise DataError(f"{'; '.join(errors)}; train a new run")
    return {"step": 0, "seconds": 0.0}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
