"""The plan of a run, `plan.json`: every decision and the statistics behind it, for a person to edit."""

from __future__ import annotations

import math
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from dinounet.errors import ConfigError
from dinounet.schema.base import Migrations, read_record, record
from dinounet.schema.labels import Labels
from dinounet.schema.migrations import resolve_plan
from dinounet.schema.network import AnyNetworkConfig, NetworkConfig, UNetConfig
from dinounet.schema.recipe import Recipe

if TYPE_CHECKING:
    pass


GroupRule = Literal["auto", "none", "folder", "name", "patient"]
"""What puts cases into groups. folder: their images lie in one folder; name: their names are equal before _slice, _z or
_frame and a number; patient: they have one PatientID in DICOM, or one sub- label of BIDS; auto: the patient if the
files tell, else folders, else names, if there are at least `CLEARLY_GROUPS` of them with several cases each. A table's
column `group` decides wherever there is one."""

GroupBy = Literal[GroupRule, "column"]
"""What did so, or is to do so again; column: a table's column if there is one, and nothing else."""


@record
class PlannedGroups:
    """Groups of cases that belong together, and the notes about them."""

    by: GroupBy = "column"
    """What puts cases into groups: folder, name, patient, none, column (a table's, else none), or auto."""

    twins: tuple[tuple[str, ...], ...] = ()
    """Names of cases that hold identical pixels; each row is kept on one side of a fold."""

    near_twins: tuple[tuple[str, str], ...] = ()
    """Pairs of cases, of different groups, that look nearly the same, nearest first; of many the first hundred."""

    remarks_on_files: tuple[str, ...] = ()
    """Sentences that names, folders and tables lead to; written anew when a run is trained."""

    remarks_on_pixels: tuple[str, ...] = ()
    """Notes that result from the cases' pixels."""


BodyAxis = Literal["left-right", "anterior-posterior", "inferior-superior"]
"""What an axis of a volume runs along in the patient, either way, where that isn't oblique; else the nearest one."""

LengthUnit = Literal["mm", "mm at the detector"]


AT_THE_DETECTOR: LengthUnit = "mm at the detector"


@record
class Intensities:
    """Statistics of one channel over foreground pixels, in the image's own units."""

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


@record
class Fingerprint:
    """Dataset statistics, so that a person can check the decisions."""

    cases: int
    smallest_shape: tuple[int, int, int]
    """Minimum number of slices, rows and columns, each over all cases."""
    median_shape: tuple[int, int, int]
    """Median number of slices, rows and columns."""
    largest_shape: tuple[int, int, int]
    """Maximum number of slices, rows and columns."""
    median_spacing: tuple[float, float, float] | None
    """Median spacing z, y, x in mm, over the cases that have one; None if none has."""
    label_pixels: dict[str, int]
    """Pixels of each class, and of "ignore" if there is an ignore label, in all training cases."""
    cases_at_the_detector: int = 0
    """Number of uncalibrated X-rays, whose mm are those at the detector."""
    cases_without_spacing: int = 0
    """Number of cases without spacing."""
    axes: tuple[BodyAxis, BodyAxis, BodyAxis] | None = None
    """What z, y and x of most volumes run along in the patient; None where no file tells, and of flat images."""

    @property
    def mixes_units(self) -> bool:
        """Whether some cases have lengths in other units than others."""
        return any(0 < some < self.cases for some in (self.cases_at_the_detector, self.cases_without_spacing))

    @property
    def unit(self) -> str:
        """Unit of the spacing."""
        if not self.cases_at_the_detector:
            return "mm"
        some = self.mixes_units
        return f"mm, at the detector in {self.cases_at_the_detector} of {self.cases} cases" if some else AT_THE_DETECTOR


Normalisation = Literal["zscore", "ct", "rgb", "rescale_to_0_1", "rgb_to_0_1", "none"]


@record
class ChannelPlan:
    """Normalisation of one channel."""

    name: str
    """Name of the channel in the dataset."""

    normalisation: Normalisation
    """zscore: each case by its own mean and deviation; ct: clip to percentiles, then the dataset's mean and deviation;
    rgb: divide by 255, then by ImageNet's statistics; rescale_to_0_1: each case's darkest pixel to 0 and brightest to
    1; rgb_to_0_1: divide by 255; none."""

    intensities: Intensities
    """Statistics of the training cases' foreground, used by ct."""

    imagenet: tuple[float, float] | None = None
    """ImageNet's mean and deviation of this colour, of values from 0 to 1; rgb reads them."""


Fold = int | Literal["all"]
"""Number of a split, from 0; or all: learn from every case and watch none."""

Split = tuple[tuple[str, ...], tuple[str, ...]]
"""Names of the training cases, and of the validation cases."""


