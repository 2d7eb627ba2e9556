"""A plain U-Net as nnU-Net would plan it for 2D: the baseline that Dino U-Net is compared with.

nnU-Net (arXiv 1809.10486), "network architecture": two convolutions a stage, strided convolutions down and transposed
ones up, instance norm, leaky ReLU, He initialisation, deep supervision. MONAI's DynUNet computes it.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from dinounet.network.config import UNetConfig
from dinounet.network.dinounet import pad_to_stride, require_shape


class UNet(nn.Module):
    """Segments an image of any size.

    Shapes: (B, C, H, W) -> logits (B, K, H, W). With `config.deep_supervision` a forward in train mode returns a list,
    finest first, down to the second lowest stage of the decoder (nnU-Net weighs the lowest with zero).

    Raises:
        ConfigError: an image has another number of channels.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        from monai.networks.nets import DynUNet

        self.config = config
        lower_heads = len(config.widths) - 3
        self.supervised = config.deep_supervision and lower_heads > 0
        self.core: Any = DynUNet(
            spatial_dims=2,
            in_channels=config.in_channels,
            out_channels=config.num_classes,
            kernel_size=[3] * len(config.widths),
            strides=config.strides,
            upsample_kernel_size=config.strides[1:],
            filters=config.widths,
            norm_name=("INSTANCE", {"affine": True}),
            act_name=("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
            deep_supervision=self.supervised,
            deep_supr_num=max(lower_heads, 1),
            trans_bias=True,
        )
        # DynUNet registers its blocks twice, in these lists and nested in skip_layers, which computes; a checkpoint
        # holds every tensor once
        for name in ("input_block", "downsamples", "bottleneck", "upsamples", "deep_supervision_heads"):
            self.core._modules.pop(name, None)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        require_shape(image, self.config.in_channels)
        height, width = image.shape[-2:]
        padded = pad_to_stride(image, self.config.multiple)
        # DynUNet's own forward enlarges the lower heads to full size; the loss wants them at their own
        logits: Tensor = self.core.output_block(self.core.skip_layers(padded))
        scales = [logits, *self.core.heads] if self.training and self.supervised else [logits]
        cut = [
            scale[
                ...,
                : math.ceil(height * scale.shape[-2] / padded.shape[-2]),
                : math.ceil(width * scale.shape[-1] / padded.shape[-1]),
            ]
            for scale in scales
        ]
        return cut if self.training and self.supervised else cut[0]
