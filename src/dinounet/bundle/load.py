"""From runs, bundles, exported networks and the Hub to a predictor. PyTorch is imported for the first two alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from dinounet.bundle.hub import HUB, describe, fetch_record, fetch_weights, is_on_hub, missing
from dinounet.bundle.verify import checked_networks, checked_weights, hash_file, read_bundle, read_exported
from dinounet.console import say
from dinounet.data.formats import other_reading
from dinounet.errors import ConfigError, DataError, naming_the_extra
from dinounet.inference.models import TrainedModel, require_alike
from dinounet.inference.postprocessing import agree
from dinounet.inference.predictor import Engine, Predictor, Settings
from dinounet.schema.arguments import checked
from dinounet.schema.base import read_record
from dinounet.schema.bundle import BACKBONE_FILE, BUNDLE, EXPORTED, is_onnx_file
from dinounet.schema.network import BackboneRecord
from dinounet.schema.prediction import (
    POSTPROCESSING,
    Batch,
    Postprocessing,
    TestTimeAugmentation,
    check_names,
    read_postprocessing,
)
from dinounet.schema.run import MODEL, RECORD, read_run
from dinounet.system import Device, Precision


def find_models(given: Sequence[str | Path], revision: str | None = None) -> list[TrainedModel]:
    """All trained networks of these runs and bundles; a folder that is none itself stands for those in it.

    Args:
        given: folders, or bundles on the Hub, hf://user/name.
        revision: of those on the Hub, where they don't name one.

    Raises:
        UserError: there is none, one is named twice, one is not finished, damaged or of another version, or the Hub
            doesn't have it.
    """
    folders: list[Path] = []
    names: dict[Path, str] = {}
    for name in given:
        if is_on_hub(name):
            folder = fetch_record(name, revision)
            fetch_weights(name, folder)
            names[folder] = describe(name, folder)
            folders.append(folder)
            continue
        one = Path(name)
        if revision:
            raise ConfigError(
                f"a revision is given, but {one} is not on the Hub; leave the revision out, or give {HUB}user/name"
            )
        is_one = _is_model(one) or is_onnx_file(one)
        if not is_one and not one.exists():
            raise missing(one)
        inside = [] if is_one else sorted(folder for folder in one.glob("*/") if _is_model(folder))
        folders += inside or [one]
    if not folders:
        raise DataError("no run is named; give the folder that `dinounet train` or `dinounet export` wrote")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise DataError(f"there is a duplicate run among {', '.join(map(str, folders))}; name each once")
    return [model for folder in folders for model in _read(folder, names.get(folder, str(folder)))]


def is_bundle(folder: Path) -> bool:
    """Whether a folder is meant as a bundle."""
    return (folder / BUNDLE).is_file()


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (RECORD, BUNDLE, EXPORTED))


def _read(folder: Path, named: str) -> list[TrainedModel]:
    if is_onnx_file(folder) or (folder / EXPORTED).is_file():
        return _read_exported(folder, named)
    if not _is_model(folder):
        raise DataError(
            f"{folder} is not a run: it holds no {RECORD}, and no {BUNDLE} as a bundle does; give the folder that "
            "`dinounet train` or `dinounet export` wrote"
        )
    return _read_bundle(folder, named) if is_bundle(folder) else [_read_run(folder)]


def _read_run(folder: Path) -> TrainedModel:
    record, file = read_run(folder), folder / MODEL
    if not file.is_file():
        raise DataError(f"{folder} holds no {MODEL}: its training is not finished; go on with it by --resume")
    post = read_postprocessing(folder)
    if post:
        check_names(post, record.plan.data.labels, str(folder / POSTPROCESSING))
    seed = record.plan.recipe.seed
    absent = record.data.absent_classes
    return TrainedModel(
        str(folder), file, hash_file(file), record.plan, record.backbone, seed, post, absent_classes=absent
    )


def _read_bundle(folder: Path, named: str) -> list[TrainedModel]:
    """The networks of a bundle, whose files are what its record says."""
    record = read_bundle(folder)
    files = checked_weights(folder, record)
    return [
        TrainedModel(
            named,
            file,
            one.sha256,
            plan,
            _find_backbone(folder, one.backbone),
            one.seed,
            record.postprocessing,
            absent_classes=one.training.absent_classes if one.training else (),
        )
        for file, one, plan in zip(files, record.networks, record.plans, strict=True)
    ]


def _read_exported(path: Path, named: str) -> list[TrainedModel]:
    """The networks of a folder of ONNX files, or one of them by its file."""
    folder, only = (path.parent, path.name) if is_onnx_file(path) else (path, None)
    record = read_exported(folder, only)
    bundle = record.bundle
    return [
        TrainedModel(
            named, folder / name, file.sha256, plan, one.backbone, one.seed, bundle.postprocessing, record.multiple,
            record.precision, one.training.absent_classes if one.training else (),
        )
        for name, file, one, plan in checked_networks(folder, record, only)
    ]  # fmt: skip


def _find_backbone(folder: Path, known: BackboneRecord | None) -> BackboneRecord | None:
    """The record with where the weights are to be looked for: those of a maker's own file are beside an imported
    network, or may be the Hub's under the same hash."""
    if known is None or known.weights != "file":
        return known
    beside = folder / BACKBONE_FILE
    return replace(known, weights=str(beside) if beside.is_file() else "hub")


