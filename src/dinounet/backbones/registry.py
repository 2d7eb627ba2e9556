"""The backbones by name: a table with provenance, licence and costs, and what timm says of others."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dinounet.errors import ConfigError
from dinounet.schema.network import NetworkConfig

DINOV3_LICENCE = "DINOv3 License (https://ai.meta.com/resources/models-and-libraries/dinov3-license)"
DINOV2_LICENCE = "Apache-2.0"
DINOV3_PAGE = "https://github.com/facebookresearch/dinov3"
DINOV2_PAGE = "https://github.com/facebookresearch/dinov2"

DEFAULT = "dinov3_vits16"
"""Name of the backbone that is taken unless another is asked for."""

TIMM = "timm:"
"""Begins the name of a backbone that isn't in the table but in timm."""

SIDE = 512
"""Side, in pixels, of the image that costs refer to."""

STAGE_STRIDES = (4, 8, 16, 32)
"""Pixels along the cells of the four stages that a convolutional backbone gives."""


@dataclass(frozen=True)
class BackboneVariant:
    """Facts about one backbone, before it is built."""

    name: str
    """Name as given to `--backbone`."""

    timm_name: str
    """Architecture and weights in timm; `_qkvb` keeps the bias of query and value, which the plain one drops."""

    width: int
    """Channels of a token in the adapter, D."""

    depth: int
    """Transformer blocks, or the blocks of all stages."""

    taps: tuple[int, int, int, int]
    """Blocks (counted from 0) whose output the adapter reads; of a pyramid, its stages."""

    frozen: int
    """Parameters as timm builds it: without those that only pretraining uses, and without a classifier."""

    gmac: float
    """Multiplications and additions of one 512 x 512 image, in 10^9 pairs, at scale 1."""

    repository: str | None
    """Repository on the Hugging Face Hub for `--weights hub`; None: there are no weights."""

    licence: str = DINOV3_LICENCE
    """Licence of the weights."""

    commercial: str = "yes, on its conditions"
    """Whether the licence allows commercial use: yes, no, or unknown."""

    page: str = DINOV3_PAGE
    """The project that made the weights: where to read about them, and to get them otherwise."""

    patch: int = 16
    """Pixels along a token's side. The network has tokens of 16: with others, the backbone's image is resized."""

    stages: tuple[int, int, int, int] | None = None
    """Channels of the four stages of a pyramid (at 1/4, 1/8, 1/16 and 1/32); None for a transformer's tokens."""

    measured: tuple[float, float] | None = None
    """GB for prediction and training as `memory_at` means them, where `benchmarks/backbones.py` measured them."""


def _vit3(
    letter: str, size: str, width: int, depth: int, taps: tuple[int, int, int, int], frozen: int, gmac: float,
    measured: tuple[float, float] | None = None, *, satellite: bool = False,
) -> BackboneVariant:  # fmt: skip
    name = f"dinov3_vit{letter.replace('+', '')}16{'plus' if '+' in letter else ''}{'_sat' if satellite else ''}"
    bias = "" if letter == "7b" else "_qkvb"  # which 7B hasn't
    timm_name = f"vit_{size}_patch16_dinov3{bias}.{'sat493m' if satellite else 'lvd1689m'}"
    return BackboneVariant(name, timm_name, width, depth, taps, frozen, gmac, f"timm/{timm_name}", measured=measured)


def _convnext(
    size: str, depth: int, stages: tuple[int, int, int, int], frozen: int, gmac: float,
    measured: tuple[float, float] | None = None,
) -> BackboneVariant:  # fmt: skip
    """The adapter is as wide as the stage at 1/16: so it costs what a transformer's of that size does."""
    timm_name = f"convnext_{size}.dinov3_lvd1689m"
    return BackboneVariant(
        f"dinov3_convnext_{size}", timm_name, stages[2], depth, (0, 1, 2, 3), frozen, gmac, f"timm/{timm_name}",
        stages=stages, measured=measured,
    )  # fmt: skip


