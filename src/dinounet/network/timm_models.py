"""Backbones that are not in the table: what can be known of a model of timm's by building it without its weights."""

from __future__ import annotations

import difflib
import functools
from typing import Any

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from dinounet.errors import ConfigError, reason_of
from dinounet.network.backbone import GRID, FrozenBackbone
from dinounet.network.variants import PYRAMID, SIDE, TIMM, BackboneVariant

FREE_LICENCES = ("apache", "mit", "bsd")
"""How licences begin that allow commercial use."""

HEADS = 32
"""What the width is a multiple of: half of it is shared by the adapter's 16 heads."""


@functools.cache
def inspect(name: str) -> BackboneVariant:
    """Describe a model of timm's, named `timm:NAME`, by building it without memory and sending an image through.

    Raises:
        ConfigError: there is no such model, or the network can't use its features; the message says why.
    """
    timm_name = name.removeprefix(TIMM)
    architecture, _, tag = timm_name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.4)
        raise ConfigError(
            f"timm has no model {architecture!r}" + (f"; the nearest are {', '.join(near)}" if near else "")
        )
    known = timm.list_pretrained(f"{architecture}.*")
    if tag and timm_name not in known:
        raise ConfigError(f"timm has no weights {timm_name!r}; choose one of {', '.join(known) or 'no weights'}")
    try:
        with torch.device("meta"):
            model = _create(architecture)
            taps, patch, stages = _find_taps(model)
            frozen = FrozenBackbone(model.eval(), taps)
            if frozen.width % HEADS:
                raise ValueError(f"its features are {frozen.width} wide, and a multiple of {HEADS} is wanted")
            _try(frozen)
            with FlopCounterMode(display=False) as counter:
                frozen.read(torch.zeros(1, 3, *frozen.seen((SIDE, SIDE))))
    except Exception as error:  # timm's models raise what they like
        reason = reason_of(error).rstrip(".")
        raise ConfigError(
            f"{name} can't be a backbone here ({reason}); choose a plain vision transformer, or a network with stages "
            "at 1/4, 1/8, 1/16 and 1/32 that takes images of any size"
        ) from None
    settings = timm.get_pretrained_cfg(timm_name)
    licence = (settings.license if settings else None) or "unknown"
    repository = settings.hf_hub_id if settings and known else None
    return BackboneVariant(
        name,
        timm_name,
        frozen.width,
        len(model.feature_info),
        taps,
        sum(parameter.numel() for parameter in model.parameters()),
        counter.get_total_flops() / 2e9,
        repository,
        licence,
        commercial_use(licence),
        (settings.origin_url if settings else None) or f"https://huggingface.co/{repository or 'timm'}",
        patch,
        stages,
    )


def _create(architecture: str) -> Any:
    """The model, such that it takes images of any size if it can."""
    try:
        return timm.create_model(architecture, num_classes=0, dynamic_img_size=True)
    except TypeError:  # what isn't a transformer has no such argument, and mostly no need of it
        return timm.create_model(architecture, num_classes=0)


def _find_taps(model: Any) -> tuple[tuple[int, int, int, int], int, tuple[int, int, int, int] | None]:
    """Which intermediate outputs to read, the pixels of a patch, and the channels of the stages if it is a pyramid."""
    if not hasattr(model, "forward_intermediates") or not hasattr(model, "feature_info"):
        raise ValueError("it gives no intermediate features")
    strides = [level["reduction"] for level in model.feature_info]
    if set(PYRAMID) <= set(strides):
        first, second, third, last = (len(strides) - 1 - strides[::-1].index(stride) for stride in PYRAMID)
        taps = (first, second, third, last)
        a, b, c, d = (model.feature_info[tap]["num_chs"] for tap in taps)
        return taps, GRID, (a, b, c, d)
    if len(set(strides)) > 1:
        raise ValueError(f"its features are at 1/{', 1/'.join(map(str, sorted(set(strides))))} of the image's size")
    if len(strides) < 4:
        raise ValueError(f"it has {len(strides)} blocks, and four are read")
    first, second, third, last = (round(quarter * len(strides) / 4) - 1 for quarter in (1, 2, 3, 4))
    return (first, second, third, last), strides[0], None


def _try(frozen: FrozenBackbone) -> None:
    """Whether an image that is not square gives the grids that it should."""
    found = [tuple(tap.shape[1:]) for tap in frozen.read(torch.zeros(1, 3, *frozen.seen((64, 96))))]
    expected = [
        (rows * columns, width) for (rows, columns), width in zip(frozen.grids((64, 96)), frozen.widths, strict=True)
    ]
    if found != expected:
        raise ValueError(f"its features have the shapes {found} and not {expected}")


def commercial_use(licence: str) -> str:
    """Whether a licence allows commercial use, as far as its name tells."""
    name = licence.lower()
    if name.startswith(FREE_LICENCES):
        return "yes"
    if "dinov3" in name:
        return "yes, on its conditions"
    return "no" if "noncommercial" in name.replace("-", "") or "-nc" in name else "unknown"