PostprocessingChoice = Literal["auto", "none"] | str | Path
"""auto: what the run's review chose, of several runs what all of them chose; none; or a file."""


@checked
@naming_the_extra("a network that isn't exported as ONNX")
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
    revision: str | None = None,
) -> Predictor:
    """Load a run or a bundle for prediction, or several whose probabilities are averaged, such as a dataset's folds.

    Args:
        runs: the folder that `dinounet train` or `dinounet export` wrote, several, a folder that holds several, an
            ONNX file that `dinounet export` wrote, or a bundle on the Hugging Face Hub, "hf://user/name" or
            "hf://user/name@revision". Nothing else is looked up there.
        weights: where to find the backbone's weights if not where they were in training.
        device: where to compute.
        precision: how precisely.
        offload: leave the backbone on the disk, and bring each block when it computes.
        tta: which mirrored and turned copies of each tile are averaged: none, flip (4), full (8).
        step: distance of neighbouring tiles at the most, as a share of a tile.
        batch: tiles at a time.
        postprocessing: what is done with masks: what was chosen for the run (auto), none, or what a file says.
        revision: of what is on the Hub: a branch, tag or commit; by default the newest.

    Raises:
        UserError: a folder is neither a finished run nor a whole bundle, or the backbone isn't the one that it was
            trained on, or they don't fit together, or the Hub doesn't have it.
    """
    models = find_models([runs] if isinstance(runs, str | Path) else runs, revision)
    first = models[0]
    for model in models[1:]:
        require_alike(model, first)
    flag = "--weights" if weights else "--offload" if offload else None
    if flag and first.is_onnx:
        raise ConfigError(f"{first.named} holds the backbone already; leave {flag} out")
    if flag and all(model.backbone is None for model in models):
        raise ConfigError(f"{first.named} is a U-Net, which has no backbone; leave {flag} out")
    if told := other_reading(first.plan.data.readers, f"{first.named} was planned"):
        say("readers", told)
    settings = Settings(tta, step, batch)
    post = _postprocessing(postprocessing, models)
    engine: Engine
    backbone: BackboneRecord | None
    if first.is_onnx:
        from dinounet.inference.onnx_backend import OnnxBackend

        engine, backbone = OnnxBackend(models, device, precision), first.backbone
    else:
        from dinounet.inference.torch_backend import TorchBackend, load_networks
        from dinounet.system import choose_device, choose_precision

        chosen = choose_device(device)
        computed = choose_precision(precision, chosen)
        networks, backbone = load_networks(models, weights, offload=offload)
        engine = TorchBackend(networks, chosen, computed)
    return Predictor(engine, first.plan, backbone, settings, post, models)


def _postprocessing(choice: PostprocessingChoice, models: Sequence[TrainedModel]) -> Postprocessing | None:
    """What is done with masks; of several models what was chosen for all of them."""
    if choice == "none":
        return None
    known = models[0].plan.data.labels
    if choice != "auto":
        post = read_record(Postprocessing, Path(choice), what="a postprocessing, as a run's folder holds it")
        check_names(post, known, str(choice))
        return post
    posts = [model.postprocessing for model in models]
    return posts[0] if len(posts) == 1 else agree(posts)
