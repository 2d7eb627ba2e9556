"""Several processes that train one network, or share images: what one does before the others, how they end together.

Lightning Fabric starts them and averages the gradients. A process that fails leaves the reason in a store of key and
value, so that the main process can print it, once, for all.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Literal
from uuid import uuid4

import torch
from torch import Tensor, nn
from torch.distributed import PrefixStore, TCPStore

from dinounet.backbones.frozen import Network
from dinounet.console import quieten_lightning
from dinounet.errors import ConfigError, Interrupted, UserError
from dinounet.network.dinounet import DinoUNet
from dinounet.system import DistInfo, dist_info

GRACE = 10.0
"""Seconds that a process has for ending by itself after another has failed; then it is ended."""

FAILURES: dict[str, tuple[type[BaseException], int]] = {
    "mistake": (UserError, 2), "stopped": (Interrupted, 130), "fault": (RuntimeError, 1),
}  # fmt: skip
"""By the kind of failure: as what it is raised in the other processes, and the exit code."""


class DistributedContext:
    """This process and those that compute with it.

    Args:
        device: where each computes.
        precision: of the computation.

    Raises:
        ConfigError: there are too few devices, or the launcher's variables contradict each other.
    """

    def __init__(self, device: Literal["cpu", "cuda", "mps"], precision: Literal["fp32", "bf16", "fp16"]) -> None:
        info = dist_info()
        self.device, self.precision = device, precision
        self.rank, self.world_size = info.rank, info.world_size
        self.fabric = _make_fabric(device, precision, info)
        if self.world_size > 1:
            self.fabric.launch()
            # NCCL's and Gloo's own limits are minutes, in which no large dataset is preprocessed
            self._patient: Any = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=365))
            # torchrun's agent serves this store, so that it outlives the main process; SLURM's main process does
            home = self.fabric.strategy.cluster_environment
            everybodys = TCPStore(home.main_address, home.main_port, is_master=False)
            self._store = PrefixStore(self.fabric.broadcast(uuid4().hex), everybodys)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Run the block in the main process before the others run it."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def barrier(self) -> None:
        """Wait until every process has come here, without a limit of time."""
        if self.world_size > 1:
            torch.distributed.barrier(group=self._patient)

    def all_gather_object(self, value: Any) -> list[Any]:
        """The value of every process, in the order of their ranks."""
        values = [value] * self.world_size
        if self.world_size > 1:
            torch.distributed.all_gather_object(values, value, group=self._patient)
        return values

    def counter(self, name: str) -> Callable[[int], int]:
        """A function that adds to a number common to all, and returns how much it has grown since its last call."""
        known = 0

        def add(more: int) -> int:
            nonlocal known
            before, known = known, self._store.add(name, more)
            return known - before

        return add

    def setup(self, network: Network, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """Network and optimizer on their device; with several processes, gradients of what is trained are averaged."""
        if self.world_size == 1:
            return self.fabric.setup(network, optimizer)
        for parameter in unused_parameters(network):
            parameter.requires_grad_(False)
        if not isinstance(network, DinoUNet):
            return self.fabric.setup(network, optimizer)
        # DDP must neither broadcast what is frozen nor find it on another device, as weights on the disk are
        backbone = network.to(self.fabric.device).backbone
        network.set_submodule("backbone", nn.Identity())
        wrapped = self.fabric.setup(network, optimizer)
        network.set_submodule("backbone", backbone)
        return wrapped

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Every process's (B, ...), one after another: (processes * B, ...).

        A gradient flows into the own part alone; so a loss of what was gathered has, on each process, a share of the
        gradient, and the shares add up to the whole.
        """
        if self.world_size == 1:
            return tensor
        own = tensor.detach().contiguous()
        parts = [torch.empty_like(own) for _ in range(self.world_size)]
        torch.distributed.all_gather(parts, own)  # Fabric's goes by a function that PyTorch has deprecated
        parts[self.rank] = tensor
        return torch.cat(parts)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        return self.fabric.all_reduce(tensor.to(self.fabric.device), reduce_op="sum").cpu()

    def all_reduce_max(self, *numbers: float) -> list[float]:
        """The largest of each over all processes."""
        together = torch.tensor(numbers, dtype=torch.float64)
        if self.world_size == 1:
            return together.tolist()
        return self.fabric.all_reduce(together.to(self.fabric.device), reduce_op="max").tolist()

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """An error within the block, in any of the processes, ends it in all of them, by the same message."""
        if self.world_size == 1:
            yield
            return
        done = threading.Event()
        threading.Thread(target=self._end_after_grace, args=(done,), daemon=True).start()
        try:
            yield
        except BaseException as error:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher sends it as soon as one process has ended
            if failure := self._failure():
                raise FAILURES[failure["kind"]][0](failure["message"]) from error
            reason: BaseException = error
            if type(error) is RuntimeError:  # Gloo has no other for a lost connection
                reason = UserError(
                    f"one of the {self.world_size} processes exited unexpectedly (possibly out of memory), or this one "
                    f"failed ({str(error).splitlines()[0]}); see the launcher's messages, and go on with --resume"
                )
            kind = "mistake" if isinstance(reason, UserError) else "fault"
            kind = "stopped" if isinstance(reason, KeyboardInterrupt | Interrupted) else kind
            with suppress(RuntimeError):  # the process that keeps the store has gone
                self._store.set("failure", json.dumps({"kind": kind, "message": str(reason) or kind}))
            if reason is not error:
                raise reason from error
            raise
        finally:
            done.set()

    def _failure(self) -> dict[str, str] | None:
        """Kind and message of the first process that failed; None if none has, or if the main process is gone."""
        with suppress(RuntimeError):
            if self._store.check(["failure"]):
                return json.loads(self._store.get("failure"))
        return None

    def _end_after_grace(self, done: threading.Event) -> None:
        """A collective operation on a GPU waits for a process that has failed; nothing else ends it."""
        while not done.wait(2.0):
            failure = self._failure()
            if failure and not done.wait(GRACE):
                if self.is_main:
                    print(f"dinounet: {failure['message']}", file=sys.stderr, flush=True)
                os._exit(FAILURES[failure["kind"]][1])


