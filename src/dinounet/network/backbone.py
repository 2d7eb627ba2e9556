"""The frozen vision transformer: an image in, four token grids out.

DINOv3 (arXiv 2508.10104) or DINOv2 (arXiv 2304.07193) through timm, whose numbers are those of Meta's code. It never
trains: whatever mode the network around it is in, it stays in evaluation mode, runs without gradient, and belongs to no
checkpoint.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinounet.errors import ConfigError
from dinounet.network.config import NetworkConfig
from dinounet.network.variants import find_variant

GRID = 16
"""Pixels along the side of a token, as the adapter counts them."""


class FrozenBackbone(nn.Module):
    """Reads the patch tokens of four blocks, each after the final norm.

    Shapes: (B, 3, H, W), H and W multiples of 16, -> four of (B, H/16 * W/16, D).

    A backbone whose own patches are of 14 pixels is given the image at 14/16 of its size, so that the grid is the same.

    Its parameters need no gradient, and neither `state_dict()` nor a strict `load_state_dict()` of a network that holds
    it knows them: a checkpoint is 25 MB for S instead of 110 (and 0.9 GB instead of 27 for 7B).
    """

    def __init__(self, vit: nn.Module, taps: tuple[int, ...], patch: int = GRID) -> None:
        super().__init__()
        self.vit: Any = vit.requires_grad_(False)
        self.taps = taps
        self.patch = patch
        self.eval()
        self.register_load_state_dict_post_hook(_miss_no_frozen_tensor)

    @property
    def width(self) -> int:
        """Channels of a token, D."""
        return self.vit.embed_dim

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Stays in evaluation mode: in train mode the published code rescales RoPE at random: noisy features."""
        return super().train(False)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Adds nothing; the weights themselves are `self.vit.state_dict()`."""
        return OrderedDict() if destination is None else destination

    @torch.no_grad()
    def forward(self, image: Tensor) -> list[Tensor]:
        if self.patch != GRID:
            size = [side // GRID * self.patch for side in image.shape[-2:]]
            with torch.autocast(image.device.type, enabled=False):  # not in bfloat16, which the CPU can't
                image = F.interpolate(image.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
        return self.vit.forward_intermediates(
            image, indices=list(self.taps), norm=True, stop_early=True, output_fmt="NLC", intermediates_only=True
        )


def build_backbone(config: NetworkConfig) -> FrozenBackbone:
    """Build the configured backbone with timm's initial values; `dinounet.network.weights` fills it.

    Raises:
        ConfigError: timm can't build it so, or a tap lies beyond its last block.
    """
    variant = find_variant(config.backbone)
    arguments = {"dynamic_img_size": True, **config.backbone_args}
    try:
        vit = timm.create_model(variant.timm_name, pretrained=False, num_classes=0, **arguments)
        if config.backbone_args:  # some arguments only fail when they are used
            with torch.no_grad():
                vit(torch.zeros(1, 3, 2 * variant.patch, 2 * variant.patch, device=vit.cls_token.device))
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"backbone {config.backbone} can't be built with {config.backbone_args}: {error}") from error
    taps = config.taps or variant.taps
    if taps[-1] >= len(vit.blocks):
        raise ConfigError(
            f"network.taps names block {taps[-1]} but {config.backbone} ends with block {len(vit.blocks) - 1}; "
            "choose smaller numbers"
        )
    return FrozenBackbone(vit, taps, variant.patch)


def _miss_no_frozen_tensor(backbone: nn.Module, incompatible: Any) -> None:
    """Strike the frozen tensors from what a checkpoint is said to lack."""
    assert isinstance(backbone, FrozenBackbone)
    own = tuple(f"vit.{name}" for name in backbone.vit.state_dict())
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if not key.endswith(own)]
