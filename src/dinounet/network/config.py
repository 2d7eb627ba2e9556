"""The network's configuration: what it takes to build it again, kept in every plan and run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dinounet.errors import ConfigError
from dinounet.network.variants import find_variant


@dataclass(frozen=True)
class NetworkConfig:
    """What it takes to build a Dino U-Net again; the defaults are the published network.

    Raises:
        ConfigError: a value is out of range, or no backbone has that name.
    """

    backbone: str = "dinov3_vits16"
    """Name of the frozen backbone, as listed by `dinounet info`."""

    in_channels: int = 1
    """Channels of an input image, C."""

    num_classes: int = 2
    """Classes including background, or regions, which may overlap and need no background: K."""

    deep_supervision: bool = False
    """Whether training also reads the decoder's lower heads (at 1/2 and 1/4)."""

    taps: tuple[int, int, int, int] | None = None
    """Backbone blocks that the adapter reads, counted from 0; None for the backbone's usual four."""

    stem_width: int = 64
    """Channels of the spatial prior's first convolutions, c."""

    attention_heads: int = 16
    """Heads of the deformable attention."""

    attention_points: int = 4
    """Points that each head samples."""

    drop_path: float = 0.3
    """Probability that an interaction's feed-forward branch is skipped in training."""

    rank: int = 256
    """Channels of FAPM's two branches, r."""

    widths: tuple[int, int, int, int] = (32, 64, 128, 256)
    """Channels of the skips at 1, 1/2, 1/4 and 1/8 of the image's size, finest first."""

    convolutions_per_stage: int = 2
    """3x3 convolutions in each stage of the decoder."""

    backbone_args: dict[str, Any] = field(default_factory=dict)
    """Arguments for timm that override the named backbone's, such as depth, embed_dim and num_heads of a tiny one."""

    def __post_init__(self) -> None:
        find_variant(self.backbone)
        for name in (
            "in_channels", "num_classes", "stem_width", "attention_heads", "attention_points", "rank",
            "convolutions_per_stage",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"network.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"network.drop_path is {self.drop_path}; it must be from 0 up to, not including, 1")
        if len(self.widths) != 4 or min(self.widths) < 1:
            raise ConfigError(f"network.widths is {list(self.widths)}; it must be four numbers of at least 1")
        if self.taps is not None and (len(self.taps) != 4 or sorted({*self.taps, -1})[1:] != list(self.taps)):
            raise ConfigError(
                f"network.taps is {list(self.taps)}; it must be four different blocks, from 0, in ascending order"
            )