def require_shares(batch: int, processes: int) -> None:
    """Make sure that each process gets as many patches of a step as the others.

    Raises:
        ConfigError: it doesn't.
    """
    if batch % processes:
        raise ConfigError(
            f"a step has {batch} patches, which {processes} processes can't share equally; start a number of processes "
            f"that divides {batch}, or a new run with --batch-size {-(-batch // processes) * processes}"
        )


def unused_parameters(network: Network) -> list[nn.Parameter]:
    """Heads without which training computes, for whose gradients DDP would wait."""
    if not isinstance(network, DinoUNet) or network.config.deep_supervision:
        return []
    return [parameter for head in list(network.decoder.heads)[:-1] for parameter in head.parameters()]


def _make_fabric(device: str, precision: str, info: DistInfo) -> Any:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import (
        LightningEnvironment,
        SLURMEnvironment,
        TorchElasticEnvironment,
    )
    from lightning_fabric.strategies import DDPStrategy

    quieten_lightning()
    here = info.local_world_size
    if device == "cuda" and here > torch.cuda.device_count():
        raise ConfigError(
            f"{here} processes were started on a machine where they see {torch.cuda.device_count()} GPUs; start one "
            "for each, and let every process see all of them"
        )
    names: Any = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    options: dict[str, Any] = {"accelerator": device, "devices": here, "precision": names[precision]}
    if info.world_size == 1:
        return Fabric(**options, plugins=[LightningEnvironment()])
    try:
        environment = TorchElasticEnvironment() if info.launcher == "torchrun" else SLURMEnvironment()
    except RuntimeError as error:  # SLURM was asked in a way that Lightning doesn't know
        raise ConfigError(f"SLURM's processes can't be used: {' '.join(str(error).split())}") from None
    # batch norm's buffers are equal without being sent
    strategy = DDPStrategy(broadcast_buffers=False)
    return Fabric(**options, num_nodes=info.nodes, strategy=strategy, plugins=[environment])
