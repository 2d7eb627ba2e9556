"""Spatial prior: what a patch of 16 pixels is too coarse for, from a small convolutional pyramid.

ViT-Adapter (arXiv 2205.08534), section 3.3.
"""

from __future__ import annotations

from torch import Tensor, nn


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
