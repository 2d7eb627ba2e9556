"""From a configuration to its network."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, Union

from dinounet.network.backbone import FrozenBackbone
from dinounet.network.config import NetworkConfig, UNetConfig
from dinounet.network.dinounet import DinoUNet

if TYPE_CHECKING:
    from dinounet.network.unet import UNet

Network: TypeAlias = Union[DinoUNet, "UNet"]


def build_network(config: NetworkConfig | UNetConfig, backbone: FrozenBackbone | None = None) -> Network:
    """Build the configured network; `backbone` is Dino U-Net's, if it is built already."""
    if isinstance(config, NetworkConfig):
        return DinoUNet(config, backbone)
    from dinounet.network.unet import UNet  # needs monai, which takes seconds to import

    return UNet(config)
