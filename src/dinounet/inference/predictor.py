"""A trained network, ready for images: `dinounet.load(RUN).predict(image)`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dinounet.data.dataset import find_cases, refuse_same_names
from dinounet.data.dicom import is_series
from dinounet.data.dicom_seg import require_highdicom, write_segmentation
from dinounet.data.flat import JPEG_ENDINGS
from dinounet.data.images import (
    KNOWN,
    SEGMENTATION_ENDING,
    VOLUME_ENDINGS,
    Volume,
    ending_of,
    require_finite,
    unknown_format,
    write_mask,
)
from dinounet.data.masks import check_channels
from dinounet.data.pairs import Case, image_files
from dinounet.data.preprocessing import image_to_slices, measure_channels, slice_axis, slice_size, slices_to_mask
from dinounet.data.stored import open_image
from dinounet.device import Device, Precision, choose_device, choose_precision
from dinounet.errors import ConfigError, DataError, UserError, WeightsError
from dinounet.files import join_some, whole_file
from dinounet.inference.postprocessing import Postprocessing, apply
from dinounet.inference.tiling import predict_tiled
from dinounet.memory import free_memory
from dinounet.network.build import Network, build_network
from dinounet.network.weights import BackboneRecord, fill_backbone
from dinounet.plans import Plan
from dinounet.run import MODEL, read_run, versions
from dinounet.targets import to_classes

BATCH = 4
"""Tiles that go through the network together."""


class Predictor:
    """Segments images as a run's plan says.

    Args:
        network: trained, its backbone filled.
        plan: of the run.
        backbone: what the network stands on; None for a U-Net.
        device: where to compute.
        precision: fp32 or bf16.
    """

    def __init__(
        self, network: Network, plan: Plan, backbone: BackboneRecord | None, device: str, precision: str
    ) -> None:
        self.network = network.to(device).eval()
        self.plan = plan
        self.backbone = backbone
        self.device = device
        self.precision = precision
        self.postprocessing: Postprocessing | None = None

    @property
    def labels(self) -> dict[str, int]:
        """Names and numbers of the classes."""
        return self.plan.data.labels

    def predict(self, image: str | Path | Sequence[str | Path] | np.ndarray) -> np.ndarray:
        """Labels of an image.

        Args:
            image: a file, a list of one file a channel, or an array: (H, W), (C, H, W), or (C, Z, H, W) with slices
                along the plan's axis. Arrays are taken to have the plan's spacing.

        Returns:
            the plan's labels, (H, W) for a flat image and an array of two or three axes, else (Z, H, W).

        Raises:
            DataError: it can't be read, or isn't what the network was trained on.
        """
        volume = self._volume(image)
        labels = self.predict_volume(volume)
        flat = image.ndim < 4 if isinstance(image, np.ndarray) else volume.is_flat
        return labels[0] if flat else labels

    def predict_volume(self, volume: Volume) -> np.ndarray:
        """Labels (Z, Y, X) of a volume, on its own grid."""
        # as bytes, which hold all classes: of a large volume these are the most that is held
        labels = [to_classes(logits, self.plan.data).byte().cpu().numpy() for logits in self._logits(volume)]
        mask = slices_to_mask(np.concatenate(labels), volume, self.plan.data)
        return apply(self.postprocessing, mask, volume.spacing, self.plan.data.meaning) if self.postprocessing else mask

    @torch.inference_mode()
    def _logits(self, volume: Volume) -> Iterable[Tensor]:
        """Logits (S, K, H, W) of a few slices at a time, at the volume's own size."""
        check_channels(volume, [channel.name for channel in self.plan.data.channels])
        data = self.plan.data
        moments, size = measure_channels(volume, data.channels), slice_size(volume, data)
        for first in range(0, volume.shape[slice_axis(volume, data)], BATCH):
            slices = image_to_slices(volume, data, slice(first, first + BATCH), moments)
            some = torch.from_numpy(slices).to(self.device)
            logits = predict_tiled(some, data.patch, BATCH, self._network)
            if logits.shape[-2:] != size:
                logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
            yield logits

    def _network(self, tiles: Tensor) -> Tensor:
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            return self.network(tiles)

    def _volume(self, image: Any) -> Volume:
        if isinstance(image, np.ndarray):
            if image.ndim not in (2, 3, 4):
                raise DataError(f"the array has shape {image.shape}; give (H, W), (C, H, W) or (C, Z, H, W)")
            array = image[None] if image.ndim == 2 else image
            array = array[:, None] if array.ndim == 3 else array
            volume = Volume(array.astype(np.float32), None, Path("the array"))
            require_finite(volume.array, volume.source)
            return volume
        return self.read([image] if isinstance(image, str | Path) else image)

    def read(self, paths: Sequence[str | Path]) -> Volume:
        """Read an image from one file a channel, or from one file with several channels.

        Raises:
            DataError: it can't be read, or doesn't tell the spacing that the network needs to know.
        """
        data = self.plan.data
        most = free_memory() // 4
        volume, spacing = open_image([Path(path) for path in paths], most, data.slice_axis), data.spacing
        if spacing is not None and volume.spacing is None and data.unknown_spacing is None:
            raise DataError(
                f"{volume.source} doesn't tell its pixels' size in mm, but the run was trained at {spacing[0]:.3g} x "
                f"{spacing[1]:.3g} mm; save it in a format that does, such as .nii.gz"
            )
        return volume


