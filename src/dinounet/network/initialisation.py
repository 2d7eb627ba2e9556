"""Initial values: He initialisation, as nnU-Net's `InitWeights_He(1e-2)` (arXiv 1502.01852), or none at all."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

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


class WithoutInitialValues(TorchFunctionMode):
    """Builds networks, while the block runs, without drawing the random numbers that loading replaces at once.

    Drawing them takes as long as loading PyTorch does. Every parameter must be filled afterwards.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # zeros, since PyTorch draws again what is beyond a limit
        return args[0].zero_() if func in _DRAWING else func(*args, **(kwargs or {}))


_DRAWING = {Tensor.uniform_, Tensor.normal_, Tensor.erfinv_}
