"""Networks that PyTorch computes: built, filled, and asked for logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dinounet.backbones.frozen import FrozenBackbone, Network, WithoutInitialValues, build_backbone, build_network
from dinounet.backbones.weights import fill_backbone
from dinounet.errors import WeightsError
from dinounet.inference.models import TrainedModel
from dinounet.network.unet import rename_monai_keys
from dinounet.schema.network import BackboneRecord, NetworkConfig
from dinounet.system import machine


class TorchBackend:
    """See `dinounet.inference.predictor.Engine`.

    Args:
        networks: trained, their backbones filled.
        device: where to compute.
        precision: fp32, bf16 or fp16.
    """

    def __init__(self, networks: Sequence[Network], device: str, precision: str) -> None:
        self.networks = [network.to(device).eval() for network in networks]
        self.device = device
        self.precision = precision

    def to_device(self, pixels: np.ndarray) -> Tensor:
        """On the device."""
        return torch.from_numpy(pixels).to(self.device)

    @torch.inference_mode()
    def forward(self, network: Network, tiles: Tensor) -> Tensor:
        """By autocast, unless the precision is fp32."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        with torch.autocast(self.device.partition(":")[0], dtype=dtype, enabled=self.precision != "fp32"):
            return network(tiles).float()

    def is_out_of_memory(self, error: Exception) -> bool:
        """PyTorch's error for that, or on a CPU the words for it."""
        return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)

    def describe_machine(self) -> dict[str, str]:
        """As PyTorch sees it."""
        return machine()

    def versions(self) -> dict[str, str]:
        """PyTorch's is among those of every record."""
        return {}


def load_networks(
    models: Sequence[TrainedModel], weights: str | None, *, offload: bool = False
) -> tuple[list[Network], BackboneRecord | None]:
    """The networks, trained and on the CPU, and what the first one stands on.

    Args:
        models: of which those that stand on the same backbone share it.
        weights: where to find the backbone's if not where they were in training.
        offload: leave the backbone on the disk.

    Raises:
        WeightsError: the backbone's can't be had or are others, or a model's file is damaged.
    """
    networks: list[Network] = []
    filled: list[tuple[TrainedModel, Any, BackboneRecord]] = []
    for model in models:
        shared = next((one for one in filled if _same_backbone(one[0], model)), None)
        with WithoutInitialValues():
            network = build_network(model.plan.network, shared[1] if shared else _outline(model, offload))
        if model.backbone and not shared:
            filled.append((model, network.backbone, _fill(network, model.backbone, weights, model)))
        try:
            network.load_state_dict(rename_monai_keys(load_file(model.file)))
        except (SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise WeightsError(f"{model.file} is damaged ({reason}); copy the run again") from None
        networks.append(network)
    return networks, filled[0][2] if models[0].backbone else None


def _outline(model: TrainedModel, offload: bool) -> FrozenBackbone | None:
    """The model's backbone, not filled yet; a U-Net has none."""
    config = model.plan.network
    return build_backbone(config, offload=offload) if isinstance(config, NetworkConfig) else None


def _same_backbone(one: TrainedModel, other: TrainedModel) -> bool:
    """Whether one backbone in memory serves both."""
    hashes = [model.backbone and model.backbone.sha256 for model in (one, other)]
    return None not in hashes and hashes[0] == hashes[1] and one.plan.network == other.plan.network


def _fill(network: Any, known: BackboneRecord, weights: str | None, model: TrainedModel) -> BackboneRecord:
    """Give the network the backbone that it was trained on."""
    found = fill_backbone(network.backbone, known.name, weights or known.weights, model.seed)
    if found.sha256 != known.sha256:
        raise WeightsError(
            f"the weights from {found.weights} are not those that {model.named} was trained on (sha256 "
            f"{found.sha256[:12]}, not {known.sha256[:12]}); pass the right ones with --weights"
        )
    return found
