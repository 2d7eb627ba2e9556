"""`dinounet export`, `dinounet import` and `dinounet push`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dinounet.schema.arguments import checked


@checked
def export(
    runs: list[Path],
    /,
    output: Path,
    *,
    format: Literal["bundle", "onnx", "nnunet"] = "bundle",
    licence: str | None = None,
    weights: str | None = None,
    int8: Literal["none", "weights", "static"] = "none",
    calibrate: tuple[Path, ...] = (),
) -> Path:
    """Write a bundle: the trained weights, everything that prediction needs beside them, and a model card; or ONNX.

    A bundle holds no weights of the backbone, which are found by name and known by their hash; no names of cases; and
    no paths. `dinounet predict`, `load`, `info` and `push` take it. Several runs, such as the folds of a dataset,
    become one bundle whose networks predict together. Their weights are not averaged: the mean of two networks is none.

    As ONNX (extra export) each network is one file, backbone included, which onnxruntime computes without PyTorch;
    onnx.json beside it holds what a bundle's record does. `dinounet predict`, `load` and `info` take the folder.

    For nnU-Net it is a folder, a fold for each network, that nnUNetv2_predict_from_modelfolder predicts from.

    Args:
        runs: Folders that `dinounet train` wrote, or a folder of such; for ONNX also a bundle, for nnU-Net bundles.
        output: Folder for the bundle: a new one, or an older bundle, of which the part of README.md that you wrote is
            kept. Otherwise a new one.
        format: What to write.
        licence: Licence that you give the trained weights, as the Hub names it, such as cc-by-4.0.
        weights: For ONNX, where the backbone's weights are, if not where they were in training.
        int8: For ONNX, what is held and computed in 8 bits: weights of products alone, or (static) convolutions and
            what lies between as well, by scales that are measured on the images of --calibrate.
        calibrate: Images, or folders of them, such as those that were trained on.

    Returns:
        The folder.
    """
    from dinounet.errors import ConfigError

    if (int8 == "static") != bool(calibrate):
        raise ConfigError("--int8 static and --calibrate IMAGES belong together; give both, or neither")
    if format == "onnx":
        from dinounet.bundle.onnx import export_onnx

        return export_onnx(runs, Path(output), licence=licence, weights=weights, int8=int8, calibrate=calibrate)
    for flag, given in (("--weights", weights), ("--int8", int8 != "none")):
        if given:
            raise ConfigError(f"{flag} is for ONNX files; add --format onnx, or leave it out")
    if format == "nnunet":
        from dinounet.nnunet.conversions import export_to_nnunet

        if licence:
            raise ConfigError("a folder for nnU-Net has no place for --licence; leave it out, or export a bundle")
        return export_to_nnunet(runs, Path(output))
    from dinounet.bundle.export import export_runs

    return export_runs(runs, Path(output), licence)


@checked
def import_(
    checkpoint: Path,
    /,
    output: Path,
    *,
    plans: Path | None = None,
    dataset: Path | None = None,
    licence: str | None = None,
) -> Path:
    """Make a bundle of a Dino U-Net that was trained in nnU-Net, or by the published code; dinounet predicts with it.

    A checkpoint is a pickle: it is read as tensors and plain values, and refused if it holds anything else. The frozen
    backbone in a published one is kept in the bundle's folder, for this machine; `dinounet push` leaves it out.

    Args:
        checkpoint: A checkpoint_final.pth or checkpoint_best.pth, or the folder of a model that nnU-Net trained, whose
            folds then predict together.
        plans: The plans.json that it was trained by, if not the one in its folder; of volumes a 2d configuration.
        dataset: The dataset.json of its data, if not the one in its folder.
        output: Folder for the bundle: a new one, or an older bundle.
        licence: Licence of the trained weights, as the Hub names it.

    Returns:
        The bundle's folder.
    """
    from dinounet.nnunet.conversions import import_trained

    return import_trained(
        Path(checkpoint), Path(output), Path(plans) if plans else None, Path(dataset) if dataset else None, licence
    )


@checked
def push(
    bundle: Path,
    repository: str,
    /,
    *,
    revision: str | None = None,
    private: bool = False,
) -> str:
    """Upload a bundle to the Hugging Face Hub, where others find it as hf://user/name.

    Log in before by `hf auth login`, or set HF_TOKEN. Weights, model.json and the model card go up in one commit; the
    backbone's weights don't.

    Args:
        bundle: Folder that `dinounet export` or `dinounet import` wrote.
        repository: Name on the Hub, user/name or hf://user/name; made if it is not there.
        revision: Branch to put it on, made if it is not there; by default main.
        private: If the repository is made now, show it to its owners only.

    Returns:
        Its address.
    """
    from dinounet.bundle.hub import push_bundle

    return push_bundle(Path(bundle), repository, revision=revision, private=private)
