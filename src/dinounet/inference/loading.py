"""From runs to a predictor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file

from dinounet.data.labels import Labels
from dinounet.device import Device, Precision, choose_device, choose_precision
from dinounet.errors import ConfigError, DataError, WeightsError
from dinounet.files import read_record
from dinounet.inference.postprocessing import POSTPROCESSING, Postprocessing, agree, check_names
from dinounet.inference.predictor import Batch, Predictor, Settings
from dinounet.inference.views import TestTimeAugmentation
from dinounet.network.backbone import FrozenBackbone, build_backbone
from dinounet.network.build import Network, build_network
from dinounet.network.config import NetworkConfig
from dinounet.network.initialisation import WithoutInitialValues
from dinounet.network.weights import BackboneRecord, fill_backbone
from dinounet.plans import Plan
from dinounet.run import MODEL, RECORD, RunRecord, read_run

PostprocessingChoice = Literal["auto", "none"] | str | Path
"""auto: what the run's review chose, of several runs what all of them chose; none; or a file."""


def load(
    runs: str | Path | Sequence[str | Path],
    *,
    weights: str | None = None,
    device: Device = "auto",
    precision: Precision = "auto",
    offload: bool = False,
    tta: TestTimeAugmentation = "none",
    step: float = 0.5,
    batch: Batch = "auto",
    postprocessing: PostprocessingChoice = "auto",
) -> Predictor:
    """Load a run for prediction, or several whose probabilities are averaged, such as a dataset's folds.

    Args:
        runs: the folder that `dinounet train` wrote, several, or a folder that holds several.
        weights: where to find the backbone's weights if not where they were in training.
        device: where to compute.
        precision: how precisely.
        offload: leave the backbone on the disk, and bring each block when it computes.
        tta: which mirrored and turned copies of each tile are averaged: none, flip (4), full (8).
        step: distance of neighbouring tiles at the most, as a share of a tile.
        batch: tiles at a time.
        postprocessing: what is done with masks: what was chosen for the run (auto), none, or what a file says.

    Raises:
        UserError: a folder is no finished run, or the backbone isn't the one that it was trained on, or the runs don't
            fit together.
    """
    folders = find_runs([runs] if isinstance(runs, str | Path) else runs)
    records = [_read(folder) for folder in folders]
    first = records[0]
    for folder, record in zip(folders[1:], records[1:], strict=True):
        _require_alike(record.plan, folder, first.plan, folders[0])
    if (weights or offload) and all(record.backbone is None for record in records):
        flag = "--weights" if weights else "--offload"
        raise ConfigError(f"{folders[0]} is a U-Net, which has no backbone; leave {flag} out")
    settings = Settings(tta, step, batch)
    networks: list[Network] = []
    filled: list[tuple[RunRecord, Any, BackboneRecord]] = []
    """Backbones, which folds share."""
    for folder, record in zip(folders, records, strict=True):
        known = record.backbone
        shared = next((one for one in filled if _same_backbone(one[0], record)), None)
        with WithoutInitialValues():
            network = build_network(record.plan.network, shared[1] if shared else _outline(record, offload))
        if known and not shared:
            found = _fill(network, known, weights, record.plan.recipe.seed, folder)
            filled.append((record, network.backbone, found))
        try:
            network.load_state_dict(load_file(folder / MODEL))
        except (SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise WeightsError(f"{folder / MODEL} is damaged ({reason}); copy the run again") from None
        networks.append(network)
    chosen = choose_device(device)
    backbone = filled[0][2] if first.backbone else None
    post = _postprocessing(postprocessing, folders, first.plan.data.meaning)
    return Predictor(networks, first.plan, backbone, chosen, choose_precision(precision, chosen), settings, post)


def find_runs(given: Sequence[str | Path]) -> list[Path]:
    """The runs' folders; a folder that is none itself stands for those in it.

    Raises:
        DataError: there is none, or one is named twice.
    """
    folders: list[Path] = []
    for one in map(Path, given):
        inside = sorted(path.parent for path in one.glob(f"*/{RECORD}")) if not (one / RECORD).is_file() else []
        folders += inside or [one]
    if not folders:
        raise DataError("no run is named; give the folder that `dinounet train` wrote")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise DataError(f"a run is named twice among {', '.join(map(str, folders))}; name each once")
    return folders


def _read(folder: Path) -> RunRecord:
    record = read_run(folder)
    if not (folder / MODEL).is_file():
        raise DataError(f"{folder} holds no {MODEL}: its training is not finished; go on with it by --resume")
    return record


def _require_alike(plan: Plan, folder: Path, first: Plan, first_folder: Path) -> None:
    """Raise a ConfigError unless both runs see an image the same and answer the same."""
    for name in (
        "channels", "labels", "regions", "ignore", "slice_axis", "spacing", "unknown_spacing", "patch",
        "channel_projection", "file_ending",
    ):  # fmt: skip
        if getattr(plan.data, name) != getattr(first.data, name):
            raise ConfigError(
                f"{folder} and {first_folder} can't predict together: their plans differ in data.{name}; train them by "
                "one plan (--plan plan.json)"
            )


def _outline(record: RunRecord, offload: bool) -> FrozenBackbone | None:
    """The run's backbone, not filled yet; a U-Net has none."""
    config = record.plan.network
    return build_backbone(config, offload=offload) if isinstance(config, NetworkConfig) else None


def _same_backbone(one: RunRecord, other: RunRecord) -> bool:
    """Whether one backbone in memory serves both runs."""
    hashes = [record.backbone and record.backbone.sha256 for record in (one, other)]
    return None not in hashes and hashes[0] == hashes[1] and one.plan.network == other.plan.network


def _fill(network: Any, known: BackboneRecord, weights: str | None, seed: int, run: Path) -> BackboneRecord:
    """Give the network the backbone that its run was trained on."""
    found = fill_backbone(network.backbone, known.name, weights or known.weights, seed)
    if found.sha256 != known.sha256:
        raise WeightsError(
            f"the weights from {found.weights} are not those that {run} was trained on (sha256 {found.sha256[:12]}, "
            f"not {known.sha256[:12]}); pass the right ones with --weights"
        )
    return found


def _postprocessing(choice: PostprocessingChoice, folders: Sequence[Path], known: Labels) -> Postprocessing | None:
    """What is done with masks; of several runs what all of them chose."""
    if choice == "none":
        return None
    paths = [folder / POSTPROCESSING for folder in folders] if choice == "auto" else [Path(choice)]
    posts = []
    for path in paths:
        found = None
        if path.exists() or choice != "auto":
            found = read_record(Postprocessing, path, what="a postprocessing, as a run's folder holds it")
            check_names(found, known, str(path))
        posts.append(found)
    return posts[0] if len(posts) == 1 else agree(posts)
