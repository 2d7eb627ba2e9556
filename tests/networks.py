"""A network small enough for tests: the published architecture with a backbone of four narrow blocks."""

from typing import Any

from dinounet.backbones.registry import network_config
from dinounet.schema.network import NetworkConfig

TINY: dict[str, Any] = {
    "taps": (0, 1, 2, 3),
    "stem_width": 8,
    "rank": 16,
    "widths": (4, 8, 16, 32),
    "backbone_args": {"embed_dim": 64, "depth": 4, "num_heads": 4},
}


def planned(**changes: Any) -> NetworkConfig:
    """As a plan by the default recipe has it."""
    return tiny_config(deep_supervision=True, **changes)


def tiny_config(**changes: Any) -> NetworkConfig:
    return network_config(**{**TINY, **changes})
