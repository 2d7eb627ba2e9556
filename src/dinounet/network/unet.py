"""A plain U-Net as nnU-Net would plan it for 2D: the baseline that Dino U-Net is compared with.

nnU-Net (arXiv 1809.10486), "network architecture": two convolutions a stage, strided convolutions down and transposed
ones up, instance norm, leaky ReLU, He initialisation, deep supervision. `tests/test_nnunet_stages.py` compares it with
nnU-Net's own class, whose package forbids timm after 1.0.22 and whose state dict holds every tensor up to three times.
Two things of that one are left out, since they change nothing: biases that instance norm takes out again, and the
lowest head, whose loss nnU-Net weighs with zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinounet.network.decoder import initialise_he, pad_to_stride, require_shape
from dinounet.schema.network import UNetConfig

T = TypeVar("T")


class UNet(nn.Module):
    """Segments an image of any size.

    Shapes: (B, C, H, W) -> logits (B, K, H, W). With `config.deep_supervision` a forward in train mode returns a list,
    finest first, down to the second lowest stage of the decoder.

    Raises:
        ConfigError: an image has another number of channels.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels, widths, classes = (config.in_channels, *config.widths), config.widths, config.num_classes
        lowest = len(widths) - 1
        self.supervised = config.deep_supervision and lowest > 2
        self.head = nn.Conv2d(widths[0], classes, 1)
        self.encoder = nn.ModuleList(
            ConvolutionBlock(channels[depth], widths[depth], config.strides[depth]) for depth in range(lowest + 1)
        )
        self.decoder: Any = nn.ModuleList(
            UpStage(
                widths[depth + 1], widths[depth], config.strides[depth + 1],
                num_classes=classes if self.supervised and 0 < depth < lowest - 1 else None,
            )
            for depth in reversed(range(lowest))
        )  # fmt: skip
        initialise_he(self)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        require_shape(image, self.config.in_channels)
        height, width = image.shape[-2:]
        padded = pad_to_stride(image, self.config.multiple)
        cut = [
            scale[
                ...,
                : math.ceil(height * scale.shape[-2] / padded.shape[-2]),
                : math.ceil(width * scale.shape[-1] / padded.shape[-1]),
            ]
            for scale in self.scales(padded)
        ]
        return cut if self.training and self.supervised else cut[0]

    def scales(self, image: Tensor) -> list[Tensor]:
        """Logits of an image whose sides are multiples of `config.multiple`; in train mode those of all heads, finest
        first."""
        features, skips = image, []
        for stage in self.encoder:
            features = stage(features)
            skips.append(features)
        skips.pop()
        lower = []
        for stage in self.decoder:
            features = stage(features, skips.pop())
            if self.training and stage.head is not None:
                lower.append(stage.head(features))
        return [self.head(features), *reversed(lower)]


class ConvolutionBlock(nn.Module):
    """Two convolutions of 3x3, each with instance norm and leaky ReLU: (B, C, H, W) -> (B, width, H / s, W / s)."""

    def __init__(self, in_channels: int, width: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1, self.norm2 = (nn.InstanceNorm2d(width, affine=True) for _ in range(2))

    def forward(self, map: Tensor) -> Tensor:
        map = F.leaky_relu(self.norm1(self.conv1(map)), 0.01, inplace=True)
        return F.leaky_relu(self.norm2(self.conv2(map)), 0.01, inplace=True)


class UpStage(nn.Module):
    """Enlarges the stage below and joins it with the encoder's: (B, below, h, w), (B, width, H, W) -> (B, width, H, W).

    With `num_classes` it also has a head for deep supervision.
    """

    def __init__(self, below: int, width: int, stride: tuple[int, int], num_classes: int | None) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(below, width, stride, stride)
        self.block = ConvolutionBlock(2 * width, width, (1, 1))
        self.head = nn.Conv2d(width, num_classes, 1) if num_classes else None

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        return self.block(torch.cat([self.up(below), skip], dim=1))


def rename_monai_keys(tensors: Mapping[str, T]) -> dict[str, T]:
    """Today's names for a U-Net's tensors, from those by which MONAI's DynUNet nested its stages; others stay.

    Files older than this have them. The order of the parameters, by which a checkpoint numbers the optimizer's moments,
    is the same.
    """
    lowest = max((key.count(".next_layer") for key in tensors), default=0)
    renamed = {}
    for key, tensor in tensors.items():
        depth = key.count(".next_layer")
        name = key.replace(".next_layer", "")
        if name.startswith("core."):
            for old, new in (
                ("core.output_block.conv.conv", "head"),
                ("core.skip_layers.downsample", f"encoder.{depth}"),
                ("core.skip_layers.upsample.conv_block", f"decoder.{lowest - 1 - depth}.block"),
                ("core.skip_layers.upsample.transp_conv.conv", f"decoder.{lowest - 1 - depth}.up"),
                ("core.skip_layers.super_head.conv.conv", f"decoder.{lowest - 1 - depth}.head"),
                ("core.skip_layers", f"encoder.{depth}"),  # the lowest stage
                (".conv1.conv.", ".conv1."),
                (".conv2.conv.", ".conv2."),
            ):
                name = name.replace(old, new)
        renamed[name] = tensor
    return renamed