def _vit2(
    letter: str, timm_size: str, width: int, depth: int, taps: tuple[int, int, int, int], frozen: int, gmac: float,
    measured: tuple[float, float] | None = None, *, registers: bool = False,
) -> BackboneVariant:  # fmt: skip
    timm_name = f"vit_{timm_size}_patch14_{'reg4_' if registers else ''}dinov2.lvd142m"
    return BackboneVariant(
        f"dinov2_vit{letter}14{'_reg' if registers else ''}", timm_name, width, depth, taps, frozen, gmac,
        f"timm/{timm_name}", DINOV2_LICENCE, "yes", DINOV2_PAGE, patch=14, measured=measured,
    )  # fmt: skip


TWELVE, TWENTY_FOUR, THIRTY_TWO, FORTY = (2, 5, 8, 11), (4, 11, 17, 23), (7, 15, 23, 31), (9, 19, 29, 39)
"""Taps of backbones with that many blocks, as published; of 32, which were not, the last of each quarter."""

VARIANTS: dict[str, BackboneVariant] = {
    variant.name: variant
    for variant in (
        _vit3("s", "small", 384, 12, TWELVE, 21_596_160, 31.9, (0.45, 1.14)),
        _vit3("s+", "small_plus", 384, 12, TWELVE, 28_692_480, 39.2, (0.44, 1.13)),
        _vit3("b", "base", 768, 12, TWELVE, 85_659_648, 107.5, (0.81, 1.70)),
        _vit3("l", "large", 1024, 24, TWENTY_FOUR, 303_128_576, 363.6),
        _vit3("l", "large", 1024, 24, TWENTY_FOUR, 303_128_576, 363.6, satellite=True),
        _vit3("h+", "huge_plus", 1280, 32, THIRTY_TWO, 840_591_360, 950.9),
        _vit3("7b", "7b", 4096, 40, FORTY, 6_716_030_976, 7255.7),
        _vit3("7b", "7b", 4096, 40, FORTY, 6_716_030_976, 7255.7, satellite=True),
        _convnext("tiny", 18, (96, 192, 384, 768), 27_820_128, 23.3, (0.54, 1.16)),
        _convnext("small", 36, (96, 192, 384, 768), 49_454_688, 45.4, (0.60, 1.27)),
        _convnext("base", 36, (128, 256, 512, 1024), 87_566_464, 80.2, (0.75, 1.52)),
        _convnext("large", 36, (192, 384, 768, 1536), 196_230_336, 179.5),
        _vit2("s", "small", 384, 12, TWELVE, 22_056_192, 31.7, (0.46, 1.06)),
        _vit2("s", "small", 384, 12, TWELVE, 22_057_344, 31.8, (0.47, 1.03), registers=True),
        _vit2("b", "base", 768, 12, TWELVE, 86_579_712, 106.9, (0.83, 1.68)),
        _vit2("b", "base", 768, 12, TWELVE, 86_582_016, 107.4, (0.80, 1.60), registers=True),
        _vit2("l", "large", 1024, 24, TWENTY_FOUR, 304_367_616, 361.8),
        _vit2("l", "large", 1024, 24, TWENTY_FOUR, 304_370_688, 363.4, registers=True),
        _vit2("g", "giant", 1536, 40, FORTY, 1_136_479_232, 1290.8),
        _vit2("g", "giant", 1536, 40, FORTY, 1_136_483_840, 1296.3, registers=True),
    )
}


