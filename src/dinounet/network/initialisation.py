"""He initialisation, as nnU-Net's `InitWeights_He(1e-2)` (arXiv 1502.01852)."""

from __future__ import annotations

from torch import nn

from dinounet.network.adapter import Adapter
from dinounet.network.backbone import FrozenBackbone

ON_PURPOSE = (FrozenBackbone, Adapter)
"""What has initial values of its own: pretrained, or ViT-Adapter's, zeros and fans among them."""


def initialise_he(network: nn.Module) -> None:
    """Kaiming normal for leaky ReLU's slope, and zero biases, in the convolutions that would have PyTorch's values."""
    for part in network.children():
        if not isinstance(part, ON_PURPOSE):
            part.apply(_initialise)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
