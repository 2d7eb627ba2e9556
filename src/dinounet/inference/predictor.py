"""A trained network, or several, ready for images: `dinounet.load(RUN).predict(image)`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from dinounet.data.arrays import STEP, VIEWS, Array, View, concatenate, stack
from dinounet.data.geometry import Volume
from dinounet.data.masks import require_channels
from dinounet.data.preprocessing import Slice, measure_channels, slice_axis, slice_size
from dinounet.errors import UserError
from dinounet.inference.inputs import Image, as_volume, check_kind, cut_otherwise, open_input, tell_cut_otherwise
from dinounet.inference.models import TrainedModel, output_order
from dinounet.inference.postprocessing import LABELS_ONLY, OutputOptions, Segmentation, SegmentationBuilder
from dinounet.inference.tiling import GaussianTileMerger, StreamingResizer, make_grid, prefetch
from dinounet.schema.network import BackboneRecord
from dinounet.schema.plan import Plan
from dinounet.schema.prediction import Batch, Postprocessing, TestTimeAugmentation

Key = TypeVar("Key")

PIXELS_TOGETHER = 512 * 512
"""That a CPU works on at a time: more brings nothing, and takes memory."""

TILES_ON_GPU = 8
"""Of these go through a GPU together at first, which halves them where its memory is too small."""

MOST_TOGETHER = 64
"""Tiles at a time, however small they are."""

BATCHES_AHEAD = 2
"""Number of batches to prefetch."""


@dataclass(frozen=True)
class Settings:
    """How to predict, beyond what the plan says."""

    tta: TestTimeAugmentation = "none"
    """Which mirrored and turned copies of a tile are averaged."""

    step: float = STEP
    """Distance of neighbouring tiles at the most, as a share of a tile."""

    batch: Batch = "auto"
    """Tiles at a time."""

    def __post_init__(self) -> None:
        if self.tta not in VIEWS:
            raise UserError(f"tta is {self.tta!r}; choose {', '.join(VIEWS)}")
        if not 0 < self.step <= 1:
            raise UserError(f"step is {self.step}; it must be more than 0 and at most 1, a whole tile")
        if self.batch != "auto" and (not isinstance(self.batch, int) or self.batch < 1):
            raise UserError(f"batch is {self.batch!r}; it must be auto or a number from 1")


class Engine(Protocol):
    """What computes logits: networks in PyTorch, or exported ones in onnxruntime."""

    @property
    def networks(self) -> Sequence[Any]:
        """The networks, whose probabilities are averaged."""
        ...

    @property
    def device(self) -> str:
        """Device: cpu, cuda or mps."""
        ...

    @property
    def precision(self) -> str:
        """fp32, bf16, fp16 or int8."""
        ...

    def to_device(self, pixels: np.ndarray) -> Array:
        """Pixels (B, C, h, w) on the device that computes."""
        ...

    def forward(self, network: Any, tiles: Array) -> Array:
        """Logits, float32 (B, K, h, w), of tiles (B, C, h, w) of any size."""
        ...

    def is_out_of_memory(self, error: Exception) -> bool:
        """Whether fewer tiles at a time might do."""
        ...

    def describe_machine(self) -> dict[str, str]:
        """Processor or GPU, memory and system, without the machine's name."""
        ...

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that compute."""
        ...


class Predictor:
    """Segments images as a run's plan says.

    Args:
        engine: with trained networks.
        plan: of the runs.
        backbone: what the networks stand on; None for U-Nets.
        settings: how.
        postprocessing: what is done with a mask before it is given out.
        models: where the networks come from.
    """

    def __init__(
        self,
        engine: Engine,
        plan: Plan,
        backbone: BackboneRecord | None,
        settings: Settings = Settings(),
        postprocessing: Postprocessing | None = None,
        models: Sequence[TrainedModel] = (),
    ) -> None:
        self.engine = engine
        self.plan = plan
        self.backbone = backbone
        self.settings = settings
        self.postprocessing = postprocessing
        self.models = models
        self._orders = [output_order(model.plan.data, plan.data) for model in models] or [None] * len(engine.networks)
        self._pixels_together = PIXELS_TOGETHER * (1 if engine.device == "cpu" else TILES_ON_GPU)

    @property
    def networks(self) -> Sequence[Any]:
        """The trained networks: PyTorch's modules, or sessions of onnxruntime."""
        return self.engine.networks

    @property
    def labels(self) -> dict[str, int]:
        """Names and numbers of the classes."""
        return self.plan.data.labels.classes

    def predict(self, image: Image, axes: str | None = None) -> np.ndarray:
        """Labels of an image.

        Args:
            image: a file or a folder of DICOM files, a list of one file per channel, a picture of Pillow's, or an array
                or tensor of (H, W), (C, H, W) or, of a run that was trained on volumes, (C, Z, H, W), whose last three
                axes are those of a file, whichever the plan cuts. Arrays are taken to have the plan's spacing.
            axes: names of an array's axes if they are others, such as "HWC" or "ZYX".

        Returns:
            the plan's labels, (H, W) for a flat image and an array without the axis Z, else (Z, H, W).

        Raises:
            UserError: it can't be read, isn't what the network was trained on, or may mean several things.
        """
        volume, flat = as_volume(image, self.plan.data, axes)
        labels = self.predict_volume(volume)
        return labels[0] if flat else labels

    def predict_proba(self, image: Image, axes: str | None = None) -> np.ndarray:
        """Probabilities of the classes, with the background, or of the regions, which may overlap.

        Args:
            image: as for `predict`.
            axes: as for `predict`.

        Returns:
            float16, (K, H, W) for a flat image, else (K, Z, H, W).
        """
        volume, flat = as_volume(image, self.plan.data, axes)
        found = self.segment_volume(volume, OutputOptions(probabilities=True)).probabilities
        assert found is not None
        return found[:, 0] if flat else found

    def predict_volume(self, volume: Volume) -> np.ndarray:
        """Labels (Z, Y, X) of a volume, on its own grid."""
        return self.segment_volume(volume).labels

    def segment_volume(self, volume: Volume, wanted: OutputOptions = LABELS_ONLY) -> Segmentation:
        """Labels of a volume, and what else is wanted."""
        if axis := cut_otherwise(volume, self.plan.data):
            warnings.warn(tell_cut_otherwise({volume.source.name: axis}, self.plan.data), stacklevel=3)
        for _, found in self.segment([(None, volume)], wanted):
            if isinstance(found, UserError):
                raise found
            return found
        raise AssertionError("every image is answered")

    def read(self, paths: Sequence[str | Path]) -> Volume:
        """Read an image from one file per channel, or from one file with several channels; see `open_input`."""
        return open_input(paths, self.plan.data)

    def segment(
        self, images: Iterable[tuple[Key, Volume | UserError]], wanted: OutputOptions = LABELS_ONLY
    ) -> Iterator[tuple[Key, Segmentation | UserError]]:
        """Segment images one after another; those that can't be are answered by their error.

        Reading, normalising and cutting into tiles is done in a thread, while the network is busy with the tiles
        before; tiles of one size share a batch, whichever slice or image they are of. Of what the network answers, no
        more is held than a row of tiles.

        Args:
            images: each with a key to know it by; read as they are asked for.
            wanted: beside the labels.
        """
        for event in prefetch(self._prepare(images, wanted), BATCHES_AHEAD):
            if isinstance(event, _Failure):
                if event.builder is not None:
                    event.builder.given_up = True
                yield event.key, event.error
                continue
            views = self._look(event.pixels, wanted.uncertainty)
            for tile, logits in zip(event.tiles, views, strict=True):
                if tile.builder.given_up:
                    continue
                for first, rows in tile.canvas.add(tile.row, tile.column, logits):
                    for start, enlarged in tile.enlarger.add(first, rows):
                        tile.builder.add_slice(tile.slice_index, start, enlarged, len(self.networks))
                if tile.builder.is_complete:
                    yield tile.key, tile.builder.finish(self.postprocessing)

    def tiles(self, volume: Volume) -> Iterator[np.ndarray]:
        """The tiles of an image as the networks see them, (C, h, w)."""
        for found in self._prepare([(None, volume)], LABELS_ONLY):
            if isinstance(found, _Failure):
                raise found.error
            yield from found.pixels

    def _prepare(
        self, images: Iterable[tuple[Any, Volume | UserError]], wanted: OutputOptions
    ) -> Iterator[_Batch | _Failure]:
        """Batches of tiles, and images that can't be segmented."""
        tiles: list[_Tile] = []
        pixels: list[np.ndarray] = []
        for key, volume in images:
            builder = None
            try:
                if isinstance(volume, UserError):
                    raise volume
                require_channels(
                    len(volume.array), volume.source, [channel.name for channel in self.plan.data.channels]
                )
                check_kind(volume, self.plan.data)
                builder = SegmentationBuilder(volume, self.plan.data, wanted)
                for tile, part in self._cut(key, volume, builder):
                    if tiles and (part.shape != pixels[0].shape or len(tiles) >= self._tiles_together(part)):
                        yield _Batch(tiles, np.stack(pixels))
                        tiles, pixels = [], []
                    tiles.append(tile)
                    pixels.append(part)
            except UserError as error:
                kept = [place for place, tile in enumerate(tiles) if tile.builder is not builder]
                tiles, pixels = [tiles[place] for place in kept], [pixels[place] for place in kept]
                yield _Failure(key, builder, error)
        if tiles:
            yield _Batch(tiles, np.stack(pixels))

    def _cut(self, key: Any, volume: Volume, builder: SegmentationBuilder) -> Iterator[tuple[_Tile, np.ndarray]]:
        """Tiles of an image, slice by slice, with their pixels (C, h, w)."""
        data = self.plan.data
        moments, wanted_size = measure_channels(volume, data.channels), slice_size(volume, data)
        for index in range(volume.shape[slice_axis(volume, data)]):
            slice = Slice(volume, data, index, moments)
            grid = make_grid(slice.size, data.patch, self.settings.step)
            canvas, enlarger = GaussianTileMerger(grid), StreamingResizer(grid.size, wanted_size)
            for row in grid.rows:
                strip = slice.rows(row, row + grid.tile[0])
                for column in grid.columns:
                    pixels = strip[..., column : column + grid.tile[1]]
                    yield _Tile(key, builder, index, canvas, enlarger, row, column), pixels

    def _tiles_together(self, pixels: np.ndarray) -> int:
        """How many tiles of this size make a batch, their mirrored copies counted in."""
        return max(1, self._inputs_together(pixels.shape[-2:]) // len(VIEWS[self.settings.tta]))

    def _inputs_together(self, size: tuple[int, ...]) -> int:
        if self.settings.batch != "auto":
            return self.settings.batch
        return min(max(1, self._pixels_together // (size[0] * size[1])), MOST_TOGETHER)

    def _look(self, pixels: np.ndarray, keep_views: bool) -> Array:
        """Logits (B, V, K, h, w) of tiles (B, C, h, w).

        First one of each network, the mean of its mirrored copies' logits as in nnU-Net: they make the mask. If
        `keep_views`, those of each network and copy follow where there are several copies: they tell how unsure it is.
        Outputs are in the first network's order.
        """
        tiles = self.engine.to_device(pixels)
        views = VIEWS[self.settings.tta]
        of_networks: list[Array] = []
        of_views: list[Array] = []
        for network, order in zip(self.networks, self._orders, strict=True):
            answers: list[Array] = []
            for transposed in sorted({view.transposed for view in views}):
                same_size = [view for view in views if view.transposed == transposed]
                answers += self._see(network, tiles, same_size)
            answers = answers if order is None else [logits[:, order] for logits in answers]
            of_networks.append(stack(answers, 0).mean(0) if len(answers) > 1 else answers[0])
            of_views += answers if keep_views and len(answers) > 1 else []
        return stack(of_networks + of_views, 1)

    def _see(self, network: Any, tiles: Array, views: Sequence[View]) -> list[Array]:
        """Logits of tiles in each view, as the tiles lie."""
        copies = concatenate([view.see(tiles) for view in views], 0)
        parts: list[Array] = []
        done = 0
        while done < len(copies):
            together = self._inputs_together(copies.shape[-2:])
            try:
                parts.append(self.engine.forward(network, copies[done : done + together]))
            except Exception as error:  # PyTorch and onnxruntime raise their own
                if not self.engine.is_out_of_memory(error):
                    raise
                self._halve(min(together, len(copies) - done), copies.shape[-2:])
                continue
            done += together
        logits, each = concatenate(parts, 0), len(tiles)
        return [view.put_back(logits[place * each : (place + 1) * each]) for place, view in enumerate(views)]

    def _halve(self, together: int, size: tuple[int, ...]) -> None:
        """Go on with fewer tiles at a time.

        Raises:
            UserError: not even one fits.
        """
        if together == 1 or self.settings.batch != "auto":
            raise UserError(
                f"{together} tiles of {size[0]} x {size[1]} pixels don't fit into the memory of {self.engine.device}; "
                + ("choose --device cpu" if together == 1 else "choose a smaller --batch, or auto")
            ) from None
        self._pixels_together = together // 2 * size[0] * size[1]


class _Tile(NamedTuple):
    key: Any
    builder: SegmentationBuilder
    slice_index: int
    canvas: GaussianTileMerger
    enlarger: StreamingResizer
    row: int
    column: int


class _Batch(NamedTuple):
    tiles: list[_Tile]
    pixels: np.ndarray
    """(B, C, h, w)"""


class _Failure(NamedTuple):
    key: Any
    builder: SegmentationBuilder | None
    """What was begun of it."""
    error: UserError
