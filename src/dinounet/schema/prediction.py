"""The records beside predicted masks: `prediction.json` and `postprocessing.json`."""

from __future__ import annotations

import math
from dataclasses import field
from pathlib import Path
from typing import ClassVar, Literal

from dinounet.errors import ConfigError
from dinounet.schema.base import Migrations, read_record, record
from dinounet.schema.labels import Labels
from dinounet.schema.migrations import embed_labels
from dinounet.schema.network import BackboneRecord

POSTPROCESSING = "postprocessing.json"
"""In a run's folder: what is done to the masks that it predicts."""


@record
class Steps:
    """Postprocessing of one class or region, in the order of the fields, and its effect."""

    keep_largest: bool = False
    """Whether only the largest component is kept; of equally large ones, all."""

    smallest: float | None = None
    """Size below which components are removed, in the record's unit; None: none are."""

    fill_holes: bool = False
    """Whether enclosed background is filled; other classes inside stay."""

    dice_before: float | None = None
    """Mean over the record's cases without any step, 1 where the class is correctly absent; None: not measured."""

    dice_after: float | None = None
    """The same with the steps of all classes. They were selected on these cases, so other cases gain less."""

    def __post_init__(self) -> None:
        if self.smallest is not None and not (math.isfinite(self.smallest) and self.smallest > 0):
            raise ConfigError(f"smallest is {self.smallest}; it must be above 0, or null to remove nothing")

    @property
    def does_something(self) -> bool:
        """Whether there is a step at all."""
        return self.keep_largest or self.smallest is not None or self.fill_holes


@record
class Postprocessing:
    """Postprocessing of predicted masks."""

    classes: dict[str, Steps]
    """Steps by name of the class or region; none for those that are not named."""

    unit: Literal["mm3", "px"] = "px"
    """Of sizes: mm3 (in flat images mm², as if 1 mm thick), so that they hold at other spacings too; px, pixels,
    where some case doesn't tell its spacing."""

    spacing: tuple[float, float, float] | None = None
    """Spacing along z, y, x in mm that is assumed for images without one: a median; null with px."""

    cases: tuple[str, ...] = ()
    """Names of the cases that the steps were selected on."""

    format: Literal[1] = 1
    """Version of this file's keys."""

    def __post_init__(self) -> None:
        if (self.unit == "mm3") != (self.spacing is not None):
            raise ConfigError(
                f"unit is {self.unit} and spacing {self.spacing}; give a spacing with mm3, and null with px"
            )
        if self.spacing is not None and not all(math.isfinite(step) and step > 0 for step in self.spacing):
            raise ConfigError(f"spacing is {list(self.spacing)}; give three distances in mm above 0")

    @property
    def does_something(self) -> bool:
        """Whether any class has a step."""
        return any(steps.does_something for steps in self.classes.values())


def read_postprocessing(run: Path) -> Postprocessing | None:
    """What a run's masks undergo; None of a run for which nobody chose.

    Raises:
        UserError: the file is no JSON, or has unknown, missing or wrong keys.
    """
    path = run / POSTPROCESSING
    return read_record(Postprocessing, path, what="a run's postprocessing") if path.exists() else None


def check_names(post: Postprocessing, known: Labels, where: str = "the postprocessing") -> None:
    """Raise a ConfigError if steps are meant for what masks don't hold; `where` says in which file."""
    unknown = [name for name in post.classes if name not in known.foreground]
    if unknown:
        raise ConfigError(
            f"{where} names {', '.join(unknown)}, but masks hold {', '.join(known.foreground)}; name these"
        )


TestTimeAugmentation = Literal["none", "flip", "full"]


Batch = int | Literal["auto"]
"""Tiles that go through the network together; auto: as many as the device works on well, fewer if memory runs out."""


@record
class ModelRecord:
    """One of the trained networks."""

    run: str
    """The trained run's folder or bundle, as given, or its name and commit on the Hub."""

    sha256: str
    """sha256 of the model file."""

    decisions_sha256: str | None = None
    """Of what decides on a mask outside of that file: from an image to a patch, the network's form, its backbone. None
    in records of versions before they were compared."""


@record
class PredictionRecord:
    """Provenance of a folder of masks."""

    labels: Labels
    """Of the masks: classes and their numbers, or regions; no predicted mask holds the number that is ignored, and
    colours, of colour-coded data, are the masks' palette."""

    models: tuple[ModelRecord, ...]
    """Models whose probabilities were averaged."""

    backbone: BackboneRecord | None
    """Backbones of the models; none for U-Nets."""

    device: str
    """Device of the computation."""

    precision: str
    """Precision: fp32, bf16, fp16 or, for an ONNX file, int8."""

    tta: TestTimeAugmentation
    """Which copies of each tile were averaged."""

    step: float
    """Maximum distance between neighbouring tiles, as a fraction of the tile size."""

    command: tuple[str, ...]
    """Command as typed."""

    versions: dict[str, str]
    """Versions of the software."""

    machine: dict[str, str]
    """Machine that predicted."""

    started: str
    """Start time in UTC."""

    images: int = 0
    """Number of predicted images."""

    seconds: float = 0.0
    """Seconds spent, including reading and writing, without loading the model."""

    postprocessing: Postprocessing | None = None
    """Postprocessing that was applied to the masks."""

    readers: int = 1
    """Version of how files were read."""

    batch: Batch = "auto"
    """Tiles at a time. Numbers differ by it in their last digits, as they do by what shares a batch, so that masks
    may in single pixels where two classes are equally likely; it is told, and not compared."""

    absent_classes: tuple[str, ...] = ()
    """Classes, or regions, that no training case of any of the models held: they are in no mean over classes."""

    cut_otherwise: dict[str, str] = field(default_factory=dict)
    """Of images whose slices lie along another axis of the body than those learned from, by name, that axis."""

    at_the_detector: tuple[str, ...] = ()
    """Names of images, X-rays that nobody calibrated, whose lengths are in mm at the detector. A truth in
    a format that has no word for it is measured as they are; none by versions before this was recorded."""

    sources: dict[str, str] = field(default_factory=dict)
    """Of each image, by name, a hash of its files' sizes and times of change, so that no mask is kept for another image
    of the same name; none for those predicted by versions before this was recorded."""

    format: Literal[3] = 3
    """Version of this file's keys."""

    MIGRATIONS: ClassVar[Migrations] = {2: embed_labels}