def find_variant(name: str) -> BackboneVariant:
    """Look a backbone up by name.

    Raises:
        ConfigError: no backbone has that name (the message shows the nearest names), or timm's can't be used.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    if name.startswith(TIMM):
        from dinounet.backbones.frozen import inspect

        return inspect(name)
    near = difflib.get_close_matches(name, VARIANTS, n=3, cutoff=0.4) or list(VARIANTS)
    raise ConfigError(
        f"there is no backbone {name!r}; the nearest names are {', '.join(near)} (see `dinounet info`; other models "
        f"of timm are named {TIMM}NAME)"
    )


LARGE = 2_000_000_000
"""Parameters from which a backbone is held in half the bytes unless it is asked for otherwise: 7B alone has so many."""


def usual_precision(variant: BackboneVariant) -> Literal["fp32", "bf16"]:
    """How the weights of its linear layers are held if nothing else is asked for."""
    return "bf16" if variant.frozen > LARGE else "fp32"


def network_config(backbone: str = DEFAULT, **fields: Any) -> NetworkConfig:
    """The configuration of a network on this backbone, whose width, taps and precision are the usual unless given.

    Raises:
        ConfigError: no backbone has that name, it hasn't the blocks that are asked for, or a field is wrong.
    """
    config = NetworkConfig(**with_facts({**fields, "backbone": backbone}))
    check_taps(config)
    return config


def with_facts(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a configuration, of which those that follow from the backbone's name are found out where they are None
    or not there.

    Raises:
        ConfigError: no backbone has that name.
    """
    variant = find_variant(fields.get("backbone", DEFAULT))
    changed = fields.get("backbone_args") or {}
    width = changed["dims"][2] if variant.stages and "dims" in changed else changed.get("embed_dim", variant.width)
    facts = {
        "backbone": variant.name,
        "backbone_width": width,
        "taps": variant.taps,
        "backbone_precision": usual_precision(variant),
    }
    return facts | {name: value for name, value in fields.items() if value is not None or name not in facts}


def check_taps(config: NetworkConfig) -> None:
    """Raise a ConfigError if a backbone lacks the blocks that are to be read."""
    variant = find_variant(config.backbone)
    if variant.stages and config.taps != variant.taps:
        raise ConfigError(
            f"network.taps is {list(config.taps)} but {config.backbone} has four stages, which are all read; leave "
            "taps out"
        )
    blocks = config.backbone_args.get("depth", variant.depth)
    if not variant.stages and config.taps[-1] >= blocks:
        raise ConfigError(
            f"network.taps names block {config.taps[-1]} but {config.backbone} ends with block {blocks - 1}; "
            "choose smaller numbers"
        )


def trained_parameters(variant: BackboneVariant) -> int:
    """What is trained on top, for one channel and two classes; a pyramid's stages are projected to the width first."""
    width = variant.width
    # six extractors, the transposed convolution, and the projections of prior and FAPM grow with the width
    adapter = 13 * width**2 + 6439 * width // 2 + 3_041_732
    return adapter + sum((stage + 1) * width for stage in variant.stages or () if stage != width)


def gmac_at(variant: BackboneVariant, scale: float) -> float:
    """Multiplications and additions of the backbone alone at a `backbone_scale`: all grow with the pixels, and those
    between tokens with their square.
    """
    between = 0.0 if variant.stages else 2 * (SIDE // 16) ** 4 * variant.width * variant.depth / 1e9
    return (variant.gmac - between) * scale**2 + between * scale**4


def tap_numbers(variant: BackboneVariant, scale: float) -> float:
    """What all four taps hold, of a 512 x 512 image; of a pyramid, also two of the maps within its first stage."""
    strides = STAGE_STRIDES if variant.stages else (16,) * 4
    numbers = [
        width * (SIDE // stride) ** 2
        for width, stride in zip(variant.stages or [variant.width] * 4, strides, strict=True)
    ]
    return scale**2 * (sum(numbers) + (2 * numbers[0] if variant.stages else 0))


PREDICTING = (567.5, 1.272, 0.06456)
TRAINING = (2325, 2.358, 0.06965)
"""Bytes a pixel, fitted by `benchmarks/backbones.py`: as such, a channel, and a thousand numbers of taps."""


def memory_at(variant: BackboneVariant, scale: float) -> tuple[float, float]:
    """GB that one 512 x 512 image takes in prediction, and in a training step by AdamW, weights included.

    On a CPU in float32, the frozen weights as usually held; measured where the table says so, else by a formula that
    was fitted to measurements.
    """
    if variant.measured and scale == 1:
        return variant.measured
    trained, taps = trained_parameters(variant), tap_numbers(variant, scale) / 1000
    predicting, training = (
        SIDE**2 * (own + a_channel * variant.width + a_thousand * taps)
        for own, a_channel, a_thousand in (PREDICTING, TRAINING)
    )
    frozen = variant.frozen * (2 if usual_precision(variant) == "bf16" else 4)
    # a trained number is four in training: itself, its gradient and two moments
    return (frozen + 4 * trained + predicting) / 1e9, (frozen + 16 * trained + training) / 1e9
