"""The backbones by name: one table with provenance and licence.

Sizes are those of DINOv3 (arXiv 2508.10104, table of model variants) and DINOv2 (arXiv 2304.07193); the weights come
from timm's conversions on the Hugging Face Hub, which need no approval. This module imports neither torch nor timm, so
that it can be listed at once.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from dinounet.errors import ConfigError

DINOV3_LICENCE = "DINOv3 License (https://ai.meta.com/resources/models-and-libraries/dinov3-license)"
DINOV2_LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class BackboneVariant:
    """What is known of one backbone before it is built."""

    name: str
    """Name as given to `--backbone`."""

    timm_name: str
    """Architecture and weights in timm; `_qkvb` keeps the bias of query and value, which the plain one drops."""

    width: int
    """Channels of a token, D."""

    depth: int
    """Transformer blocks."""

    heads: int
    """Attention heads of a block."""

    taps: tuple[int, int, int, int]
    """Blocks (counted from 0) whose output the adapter reads."""

    parameters: int
    """Parameters of the published checkpoint; timm leaves out those that inference doesn't use."""

    licence: str = DINOV3_LICENCE
    """Licence of the weights."""

    patch: int = 16
    """Pixels along a token's side. The network wants tokens of 16: with others, the backbone sees a resized image."""


VARIANTS: dict[str, BackboneVariant] = {
    variant.name: variant
    for variant in (
        BackboneVariant(
            "dinov3_vits16", "vit_small_patch16_dinov3_qkvb.lvd1689m", 384, 12, 6, (2, 5, 8, 11), 21_601_152
        ),
        BackboneVariant(
            "dinov3_vitb16", "vit_base_patch16_dinov3_qkvb.lvd1689m", 768, 12, 12, (2, 5, 8, 11), 85_669_632
        ),
        BackboneVariant(
            "dinov3_vitl16", "vit_large_patch16_dinov3_qkvb.lvd1689m", 1024, 24, 16, (4, 11, 17, 23), 303_154_176
        ),
        BackboneVariant(
            "dinov3_vit7b16", "vit_7b_patch16_dinov3.lvd1689m", 4096, 40, 32, (9, 19, 29, 39), 6_716_043_264
        ),
        BackboneVariant(
            "dinov2_vits14",
            "vit_small_patch14_dinov2.lvd142m",
            384,
            12,
            6,
            (2, 5, 8, 11),
            22_056_192,
            DINOV2_LICENCE,
            patch=14,
        ),
    )
}


def find_variant(name: str) -> BackboneVariant:
    """Look a backbone up by name.

    Raises:
        ConfigError: no backbone has that name; the message shows the nearest names.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    near = difflib.get_close_matches(name, VARIANTS, n=3, cutoff=0.4) or list(VARIANTS)
    raise ConfigError(f"there is no backbone {name!r}; the nearest names are {', '.join(near)} (see `dinounet info`)")