def load(
    run: str | Path, *, weights: str | None = None, device: Device = "auto", precision: Precision = "auto"
) -> Predictor:
    """Load a run for prediction.

    Args:
        run: the folder that `dinounet train` wrote.
        weights: where to find the backbone's weights if not where they were in training.
        device: where to compute.
        precision: how precisely.

    Raises:
        UserError: the folder is no finished run, or the backbone isn't the one that it was trained on.
    """
    folder = Path(run)
    record = read_run(folder)
    if not (folder / MODEL).is_file():
        raise DataError(f"{folder} holds no {MODEL}: its training is not finished; go on with it by --resume")
    if weights and record.backbone is None:
        raise ConfigError(f"{folder} is a U-Net, which has no backbone; leave --weights out")
    network = build_network(record.plan.network)
    found = record.backbone and _fill(network, record.backbone, weights, record.plan.recipe.seed, folder)
    try:
        network.load_state_dict(load_file(folder / MODEL))
    except (SafetensorError, RuntimeError) as error:
        raise WeightsError(f"{folder / MODEL} is damaged ({str(error).splitlines()[0]}); copy the run again") from None
    chosen = choose_device(device)
    return Predictor(network, record.plan, found, chosen, choose_precision(precision, chosen))


def _fill(network: Any, known: BackboneRecord, weights: str | None, seed: int, run: Path) -> BackboneRecord:
    """Give the network the backbone that its run was trained on."""
    found = fill_backbone(network.backbone, known.name, weights or known.weights, seed)
    if found.sha256 != known.sha256:
        raise WeightsError(
            f"the weights from {found.weights} are not those that {run} was trained on (sha256 {found.sha256[:12]}, "
            f"not {known.sha256[:12]}); pass the right ones with --weights"
        )
    return found


def find_inputs(inputs: Sequence[Path], plan: Plan) -> list[Case]:
    """The images that a list of files and folders holds, as cases of the plan's channels.

    A folder is searched with the folders in it, unless it is an image itself: a DICOM series.

    Raises:
        DataError: there is no input, one does not exist, is no image or holds none, or two have the same name.
    """
    channels, ending = len(plan.data.channels), plan.data.file_ending
    single: list[Path] = []
    cases: list[Case] = []
    for path in inputs:
        if not path.exists():
            raise DataError(f"{path} does not exist")
        if not path.is_dir() and not ending_of(path):
            raise unknown_format(path)
        if not path.is_dir() or is_series(path):
            single.append(path)
            continue
        found = image_files(path)
        if not found:
            raise DataError(f"{path} holds no image in a known format ({KNOWN})")
        cases += find_cases(found, channels, ending, path)
    cases += find_cases(single, channels, ending)
    if not cases:
        raise DataError("no image is named; name images, or folders of them, after the run")
    refuse_same_names(cases)
    return sorted(cases, key=lambda case: case.name)


def predict_files(
    predictor: Predictor,
    cases: Sequence[Case],
    output: Path,
    on_case: Callable[[], None] = lambda: None,
    endings: Mapping[str, str] | None = None,
) -> list[Path]:
    """Predict cases into a folder: `<case><ending>`, in the input's geometry and the format that `endings` tells of
    each case (see `choose_endings`), or else `mask_path`.

    A file that can't be predicted doesn't keep the others from it.

    Raises:
        UserError: after the others are done, names those that failed.
    """
    written, problems = [], []
    colours = predictor.plan.data.meaning.palette
    for case in cases:
        path = output / f"{case.name}{endings[case.name]}" if endings else mask_path(output, case)
        try:
            volume = predictor.read(case.images)
            labels = predictor.predict_volume(volume)
            if ending_of(path) == SEGMENTATION_ENDING:
                with whole_file(path) as temporary:
                    write_segmentation(temporary, labels, volume.source, predictor.labels, versions()["dinounet"])
            else:
                write_mask(path, labels, like=volume, colours=colours)
        except UserError as error:
            problems.append(str(error))
        else:
            written.append(path)
        on_case()
    if problems:
        raise DataError(f"{len(problems)} of {len(cases)} images could not be predicted: {join_some(problems)}")
    return written


def choose_endings(cases: Sequence[Case], format: str | None) -> dict[str, str]:
    """In which format each case's mask is to be written: the image's own, or one for all.

    Raises:
        ConfigError: masks can't be written in that format, or highdicom isn't installed and is needed.
    """
    known = (*VOLUME_ENDINGS, SEGMENTATION_ENDING)
    if format is not None and format not in known:
        raise ConfigError(f"--format is {format}; masks of every size and place can be {', '.join(known)}")
    others = [str(case.images[0]) for case in cases if not case.images[0].is_dir()]
    if format == SEGMENTATION_ENDING and others:
        raise ConfigError(f"--format is {format}, which is for DICOM series only, but there is {join_some(others, 3)}")
    endings = {
        case.name: format or (SEGMENTATION_ENDING if case.images[0].is_dir() else ending_of(mask_path(Path(), case)))
        for case in cases
    }
    if SEGMENTATION_ENDING in endings.values():
        require_highdicom()
    return endings


def mask_path(folder: Path, case: Case) -> Path:
    """Where a case's predicted mask lies: in the image's own format, but for JPEG, which would change labels (PNG), and
    for DICOM series (NIfTI, which needs no other package)."""
    ending = ending_of(case.images[0]) or ".nii.gz"
    return folder / f"{case.name}{'.png' if ending in JPEG_ENDINGS else ending}"
