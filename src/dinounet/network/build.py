"""From a configuration to its network."""

from __future__ import annotations

from typing import TypeAlias

from dinounet.network.backbone import FrozenBackbone
from dinounet.network.config import NetworkConfig, UNetConfig
from dinounet.network.dinounet import DinoUNet
from dinounet.network.unet import UNet

Network: TypeAlias = DinoUNet | UNet


def build_network(config: NetworkConfig | UNetConfig, backbone: FrozenBackbone | None = None) -> Network:
    """Build the configured network; `backbone` is Dino U-Net's, if it is built already."""
    return DinoUNet(config, backbone) if isinstance(config, NetworkConfig) else UNet(config)
