"""Adapter: the tokens of a small convolutional pyramid attend to the frozen backbone's features, tap after tap.

Dino U-Net (arXiv 2508.20909), section on the adapter, after ViT-Adapter (arXiv 2205.08534) without its injectors, since
the backbone is frozen. Shapes: image (B, C, H, W) and four taps (B, h * w, D) -> four maps (B, D, H/s, W/s), s = 4, 8,
16, 32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.overrides import wrap_torch_function

from dinounet.network.cpu_kernels import recomputed
from dinounet.network.deformable_attention import DeformableAttention, Sizes


class SpatialPrior(nn.Module):
    """A convolutional pyramid whose every level has the backbone's width.

    Shapes: (B, C, H, W), H and W multiples of 32, -> four of (B, D, H/s, W/s), s = 4, 8, 16, 32.
    """

    def __init__(self, in_channels: int, stem_width: int, width: int) -> None:
        super().__init__()
        c = stem_width
        self.stem = nn.Sequential(
            *_convolution(in_channels, c, stride=2),
            *_convolution(c, c, stride=1),
            *_convolution(c, c, stride=1),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.down = nn.ModuleList(
            nn.Sequential(*_convolution(before, after, stride=2))
            for before, after in ((c, 2 * c), (2 * c, 4 * c), (4 * c, 4 * c))
        )
        self.project = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in (c, 2 * c, 4 * c, 4 * c))

    def forward(self, image: Tensor) -> list[Tensor]:
        levels = [self.stem(image)]
        for down in self.down:
            levels.append(down(levels[-1]))
        return [project(level) for project, level in zip(self.project, levels, strict=True)]


def _convolution(before: int, after: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    ]


NORM_EPS = 1e-6
"""Of the adapter's layer norms; the backbone's have 1e-5."""


class ConvFeedForward(nn.Module):
    """Feed-forward layer with one depthwise convolution, shared by the levels that the tokens come from.

    Shapes: (B, N, D) -> (B, N, D), N the cells of all levels, one level after the other.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = width // 4
        self.expand = nn.Linear(width, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden)
        self.reduce = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor, sizes: Sizes) -> Tensor:
        maps = split_into_maps(self.expand(tokens), sizes)
        mixed = torch.cat([self.depthwise(map).flatten(2).transpose(1, 2) for map in maps], dim=1)
        return self.reduce(F.gelu(mixed))


class Extractor(nn.Module):
    """Lets the prior's tokens attend to one tap of the backbone.

    Shapes: tokens (B, N, D), tap (B, h*w, D) -> (B, N, D).
    """

    def __init__(self, width: int, heads: int, points: int, drop_path: float) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.tap_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = DeformableAttention(width, heads, points)
        self.feed_forward_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.feed_forward = ConvFeedForward(width)
        self.drop_path = DropPath(drop_path)

    @recomputed  # for a quarter of a step's memory, and a twentieth of its time
    def forward(self, tokens: Tensor, tap: Tensor, reference: Tensor, levels: Sizes, grid: tuple[int, int]) -> Tensor:
        tokens = tokens + self.attention(self.query_norm(tokens), reference, self.tap_norm(tap), [grid])
        return tokens + self.drop_path(self.feed_forward(self.feed_forward_norm(tokens), levels))


class Adapter(nn.Module):
    """From an image and the backbone's taps to a pyramid that holds both detail and meaning.

    Shapes: image (B, C, H, W), taps four of (B, h * w, D) -> four of (B, D, H/s, W/s), s = 4, 8, 16, 32.
    H and W are multiples of 32; `grids` holds h and w of each tap, H/16 and W/16 as published. Taps of other widths,
    which the stages of a convolutional backbone have, are projected to D first.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stem_width: int,
        heads: int,
        points: int,
        drop_path: float,
        tap_widths: Sequence[int],
    ) -> None:
        super().__init__()
        self.project_taps = nn.ModuleList(
            nn.Identity() if tap_width == width else nn.Linear(tap_width, width) for tap_width in tap_widths
        )
        self.prior = SpatialPrior(in_channels, stem_width, width)
        self.level_embedding = nn.Parameter(torch.empty(3, width))
        # one extractor a tap; the last tap is read by two more
        self.interactions = nn.ModuleList(
            nn.ModuleList(Extractor(width, heads, points, drop_path) for _ in range(count)) for count in (1, 1, 1, 3)
        )
        self.up = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(4))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initial values as in ViT-Adapter; deformable attention has its own."""
        self.apply(_initialise)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()
        nn.init.normal_(self.level_embedding)

    def forward(self, image: Tensor, taps: Sequence[Tensor], grids: Sizes) -> list[Tensor]:
        taps = [project(tap) for project, tap in zip(self.project_taps, taps, strict=True)]
        quarter, *coarser = self.prior(image)
        levels = [(map.shape[-2], map.shape[-1]) for map in coarser]  # at 1/8, 1/16 and 1/32
        tokens = torch.cat(
            [
                map.flatten(2).transpose(1, 2) + embedding
                for map, embedding in zip(coarser, self.level_embedding, strict=True)
            ],
            dim=1,
        )
        reference = cell_centres(levels, image.device)
        for extractors, tap, grid in zip(self.interactions, taps, grids, strict=True):
            for extractor in cast(nn.ModuleList, extractors):
                tokens = extractor(tokens, tap, reference, levels, grid)
        tap_maps = [split_into_maps(tap, [grid])[0] for tap, grid in zip(taps, grids, strict=True)]
        return self._merge(quarter, split_into_maps(tokens, levels), tap_maps)

    def _merge(self, quarter: Tensor, coarser: list[Tensor], taps: list[Tensor]) -> list[Tensor]:
        maps = [quarter + self.up(coarser[0]), *coarser]
        return [
            norm(map + F.interpolate(tap.to(map.dtype), size=map.shape[-2:], mode="bilinear", align_corners=False))
            for norm, map, tap in zip(self.norms, maps, taps, strict=True)
        ]


def split_into_maps(tokens: Tensor, sizes: Sizes) -> list[Tensor]:
    """(B, N, D) -> one (B, D, height, width) a level."""
    parts = tokens.split([height * width for height, width in sizes], dim=1)
    # in this order strides say "channels last" also of a single image
    return [part.unflatten(1, size).permute(0, 3, 1, 2) for part, size in zip(parts, sizes, strict=True)]


@wrap_torch_function(lambda *inputs: inputs)  # so that exported graphs can count in whole numbers
def cell_centres(levels: Sizes, device: torch.device) -> Tensor:
    """Reference points of the tokens on the unit square, (1, N, 1, 2), x then y, cell by cell and level by level."""
    centres = []
    for height, width in levels:
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        centres.append(torch.stack([grid_x, grid_y], dim=-1).flatten(0, 1))
    return torch.cat(centres)[None, :, None]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