@record
class DataPlan:
    """Every decision between a file and a patch."""

    dataset: str
    """Name of the dataset it was made for."""

    channels: tuple[ChannelPlan, ...]
    """The image's channels, in order."""

    labels: Labels
    """Classes and the numbers that stand for them in masks, regions, the ignore label, colours."""

    file_ending: str | None
    """Ending of all images; None where each file has its own and holds all channels."""

    slice_axis: int
    """Axis (of z, y, x) along which a volume is cut into slices: the coarsest."""

    spacing: tuple[float, float] | None
    """Distance of neighbouring pixels within a slice in mm (`fingerprint.unit`), rows then columns; None, where any
    image tells none: pixels are taken as they are."""

    patch: tuple[int, int]
    """Rows and columns of a training patch and of a tile in prediction."""

    fingerprint: Fingerprint
    """The statistics behind the decisions."""

    channel_projection: tuple[tuple[float, ...], ...] | None = None
    """Three mixtures of the normalised channels, which the backbone sees, a weight for each channel; None for one
    channel, which it sees three times, and for three, which it sees as they are."""

    unknown_spacing: float | None = None
    """Spacing assumed for images without one; None: they are not resampled."""

    test_cases: tuple[str, ...] = ()
    """Names of held-out cases: in no fold and in no decision; they are only checked for duplicates."""

    groups: PlannedGroups = field(default_factory=PlannedGroups)
    """Which cases are never on both sides of a fold; earlier versions knew a table's groups alone."""

    readers: int = 1
    """Version of how the files were read that it was decided from, `data.formats.READERS`."""

    PLACE: ClassVar[str] = "data"

    def __post_init__(self) -> None:
        if self.slice_axis not in (0, 1, 2):
            raise ConfigError(f"data.slice_axis is {self.slice_axis}; it must be 0, 1 or 2")
        if min(self.patch) < 1:
            raise ConfigError(f"data.patch is {list(self.patch)}; both sides must be at least 1")
        if self.spacing is not None and min(self.spacing) <= 0:
            raise ConfigError(f"data.spacing is {list(self.spacing)}; both must be more than 0")
        if any(channel.normalisation == "rgb" and channel.imagenet is None for channel in self.channels):
            raise ConfigError("data.channels has a channel with the normalisation rgb and no imagenet; add it")
        mixtures = self.channel_projection
        if mixtures is not None and (len(mixtures) != 3 or any(len(row) != len(self.channels) for row in mixtures)):
            raise ConfigError(
                f"data.channel_projection must be three rows of {len(self.channels)} numbers, one per channel"
            )


SHARE_OF_MEMORY = 0.8
"""Of what is free; the rest is for the processes that prepare patches, and for what no trial foresees."""


@record
class StepMemory:
    """Memory of a training step in bytes, measured by a trial step."""

    device: Literal["cpu", "cuda", "mps"]
    """Device of the trial."""

    free: int
    """Free memory before the step."""

    fixed: int
    """Memory of gradients and optimizer state, independent of the batch."""

    a_pixel: float
    """Memory of a patch, forward and backward, per pixel."""

    def patches(self, patch: tuple[int, int]) -> int:
        """How many patches may go through the network together."""
        return int((SHARE_OF_MEMORY * self.free - self.fixed) / (self.a_pixel * math.prod(patch)))

    def needed(self, patch: tuple[int, int]) -> float:
        """How much should be free for one patch."""
        return (self.fixed + self.a_pixel * math.prod(patch)) / SHARE_OF_MEMORY


@record
class FeatureChoice:
    """Whether the backbone's features are cached, where that was asked for, or to be found out."""

    cached: bool
    """Whether training reads them from the disk."""

    why: str
    """Reason, in words."""

    bytes: int
    """Size on disk, for the training and validation cases together."""

    backbone_share: float | None = None
    """Of the time of a step without cache; None if it was not measured."""


@record
class Plan:
    """The whole plan."""

    data: DataPlan
    """Decisions from a file to a patch."""

    network: AnyNetworkConfig
    """Configuration of the network; `architecture` says which it is."""

    recipe: Recipe
    """Training recipe."""

    memory: StepMemory | None = None
    """Memory of a step, which patch and batch must fit into."""

    features: FeatureChoice | None = None
    """Whether they are cached; a run finds it out anew."""

    format: Literal[2] = 2
    """Version of this file's keys."""

    MIGRATIONS: ClassVar[Migrations] = {1: resolve_plan}

    def __post_init__(self) -> None:
        if self.network.in_channels != len(self.data.channels):
            raise ConfigError(
                f"network.in_channels is {self.network.in_channels} but data names {len(self.data.channels)} channels"
            )
        if isinstance(self.network, NetworkConfig) and self.network.deep_supervision != self.recipe.deep_supervision:
            raise ConfigError("network.deep_supervision and recipe.deep_supervision differ; make them equal")
        if isinstance(self.network, UNetConfig) and self.recipe.cache_features == "on":
            raise ConfigError("a U-Net has no backbone whose features could be cached; leave out --cache-features")
        outputs = self.data.labels.outputs
        if self.network.num_classes != len(outputs):
            what = "labels" if self.data.labels.regions is None else "regions"
            raise ConfigError(f"network.num_classes is {self.network.num_classes} but data names {len(outputs)} {what}")


def read_plan(path: Path) -> Plan:
    """Read a plan, strictly."""
    return read_record(Plan, path, what="the plan of a run")
