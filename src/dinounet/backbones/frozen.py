"""The frozen backbone: an image in, four token grids out; and networks built of it, with their initial values."""

from __future__ import annotations

import difflib
import functools
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, TypeAlias

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from dinounet.backbones.low_precision import StoragePrecision, init_on_meta, quantize_linears
from dinounet.backbones.registry import SIDE, STAGE_STRIDES, TIMM, BackboneVariant, check_taps, find_variant
from dinounet.errors import ConfigError, reason_of
from dinounet.network.dinounet import DinoUNet
from dinounet.network.unet import UNet
from dinounet.schema.network import STRIDE, NetworkConfig, UNetConfig
from dinounet.system import return_freed_memory

TOKEN_STRIDE = 16
"""Pixels along the side of a token, as the adapter counts them."""


class FrozenBackbone(nn.Module):
    """Reads the patch tokens of four blocks, each after the final norm, or the four stages of a pyramid.

    Shapes: (B, 3, H, W), H and W multiples of 32, -> four of (B, h * w, widths[i]), h and w as `grids` says: those of a
    transformer H/16 and W/16 times the scale; those of a pyramid H/4 to H/32 times the scale.

    The image is resized to what gives that grid: for a backbone whose own patches are of 14 pixels to 14/16 of its
    size, and at a scale of 2 to twice that.

    A pyramid's stages have no common norm: each place is normalised over its channels, without parameters, so that no
    stage drowns another. (What a norm's own weights would do, the trained projection behind it can.)

    Its parameters need no gradient, and are left out of `state_dict()` and of a strict `load_state_dict()` of a network
    that holds it: a checkpoint is 25 MB for S instead of 110 (and 0.9 GB instead of 27 for 7B).

    Args:
        vit: a model of timm's with `forward_intermediates` and `feature_info`.
        taps: which of its intermediate outputs to read.
        scale: how many times finer than usual the grid is, along each side.
        precision: how its linear layers' weights are held.
        on_disk: whether those of its blocks are brought from the disk one by one.
    """

    def __init__(
        self, vit: nn.Module, taps: tuple[int, ...], scale: float = 1.0,
        precision: StoragePrecision = "fp32", on_disk: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.vit: Any = vit.requires_grad_(False)
        self.taps = taps
        self.scale = scale
        self.precision = precision
        self.on_disk = on_disk
        features: Any = vit.feature_info
        read = [features[tap] for tap in taps]
        self.widths: list[int] = [tap["num_chs"] for tap in read]
        self.strides: list[int] = [tap["reduction"] for tap in read]
        self.is_pyramid = self.strides == list(STAGE_STRIDES)
        self._norms = not self.is_pyramid and not isinstance(getattr(self.vit, "norm", None), nn.Identity | None)
        self.eval()
        self.register_load_state_dict_post_hook(_miss_no_frozen_tensor)

    @property
    def width(self) -> int:
        """Channels of a token in the adapter, D: of a pyramid, those of its stage at 1/16."""
        return self.widths[2]

    def grids(self, size: Sequence[int]) -> list[tuple[int, int]]:
        """Rows and columns of each tap for an image of that height and width."""
        rows, columns = self.input_size(size)
        return [(rows // stride, columns // stride) for stride in self.strides]

    def input_size(self, size: Sequence[int]) -> list[int]:
        """Height and width that an image of this size is resized to for the backbone."""
        own = STAGE_STRIDES[-1] if self.is_pyramid else self.strides[0]
        if self.grid_scale.is_integer():  # the same without floats, by which an export would fix the size
            return [side // STRIDE * int(self.grid_scale) * own for side in size]
        return [round(side * self.grid_scale / STRIDE) * own for side in size]

    @property
    def grid_scale(self) -> float:
        """Cells of the backbone's coarsest grid along one of the network's; where it isn't whole, sides are rounded."""
        return self.scale * (1 if self.is_pyramid else STRIDE / TOKEN_STRIDE)

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Stays in evaluation mode: in train mode the published code rescales RoPE at random: noisy features."""
        return super().train(False)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Adds nothing; the weights themselves are `self.vit.state_dict()`."""
        return OrderedDict() if destination is None else destination

    def drop_weights(self) -> None:
        """Release the memory of the weights, where every tap is cached: no image can be computed any more."""
        self.vit = nn.Identity()

    @torch.no_grad()
    def forward(self, image: Tensor) -> list[Tensor]:
        size = self.input_size(image.shape[-2:])
        if size != list(image.shape[-2:]):
            with torch.autocast(image.device.type, enabled=False):  # not in bfloat16, which the CPU can't
                image = F.interpolate(image.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
        return self.forward_features(image)

    def forward_features(self, image: Tensor) -> list[Tensor]:
        """The taps of an image that has the size `input_size` already."""
        taps = self.vit.forward_intermediates(
            image,
            indices=list(self.taps),
            norm=self._norms,
            stop_early=True,
            output_fmt="NCHW" if self.is_pyramid else "NLC",
            intermediates_only=True,
        )
        if self.is_pyramid:
            taps = [tap.flatten(2).transpose(1, 2) for tap in taps]
        return taps if self._norms else [F.layer_norm(tap, tap.shape[-1:]) for tap in taps]


def build_backbone(config: NetworkConfig, *, offload: bool = False) -> FrozenBackbone:
    """Build the configured backbone; `fill_backbone` fills it.

    In float32 and in memory it has timm's initial values, otherwise zeros; there never is a float32 copy then.

    Args:
        config: of the network.
        offload: leave its blocks' weights on the disk, from where each is brought when it computes.

    Raises:
        ConfigError: timm can't build it so, it is another than the configuration says, or it has not the layers that
            the precision or the disk is for.
    """
    check_taps(config)
    variant, precision = find_variant(config.backbone), config.backbone_precision
    arguments = {**({} if variant.stages else {"dynamic_img_size": True}), **config.backbone_args}
    is_plain = precision == "fp32" and not offload
    if not is_plain:
        return_freed_memory()
    try:
        if config.backbone_args and not is_plain:  # tried without memory
            with torch.device("meta"):
                _try(timm.create_model(variant.timm_name, pretrained=False, num_classes=0, **arguments), variant.patch)
        with nullcontext() if is_plain else init_on_meta():
            vit = timm.create_model(variant.timm_name, pretrained=False, num_classes=0, **arguments)
        if config.backbone_args and is_plain:
            _try(vit, variant.patch)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"backbone {config.backbone} can't be built with {config.backbone_args}: {error}") from error
    if not is_plain:
        quantize_linears(vit, config.backbone, precision, on_disk=offload)
    backbone = FrozenBackbone(vit, config.taps, config.backbone_scale, precision, offload)
    if backbone.width != config.backbone_width:
        raise ConfigError(
            f"network.backbone_width is {config.backbone_width}, but {config.backbone} has {backbone.width} channels; "
            "correct it, or leave the choice to `dinounet.network_config`"
        )
    return backbone


@torch.no_grad()
def _try(vit: nn.Module, patch: int) -> None:
    """Run the model once: some of timm's arguments fail only in a forward pass."""
    device = next(vit.parameters()).device
    vit.to(device)(torch.zeros(1, 3, 4 * patch, 4 * patch, device=device))  # timm 1.0.22 has RoPE's periods elsewhere


def _miss_no_frozen_tensor(backbone: nn.Module, incompatible: Any) -> None:
    """Remove the frozen tensors from the keys that a checkpoint is said to lack."""
    assert isinstance(backbone, FrozenBackbone)
    own = tuple(f"vit.{name}" for name in backbone.vit.state_dict())
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if not key.endswith(own)]


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
            _try_model(frozen)
            with FlopCounterMode(display=False) as counter:
                frozen.forward_features(torch.zeros(1, 3, *frozen.input_size((SIDE, SIDE))))
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
    if set(STAGE_STRIDES) <= set(strides):
        first, second, third, last = (len(strides) - 1 - strides[::-1].index(stride) for stride in STAGE_STRIDES)
        taps = (first, second, third, last)
        a, b, c, d = (model.feature_info[tap]["num_chs"] for tap in taps)
        return taps, TOKEN_STRIDE, (a, b, c, d)
    if len(set(strides)) > 1:
        raise ValueError(f"its features are at 1/{', 1/'.join(map(str, sorted(set(strides))))} of the image's size")
    if len(strides) < 4:
        raise ValueError(f"it has {len(strides)} blocks, and four are read")
    first, second, third, last = (round(quarter * len(strides) / 4) - 1 for quarter in (1, 2, 3, 4))
    return (first, second, third, last), strides[0], None


def _try_model(frozen: FrozenBackbone) -> None:
    """Raise a ValueError unless an image that is not square gives the expected grids."""
    found = [tuple(tap.shape[1:]) for tap in frozen.forward_features(torch.zeros(1, 3, *frozen.input_size((64, 96))))]
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


Network: TypeAlias = DinoUNet | UNet


def build_network(config: NetworkConfig | UNetConfig, backbone: FrozenBackbone | None = None) -> Network:
    """Build the configured network; `backbone` is Dino U-Net's, by default one with timm's initial values."""
    if isinstance(config, UNetConfig):
        return UNet(config)
    return DinoUNet(config, backbone or build_backbone(config))


class WithoutInitialValues(TorchFunctionMode):
    """Builds networks, while the block runs, without drawing the random numbers that loading replaces at once.

    Drawing them takes as long as loading PyTorch does. Every parameter must be filled afterwards.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # zeros, since PyTorch draws again what is beyond a limit
        return args[0].zero_() if func in _DRAWING else func(*args, **(kwargs or {}))


_DRAWING = {Tensor.uniform_, Tensor.normal_, Tensor.erfinv_}
