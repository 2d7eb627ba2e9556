"""Several processes that train one network, or share images: what one does before the others, how they end together.

Lightning Fabric starts them and averages the gradients. A process that fails leaves a word in the store that all of
them reach, so that the first one can say it, once, for all.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from dinounet.backbones.frozen import Network
from dinounet.console import quieten_lightning
from dinounet.errors import ConfigError, Interrupted, UserError
from dinounet.network.dinounet import DinoUNet
from dinounet.system import Place, my_place

SECONDS_BETWEEN_LOOKS = 0.2
"""While waiting for another process."""

GRACE = 10.0
"""Seconds that a process has for ending by itself after another has failed; then it is ended."""

EXIT_CODES = {"mistake": 2, "stopped": 130, "fault": 1}
"""Of a process that has to be ended, by the kind of failure."""


class Team:
    """This process and those that train with it.

    Args:
        device: where each computes.
        precision: of the computation.

    Raises:
        ConfigError: there are too few devices, or the launcher's variables contradict each other.
    """

    sessions = 0
    """Trainings that this process has taken part in."""

    def __init__(self, device: Literal["cpu", "cuda", "mps"], precision: Literal["fp32", "bf16", "fp16"]) -> None:
        place = my_place()
        self.device, self.rank, self.size = device, place.rank, place.processes
        self.fabric = _make_fabric(device, precision, place)
        self.store: Any = None
        if self.size > 1:
            self.fabric.launch()
            everybodys = torch.distributed.distributed_c10d._get_default_store()  # there is no public way to it
            self.store = torch.distributed.PrefixStore(f"dinounet {Team.sessions}", everybodys)
            Team.sessions += 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0

    @contextmanager
    def leader_first(self, what: str) -> Iterator[None]:
        """The first process runs the block before the others do.

        They wait without a limit of time, and hear of an error or a signal meanwhile.
        """
        while not self.leads and not self.store.check([what]):
            self._hear()
            time.sleep(SECONDS_BETWEEN_LOOKS)
        yield
        if self.leads and self.store:
            self.store.set(what, "done")

    def meet(self, what: str) -> None:
        """Wait until every process has come here, without a limit of time, hearing of an error meanwhile."""
        if self.store is None:
            return
        self.store.add(what, 1)
        while self.store.add(what, 0) < self.size:
            self._hear()
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def collect(self, what: str, text: str) -> list[str]:
        """What every process has to say, for all of them, in their order."""
        if self.store is None:
            return [text]
        self.store.set(f"{what} {self.rank}", text)
        self.meet(what)
        return [self.store.get(f"{what} {rank}").decode() for rank in range(self.size)]

    def counter(self, what: str) -> Callable[[int], int]:
        """What adds to a common number, and gives how much it has grown since this process asked last."""
        known = 0

        def add(more: int) -> int:
            nonlocal known
            before, known = known, self.store.add(f"{what} (number)", more)
            return known - before

        return add

    def setup(self, network: Network, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """Network and optimizer on their device; with several processes, gradients of what is trained are averaged."""
        if self.size > 1:
            torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
                network, not_synchronised(network)
            )
        return self.fabric.setup(network, optimizer)

    def gather(self, tensor: Tensor) -> Tensor:
        """Every process's (B, ...), one after another: (processes * B, ...).

        A gradient flows into the own part alone; so a loss of what was gathered has, on each process, a share of the
        gradient, and the shares add up to the whole.
        """
        if self.size == 1:
            return tensor
        own = tensor.detach().contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        torch.distributed.all_gather(parts, own)
        parts[self.rank] = tensor
        return torch.cat(parts)

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size == 1:
            return tensor
        return self.fabric.all_reduce(tensor.to(self.fabric.device), reduce_op="sum").cpu()

    def largest(self, *numbers: float) -> list[float]:
        """The largest of each over all processes."""
        if self.size == 1:
            return list(numbers)
        together = torch.tensor(numbers, dtype=torch.float64, device=self.fabric.device)
        return self.fabric.all_reduce(together, reduce_op="max").tolist()

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """An error within the block, in any of the processes, ends it in all of them, by the same message."""
        if self.size == 1:
            yield
            return
        done = threading.Event()
        threading.Thread(target=self._end_after_grace, args=(done,), daemon=True).start()
        try:
            yield
        except BaseException as error:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher sends it as soon as one process has ended
            self._hear(after=error)
            if isinstance(error, RuntimeError) and _is_broken_connection(error):
                error = UserError(
                    f"one of the {self.size} processes has ended without a word, perhaps for want of memory; look at "
                    "the launcher's messages, and go on with --resume"
                )
            if isinstance(error, KeyboardInterrupt | Interrupted):
                self._say("stopped", str(error) or "stopped")
            else:
                self._say("mistake" if isinstance(error, UserError) else "fault", str(error))
            raise error
        finally:
            done.set()

    def _say(self, kind: str, message: str) -> None:
        """Leave the reason of the end for the others."""
        try:
            self.store.set("failure", json.dumps({"kind": kind, "message": message}))
        except RuntimeError:  # the process that keeps the store has gone
            return

    def _failure(self) -> dict[str, str] | None:
        try:
            return json.loads(self.store.get("failure")) if self.store.check(["failure"]) else None
        except RuntimeError:
            return None

    def _hear(self, after: BaseException | None = None) -> None:
        """End as another process has.

        Raises:
            UserError: another process has failed.
        """
        failure = self._failure()
        if failure:
            kinds = {"mistake": UserError, "stopped": Interrupted, "fault": RuntimeError}
            raise kinds[failure["kind"]](failure["message"]) from after

    def _end_after_grace(self, done: threading.Event) -> None:
        """A collective operation on a GPU waits for a process that has failed; nothing else ends it."""
        while not done.wait(2.0):
            failure = self._failure()
            if failure and not done.wait(GRACE):
                if self.leads:
                    print(f"dinounet: {failure['message']}", file=sys.stderr, flush=True)
                os._exit(EXIT_CODES[failure["kind"]])


def require_shares(batch: int, processes: int) -> None:
    """Make sure that each process gets as many patches of a step as the others.

    Raises:
        ConfigError: it doesn't.
    """
    if batch % processes:
        raise ConfigError(
            f"a step has {batch} patches, which {processes} processes can't share equally; start a number of processes "
            f"that divides {batch}, or a new run with --batch {-(-batch // processes) * processes}"
        )


def not_synchronised(network: Network) -> list[str]:
    """Names of what the processes need not tell each other: the frozen backbone, and heads that are not used."""
    names = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    names += [name for name, _ in network.named_buffers()]  # equal anyway, as is batch norm's
    if isinstance(network, DinoUNet) and not network.config.deep_supervision:
        used = f"decoder.heads.{len(network.decoder.heads) - 1}."
        names += [
            name
            for name, _ in network.named_parameters()
            if name.startswith("decoder.heads.") and not name.startswith(used)
        ]
    return names


def _is_broken_connection(error: RuntimeError) -> bool:
    return any(word in str(error).lower() for word in ("gloo", "connection", "nccl", "socket"))


def _make_fabric(device: str, precision: str, place: Place) -> Any:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import (
        LightningEnvironment,
        SLURMEnvironment,
        TorchElasticEnvironment,
    )
    from lightning_fabric.strategies import DDPStrategy

    quieten_lightning()
    here = place.processes_a_node
    if device == "cuda" and here > torch.cuda.device_count():
        raise ConfigError(
            f"{here} processes were started on a machine where they see {torch.cuda.device_count()} GPUs; start one "
            "for each, and let every process see all of them"
        )
    names: Any = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    options: dict[str, Any] = {"accelerator": device, "devices": here, "precision": names[precision]}
    if place.processes == 1:
        return Fabric(**options, plugins=[LightningEnvironment()])
    try:
        environment = TorchElasticEnvironment() if place.launcher == "torchrun" else SLURMEnvironment()
    except RuntimeError as error:  # SLURM was asked in a way that Lightning doesn't know
        raise ConfigError(f"SLURM's processes can't be used: {' '.join(str(error).split())}") from None
    # batch norm's buffers are equal without being sent
    strategy = DDPStrategy(broadcast_buffers=False)
    return Fabric(**options, num_nodes=place.nodes, strategy=strategy, plugins=[environment])
