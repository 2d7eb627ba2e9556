"""Which of several processes this one is, as torchrun or SLURM's srun say in environment variables.

Every process runs the same command; the first one alone speaks and writes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from dinounet.errors import ConfigError


@dataclass(frozen=True)
class Place:
    """This process among those that were started together."""

    rank: int = 0
    """Its number, from 0, over all nodes."""

    processes: int = 1
    """So many there are."""

    nodes: int = 1
    """On so many machines, equally many on each."""

    launcher: Literal["none", "torchrun", "srun"] = "none"
    """What started them."""

    @property
    def processes_a_node(self) -> int:
        """On this machine."""
        return self.processes // self.nodes


def my_place() -> Place:
    """Where this process stands.

    A SLURM job without srun is one process, however many tasks the job has asked for.

    Raises:
        ConfigError: the nodes have unequal shares of the processes.
    """
    told = os.environ
    if "TORCHELASTIC_RUN_ID" in told:
        processes, here = int(told["WORLD_SIZE"]), int(told["LOCAL_WORLD_SIZE"])
        rank, nodes, launcher = int(told["RANK"]), processes // here, "torchrun"
    elif "SLURM_STEP_NUM_TASKS" in told and "SLURM_PROCID" in told and "SLURM_STEP_NUM_NODES" in told:
        processes, nodes = int(told["SLURM_STEP_NUM_TASKS"]), int(told["SLURM_STEP_NUM_NODES"])
        rank, here, launcher = int(told["SLURM_PROCID"]), processes // nodes, "srun"
    else:
        return Place()
    if here * nodes != processes:
        raise ConfigError(
            f"{processes} processes can't be shared equally by the nodes; start equally many on each, with torchrun "
            "--nproc-per-node or srun --ntasks-per-node"
        )
    return Place(rank, processes, nodes, launcher)  # type: ignore[arg-type]
