"""Dino U-Net: a frozen vision transformer, an adapter, a projection and a U-Net decoder.

Dino U-Net (arXiv 2508.20909), figure 2. Tensors in, tensors out, no files. Shapes: (B, C, H, W) -> logits (B, K, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dinounet.errors import ConfigError
from dinounet.network.adapter import Adapter
from dinounet.network.cpu_kernels import cpu_kernels, in_fastest_order
from dinounet.network.decoder import Decoder, Enlarge, pad_to_stride, require_shape
from dinounet.network.fapm import FidelityAwareProjection
from dinounet.schema.network import NetworkConfig


class DinoUNet(nn.Module):
    """Segments an image of any size and any number of channels.

    Shapes: (B, C, H, W), any H, W >= 1 -> logits (B, K, H, W). With `config.deep_supervision` a forward in train mode
    returns a list, finest first: logits at 1, 1/2 and 1/4 of the size (rounded up).

    One channel is repeated to three and three are taken as they are, as published. Of any other number the spatial
    prior reads all channels, and the backbone reads three fixed mixtures of them, the buffer `channel_projection`
    (3, C): by default each is the mean. (The published code drops what is beyond the third channel.)

    Args:
        config: what to build.
        backbone: the frozen module that reads it, as `dinounet.build_backbone(config)` makes one: `forward` gives four
            taps (B, h * w, widths[i]) of an image (B, 3, H, W), and `grids` their rows and columns.

    Raises:
        ConfigError: the configuration contradicts itself, or an image has another number of channels.
    """

    channel_projection: Tensor | None

    def __init__(self, config: NetworkConfig, backbone: Any) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        width = self.backbone.width
        if width != config.backbone_width:
            raise ConfigError(
                f"network.backbone_width is {config.backbone_width}, but the backbone has {width} channels; give "
                "the one that `dinounet.build_backbone` makes of the same configuration"
            )
        mixes = config.in_channels not in (1, 3)
        self.adapter = Adapter(
            config.in_channels if mixes else 3,
            width,
            stem_width=config.stem_width,
            heads=config.attention_heads,
            points=config.attention_points,
            drop_path=config.drop_path,
            tap_widths=self.backbone.widths,
        )
        self.fapm = FidelityAwareProjection(width, config.rank, config.widths)
        self.enlarge = nn.ModuleList(Enlarge(skip_width) for skip_width in config.widths)
        self.decoder = Decoder(config.widths, config.num_classes, config.convolutions_per_stage)
        projection = torch.full((3, config.in_channels), 1 / config.in_channels) if mixes else None
        self.register_buffer("channel_projection", projection)

    def forward(self, image: Tensor, *taps: Tensor) -> Tensor | list[Tensor]:
        """Logits; `taps` are `backbone_features` of this image, where they are known already."""
        require_shape(image, self.config.in_channels)
        height, width = image.shape[-2:]
        with cpu_kernels(image.device):
            skips = self.encode(pad_to_stride(image), taps)
        logits = cut_to_size(self.decoder(skips, scales=3 if self.supervises else 1), height, width)
        return logits if self.supervises else logits[0]

    @property
    def supervises(self) -> bool:
        """Whether a forward gives the lower heads' logits too."""
        return self.training and self.config.deep_supervision

    def backbone_features(self, image: Tensor) -> list[Tensor]:
        """The four taps of the frozen backbone, (B, h * w, D), for an image of any size."""
        with cpu_kernels(image.device):
            return self.backbone(self._three_channels(pad_to_stride(image)))

    def features(self, image: Tensor) -> list[Tensor]:
        """The skips of an image of any size, cut to it: (B, widths[i], H/2^i, W/2^i), rounded up, finest first."""
        require_shape(image, self.config.in_channels)
        with cpu_kernels(image.device):
            skips = self.encode(pad_to_stride(image))
        return cut_to_size(skips, *image.shape[-2:])

    def encode(self, image: Tensor, taps: Sequence[Tensor] = ()) -> list[Tensor]:
        """The decoder's skips, finest first: (B, widths[i], H/2^i, W/2^i); the image's sides are multiples of 32."""
        image = in_fastest_order(image.expand(-1, 3, -1, -1) if image.shape[1] == 1 else image)
        taps = [tap.to(image.dtype) for tap in taps] or self.backbone(self._three_channels(image))
        maps = self.adapter(image, taps, self.backbone.grids(image.shape[-2:]))
        return [enlarge(map) for enlarge, map in zip(self.enlarge, self.fapm(maps), strict=True)]

    def _three_channels(self, image: Tensor) -> Tensor:
        if self.channel_projection is None:
            return image.expand(-1, 3, -1, -1)
        return torch.einsum("rc,bchw->brhw", self.channel_projection, image)


def cut_to_size(maps: Sequence[Tensor], height: int, width: int) -> list[Tensor]:
    """The maps at 1, 1/2, 1/4 ... of an image's size, (B, C, height/2^i, width/2^i) rounded up, without padding."""
    return [map[..., : math.ceil(height / 2**scale), : math.ceil(width / 2**scale)] for scale, map in enumerate(maps)]
