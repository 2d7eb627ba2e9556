"""Fidelity-aware projection: reduces the backbone's width to the decoder's without losing detail.

Dino U-Net (arXiv 2508.20909), section on FAPM. Each scale is reduced to a common rank twice: by a projection shared
across scales (context) and by one of its own (detail). The context modulates the detail at every pixel (FiLM, arXiv
1709.07871). Shapes: scale i, (B, width, h_i, w_i) -> (B, out_widths[i], h_i, w_i).
"""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers import SqueezeExcite
from torch import Tensor, nn

from dinounet.network.cpu_kernels import recomputed


class Refinement(nn.Sequential):
    """Reduces the channels, convolves (depthwise separable 3x3), and weighs the channels (arXiv 1709.01507).

    Shapes: (B, rank, h, w) -> (B, out_width, h, w).
    """

    def __init__(self, rank: int, out_width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(rank, out_width, 1)
        self.reduce_norm = nn.InstanceNorm2d(out_width, affine=True)
        self.reduce_act = nn.LeakyReLU(0.01, inplace=True)
        self.depthwise = nn.Conv2d(out_width, out_width, kernel_size=3, padding=1, groups=out_width)
        self.pointwise = nn.Conv2d(out_width, out_width, 1)
        self.norm = nn.InstanceNorm2d(out_width, affine=True)
        self.act = nn.LeakyReLU(0.01, inplace=True)
        self.project = nn.Conv2d(out_width, out_width, 1)
        self.squeeze_excite = SqueezeExcite(out_width, rd_channels=max(out_width // 16, 1))


class FidelityAwareProjection(nn.Module):
    """Projects the encoder's maps to the decoder's widths.

    Shapes: scale i, (B, width, h_i, w_i) -> (B, out_widths[i], h_i, w_i).

    The modulation is gamma * detail + beta, without the usual 1 + gamma: published checkpoints were trained that way.
    """

    def __init__(self, width: int, rank: int, out_widths: Sequence[int]) -> None:
        super().__init__()
        self.shared = nn.Conv2d(width, rank, 1)
        self.specific = nn.ModuleList(nn.Conv2d(width, rank, 1) for _ in out_widths)
        self.film = nn.ModuleList(nn.Conv2d(rank, 2 * rank, 1) for _ in out_widths)
        self.refine = nn.ModuleList(Refinement(rank, out_width) for out_width in out_widths)
        self.shortcut = nn.ModuleList(
            nn.Identity() if rank == out_width else nn.Conv2d(rank, out_width, 1) for out_width in out_widths
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        branches = zip(self.specific, self.film, self.refine, self.shortcut, strict=True)
        return [self.project(map, *branch) for map, branch in zip(maps, branches, strict=True)]

    @recomputed
    def project(
        self, map: Tensor, specific: nn.Module, film: nn.Module, refine: nn.Module, shortcut: nn.Module
    ) -> Tensor:
        """One scale's map, (B, width, h, w) -> (B, out_width, h, w)."""
        gamma, beta = film(self.shared(map)).chunk(2, dim=1)
        modulated = gamma * specific(map) + beta
        return refine(modulated) + shortcut(modulated)
