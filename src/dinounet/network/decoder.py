"""From projected maps to class logits: learned enlargement, then nnU-Net's decoder (arXiv 1809.10486).

Shapes: four skips (B, widths[i], H/2^i, W/2^i), finest first -> logits (B, K, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinounet.errors import ConfigError
from dinounet.network.adapter import Adapter
from dinounet.network.cpu_kernels import cpu_kernels, recomputed
from dinounet.schema.network import STRIDE


class Enlarge(nn.Module):
    """Enlarges a map four times by one transposed convolution that is applied twice.

    Shapes: (B, width, h, w) -> (B, width, 4h, 4w).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)

    def forward(self, map: Tensor) -> Tensor:
        return self.up(self.up(map))


class DecoderStage(nn.Module):
    """One step up: enlarge, join the skip, convolve.

    Shapes: below (B, below_width, h, w), skip (B, width, 2h, 2w) -> (B, width, 2h, 2w).
    """

    def __init__(self, below_width: int, width: int, convolutions: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(below_width, width, kernel_size=2, stride=2)
        self.convolutions = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(2 * width if first else width, width, kernel_size=3, padding=1),
                nn.InstanceNorm2d(width, affine=True),
                nn.LeakyReLU(0.01, inplace=True),
            )
            for first in [True] + [False] * (convolutions - 1)
        )

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        (convolve, norm, act), *others = cast(Iterable[Sequence[nn.Module]], self.convolutions)
        map = convolve(torch.cat([self.up(below), skip], dim=1))
        for next_convolve, next_norm, next_act in others:
            map = normalise_and_convolve(map, norm, act, next_convolve)
            norm, act = next_norm, next_act
        return act(norm(map))


@recomputed  # a convolution's gradient needs nothing but its result, of which norm and activation are quickly made
def normalise_and_convolve(map: Tensor, norm: nn.Module, act: nn.Module, convolve: nn.Module) -> Tensor:
    """One convolution's norm and activation, then the next convolution: (B, width, H, W) -> the same."""
    return convolve(act(norm(map)))


class Decoder(nn.Module):
    """A U-Net's expanding path with a head at every scale.

    Shapes: skips, finest first, (B, widths[i], H/2^i, W/2^i) -> logits (B, K, H/2^i, W/2^i), i = 0, 1, 2.

    The lower heads exist whether or not they are used, so that a checkpoint fits both ways.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, convolutions: int) -> None:
        super().__init__()
        upwards = list(widths[::-1])
        self.stages = nn.ModuleList(DecoderStage(below, width, convolutions) for below, width in pairwise(upwards))
        self.heads = nn.ModuleList(nn.Conv2d(width, num_classes, 1) for width in upwards[1:])

    def forward(self, skips: Sequence[Tensor], scales: int = 1) -> list[Tensor]:
        """Logits of the finest `scales` scales, finest first."""
        map, *rest = skips[::-1]
        logits = []
        with cpu_kernels(map.device):  # its own, since the decoder is also called with `features`
            for index, (stage, head, skip) in enumerate(zip(self.stages, self.heads, rest, strict=True)):
                map = stage(map, skip)
                if index >= len(self.stages) - scales:
                    logits.append(head(map))
        return logits[::-1]


def require_shape(image: Tensor, channels: int) -> None:
    """Raise a ConfigError unless the image is a batch (B, channels, H, W)."""
    if image.ndim != 4 or image.shape[1] != channels:
        raise ConfigError(
            f"the image has shape {tuple(image.shape)} but the network reads (batch, {channels}, height, width)"
        )


def pad_to_stride(image: Tensor, stride: tuple[int, int] = (STRIDE, STRIDE)) -> Tensor:
    """Repeat the last row and column until both sides are multiples of the stride, and at least twice that.

    Instance norm needs more than one cell of the coarsest map.
    """
    below, right = (
        max(2, math.ceil(side / step)) * step - side for side, step in zip(image.shape[-2:], stride, strict=True)
    )
    return F.pad(image, (0, right, 0, below), mode="replicate") if below or right else image


def initialise_he(network: nn.Module) -> None:
    """Kaiming normal for leaky ReLU's slope, and zero biases, in the convolutions that would have PyTorch's values."""
    for part in network.children():
        # the backbone's are pretrained, the adapter's are ViT-Adapter's, zeros and fans among them
        if not isinstance(part, Adapter) and all(parameter.requires_grad for parameter in part.parameters()):
            part.apply(_initialise)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
