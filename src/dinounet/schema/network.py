"""The network's configuration, everything needed to rebuild it, and the record of its backbone's weights."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field

from dinounet.errors import ConfigError
from dinounet.schema.base import Positive, record

Step: TypeAlias = Annotated[int, Field(ge=1, le=2)]

NO_SIZES = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
"""Arguments by which timm would read files that a configuration names."""

STRIDE = 32
"""The coarsest map's; the core wants sides that are multiples of it."""

LARGEST_SCALE = 4
"""Of the image that the backbone sees: then a token of 16 pixels stands for 4 of the image."""

Scale: TypeAlias = Annotated[float, Field(ge=1, le=LARGEST_SCALE)]


@record
class NetworkConfig:
    """Everything needed to build a Dino U-Net again; the defaults are the published network.

    What follows from the backbone's name stands here as a fact, which `dinounet.network_config` finds out: nothing
    looks the name up before the backbone is built, which is when the two must agree.

    Raises:
        ConfigError: a value is out of range.
    """

    backbone: str
    """Name of the frozen backbone, as listed by `dinounet info`, or timm:NAME."""

    backbone_width: Positive
    """Channels of a token as the adapter reads it, D; of a convolutional backbone those of its stage at 1/16."""

    taps: tuple[int, int, int, int]
    """Backbone blocks that the adapter reads, counted from 0; of a convolutional backbone its four stages."""

    backbone_precision: Literal["fp32", "bf16", "int8"]
    """Precision in which its linear layers' weights are stored, which affects the features."""

    architecture: Literal["dinounet"] = "dinounet"
    """Discriminates this configuration from a U-Net's."""

    in_channels: Positive = 1
    """Channels of an input image, C."""

    num_classes: Positive = 2
    """Classes including background, or regions, which may overlap and need no background: K."""

    deep_supervision: bool = False
    """Whether training also reads the decoder's lower heads (at 1/2 and 1/4)."""

    backbone_scale: Scale = 1.0
    """Factor by which the backbone's grid is finer than 1/16, along each side: images are enlarged by it."""

    stem_width: Positive = 64
    """Channels of the spatial prior's first convolutions, c."""

    attention_heads: Positive = 16
    """Heads of the deformable attention."""

    attention_points: Positive = 4
    """Points that each head samples."""

    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Probability that an interaction's feed-forward branch is skipped in training."""

    rank: Positive = 256
    """Channels of FAPM's two branches, r."""

    widths: tuple[Positive, Positive, Positive, Positive] = (32, 64, 128, 256)
    """Channels of the skips at 1, 1/2, 1/4 and 1/8 of the image's size, finest first."""

    convolutions_per_stage: Positive = 2
    """3x3 convolutions in each stage of the decoder."""

    backbone_args: dict[str, Any] = field(default_factory=dict)
    """Arguments for timm that override the named backbone's, such as depth, embed_dim and num_heads of a tiny one."""

    PLACE: ClassVar[str] = "network"

    def __post_init__(self) -> None:
        for name in NO_SIZES:
            if name in self.backbone_args:
                raise ConfigError(f"network.backbone_args has {name}; leave it out, weights are chosen by --weights")
        if sorted({*self.taps, -1})[1:] != list(self.taps):
            raise ConfigError(
                f"network.taps is {list(self.taps)}; it must be four different blocks, from 0, in ascending order"
            )
        if (self.backbone_width // 2) % self.attention_heads:
            raise ConfigError(
                f"network.attention_heads is {self.attention_heads}, which does not divide {self.backbone_width // 2}, "
                f"half the width of {self.backbone}"
            )

    @property
    def multiple(self) -> tuple[int, int]:
        """Rows and columns of which a padded image has a multiple."""
        return STRIDE, STRIDE

    @property
    def backbone_in_words(self) -> str:
        """Its name, and how it is read."""
        taps = ", ".join(map(str, self.taps))
        held = "" if self.backbone_precision == "fp32" else f", held in {self.backbone_precision}"
        return f"{self.backbone}, taps {taps}, scale {self.backbone_scale:g}{held}"


def check_scale(scale: float) -> None:
    """Raise a ConfigError unless a backbone can see an image so much larger."""
    if not 1 <= scale <= LARGEST_SCALE:
        raise ConfigError(f"network.backbone_scale is {scale:g}; it must be a number from 1 to {LARGEST_SCALE}")


@record
class UNetConfig:
    """What it takes to build a plain U-Net again, the baseline without a backbone; `plan_unet` makes one for a patch.

    Raises:
        ConfigError: a value is out of range.
    """

    widths: tuple[Positive, ...]
    """Channels of each stage, from the image's own size downwards."""

    strides: tuple[tuple[Step, Step], ...]
    """By how much each stage is coarser than the one before, rows and columns; 1, 1 for the first."""

    architecture: Literal["unet"] = "unet"
    """Discriminates this configuration from a Dino U-Net's."""

    in_channels: Positive = 1
    """Channels of an input image, C."""

    num_classes: Annotated[int, Field(ge=2)] = 2
    """Classes including background, K."""

    deep_supervision: bool = True
    """Whether training also reads the decoder's lower heads, but for the lowest, as nnU-Net's does."""

    PLACE: ClassVar[str] = "network"

    def __post_init__(self) -> None:
        if len(self.widths) < 3 or len(self.widths) != len(self.strides):
            raise ConfigError("network.widths and network.strides must be of equal length, for three stages at least")

    @property
    def multiple(self) -> tuple[int, int]:
        """Rows and columns of which a padded image has a multiple."""
        return math.prod(rows for rows, _ in self.strides), math.prod(columns for _, columns in self.strides)


AnyNetworkConfig: TypeAlias = Annotated[NetworkConfig | UNetConfig, Field(discriminator="architecture")]
"""Configuration of either network; its architecture says of which."""


def plan_unet(patch: tuple[int, int], *, in_channels: int, num_classes: int) -> UNetConfig:
    """nnU-Net's 2D U-Net for a patch of square pixels: sides of at least 8 are halved; 32 to 512 features."""
    sides, strides = list(patch), [(1, 1)]
    while max(sides) >= 8 and (min(sides) >= 8 or max(sides) >= 12):  # one side alone needs 12
        rows, columns = (2 if side >= 8 else 1 for side in sides)
        strides.append((rows, columns))
        sides = [math.ceil(side / step) for side, step in zip(sides, strides[-1], strict=True)]
    widths = tuple(min(32 * 2**stage, 512) for stage in range(len(strides)))
    return UNetConfig(widths, tuple(strides), in_channels=in_channels, num_classes=num_classes)


@record
class BackboneRecord:
    """Identity of a backbone: enough to find the same one again, and to detect another one."""

    name: str
    """Name as in `dinounet info`."""

    weights: str
    """hub, random, or the path of the file or folder that they were read from."""

    sha256: str
    """sha256 of the backbone's parameters, whatever file or format they came from."""

    licence: str
    """Licence of the weights."""

    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """Precision in which linear layers' weights are stored, which affects the features as well."""
