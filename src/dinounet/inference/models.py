"""Trained networks as they are stored: in a run, or in a bundle, here or on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dinounet.errors import ConfigError, DataError
from dinounet.inference.bundle import BACKBONE_FILE, BUNDLE, checked_weights, hash_file, read_bundle
from dinounet.inference.exported import EXPORTED, checked_networks, is_onnx_file, read_exported
from dinounet.inference.postprocessing import POSTPROCESSING, Postprocessing, check_names, read_postprocessing
from dinounet.inference.remote import HUB, describe, fetch_record, fetch_weights, is_on_hub, missing
from dinounet.network.provenance import BackboneRecord
from dinounet.plans import Plan
from dinounet.run import MODEL, RECORD, read_run


@dataclass(frozen=True)
class TrainedModel:
    """One of them."""

    named: str
    """The folder as given, or the name on the Hub with the commit."""

    file: Path
    """Of its trained tensors."""

    sha256: str
    """Of that file."""

    plan: Plan
    """All decisions."""

    backbone: BackboneRecord | None
    """What it stands on; a U-Net has none."""

    seed: int
    """Of a random backbone."""

    postprocessing: Postprocessing | None
    """What is done to its masks; None where nobody chose."""

    multiple: tuple[int, int] = (1, 1)
    """Of an exported network: rows and columns of what it is given are multiples of these, and twice them at least."""

    precision: str = "fp32"
    """Of an exported network: fp32 or int8."""

    absent_classes: tuple[str, ...] = ()
    """Classes, or regions, that no training case held."""

    @property
    def is_onnx(self) -> bool:
        """Whether it is an exported network, which onnxruntime computes."""
        return is_onnx_file(self.file)


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
        raise DataError(f"a run is named twice among {', '.join(map(str, folders))}; name each once")
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
        check_names(post, record.plan.data.meaning, str(folder / POSTPROCESSING))
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
