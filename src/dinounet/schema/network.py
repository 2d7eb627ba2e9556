"""The network's configuration, everything needed to rebuild it, and the record of its backbone's weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from dinounet.backbones.registry import find_variant, usual_precision
from dinounet.errors import ConfigError
from dinounet.schema.arguments import check_fields

NO_SIZES = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
"""Arguments by which timm would read files that a configuration names."""

STRIDE = 32
"""The coarsest map's; the core wants sides that are multiples of it."""

LARGEST_SCALE = 4
"""Of the image that the backbone sees: then a token of 16 pixels stands for 4 of the image."""


@dataclass(frozen=True)
class NetworkConfig:
    """What it takes to build a Dino U-Net again; the defaults are the published network.

    Raises:
        ConfigError: a value is out of range, or no backbone has that name.
    """

    architecture: Literal["dinounet"] = "dinounet"
    """Tells this configuration from a U-Net's."""

    backbone: str = "dinov3_vits16"
    """Name of the frozen backbone, as listed by `dinounet info`, or timm:NAME."""

    in_channels: int = 1
    """Channels of an input image, C."""

    num_classes: int = 2
    """Classes including background, or regions, which may overlap and need no background: K."""

    deep_supervision: bool = False
    """Whether training also reads the decoder's lower heads (at 1/2 and 1/4)."""

    taps: tuple[int, int, int, int] | None = None
    """Backbone blocks that the adapter reads, counted from 0; None for the backbone's usual four."""

    backbone_scale: float = 1.0
    """How many times finer than 1/16 the backbone's grid is, along each side: it sees the image so much larger."""

    backbone_precision: Literal["fp32", "bf16", "int8"] | None = None
    """How its linear layers' weights are held, which decides the features; None for the backbone's usual way."""

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
        check_fields(self, "network")
        variant = find_variant(self.backbone)
        for name in (
            "in_channels", "num_classes", "stem_width", "attention_heads", "attention_points", "rank",
            "convolutions_per_stage",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"network.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"network.drop_path is {self.drop_path}; it must be from 0 up to, not including, 1")
        check_scale(self.backbone_scale)
        if len(self.widths) != 4 or min(self.widths) < 1:
            raise ConfigError(f"network.widths is {list(self.widths)}; it must be four numbers of at least 1")
        for name in NO_SIZES:
            if name in self.backbone_args:
                raise ConfigError(f"network.backbone_args has {name}; leave it out, weights are chosen by --weights")
        if self.taps is None:
            return
        blocks = self.backbone_args.get("depth", variant.depth)
        if len(self.taps) != 4 or sorted({*self.taps, -1})[1:] != list(self.taps):
            raise ConfigError(
                f"network.taps is {list(self.taps)}; it must be four different blocks, from 0, in ascending order"
            )
        if variant.stages and self.taps != variant.taps:
            raise ConfigError(
                f"network.taps is {list(self.taps)} but {self.backbone} has four stages, which are all read; leave "
                "taps out"
            )
        if not variant.stages and self.taps[-1] >= blocks:
            raise ConfigError(
                f"network.taps names block {self.taps[-1]} but {self.backbone} ends with block {blocks - 1}; "
                "choose smaller numbers"
            )

    @property
    def precision_of_backbone(self) -> Literal["fp32", "bf16", "int8"]:
        """How its linear layers' weights are held."""
        return self.backbone_precision or usual_precision(find_variant(self.backbone))

    @property
    def multiple(self) -> tuple[int, int]:
        """Rows and columns of which a padded image has a multiple."""
        return STRIDE, STRIDE

    @property
    def backbone_in_words(self) -> str:
        """Its name, and how it is read."""
        taps = ", ".join(map(str, self.taps or find_variant(self.backbone).taps))
        held = "" if self.precision_of_backbone == "fp32" else f", held in {self.precision_of_backbone}"
        return f"{self.backbone}, taps {taps}, scale {self.backbone_scale:g}{held}"


def check_scale(scale: float) -> None:
    """Raise a ConfigError unless a backbone can see an image so much larger."""
    if not 1 <= scale <= LARGEST_SCALE:
        raise ConfigError(f"network.backbone_scale is {scale:g}; it must be a number from 1 to {LARGEST_SCALE}")


@dataclass(frozen=True)
class UNetConfig:
    """What it takes to build a plain U-Net again, the baseline without a backbone; `plan_unet` makes one for a patch.

    Raises:
        ConfigError: a value is out of range.
    """

    widths: tuple[int, ...]
    """Channels of each stage, from the image's own size downwards."""

    strides: tuple[tuple[int, int], ...]
    """By how much each stage is coarser than the one before, rows and columns; 1, 1 for the first."""

    architecture: Literal["unet"] = "unet"
    """Tells this configuration from Dino U-Net's."""

    in_channels: int = 1
    """Channels of an input image, C."""

    num_classes: int = 2
    """Classes including background, K."""

    deep_supervision: bool = True
    """Whether training also reads the decoder's lower heads, but for the lowest, as nnU-Net's does."""

    def __post_init__(self) -> None:
        if len(self.widths) < 3 or len(self.widths) != len(self.strides):
            raise ConfigError("network.widths and network.strides must be of equal length, for three stages at least")
        if min(self.widths) < 1 or any(stride not in (1, 2) for pair in self.strides for stride in pair):
            raise ConfigError("network.widths must be at least 1, and network.strides 1 or 2")
        if self.in_channels < 1 or self.num_classes < 2:
            raise ConfigError(
                f"network.in_channels is {self.in_channels} and network.num_classes {self.num_classes}; there must be "
                "one channel and two classes at least, background included"
            )

    @property
    def multiple(self) -> tuple[int, int]:
        """Rows and columns of which a padded image has a multiple."""
        return math.prod(rows for rows, _ in self.strides), math.prod(columns for _, columns in self.strides)


def plan_unet(patch: tuple[int, int], *, in_channels: int, num_classes: int) -> UNetConfig:
    """nnU-Net's 2D U-Net for a patch of square pixels: sides of at least 8 are halved; 32 to 512 features."""
    sides, strides = list(patch), [(1, 1)]
    while max(sides) >= 8 and (min(sides) >= 8 or max(sides) >= 12):  # one side alone needs 12
        rows, columns = (2 if side >= 8 else 1 for side in sides)
        strides.append((rows, columns))
        sides = [math.ceil(side / step) for side, step in zip(sides, strides[-1], strict=True)]
    widths = tuple(min(32 * 2**stage, 512) for stage in range(len(strides)))
    return UNetConfig(widths, tuple(strides), in_channels=in_channels, num_classes=num_classes)


@dataclass(frozen=True)
class BackboneRecord:
    """Which backbone it was: enough to find the same one again, and to notice another one."""

    name: str
    """As in `dinounet info`."""

    weights: str
    """hub, random, or the path of the file or folder that they were read from."""

    sha256: str
    """Of the numbers in the backbone, whatever file or format they came from."""

    licence: str
    """Of the weights."""

    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """How those of linear layers are held, which decides the features as well."""
