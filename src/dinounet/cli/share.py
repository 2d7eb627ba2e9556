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
    """Write a bundle to share: the trained weights, everything needed for prediction, and a model card; or ONNX.

    A bundle contains no backbone weights, which are found by name and verified by hash; no case names; and no paths.
    `dinounet predict`, `load`, `info` and `push` accept it. Several runs, such as the folds of a dataset, become one
    bundle whose networks predict together. Their weights are not averaged, since the mean of two networks is not a
    working network.

    As ONNX (extra export) each network is one file, backbone included, which onnxruntime runs without PyTorch;
    onnx.json beside it contains the bundle's record. `dinounet predict`, `load` and `info` accept the folder.

    For nnU-Net the output is a folder with one fold per network, for nnUNetv2_predict_from_modelfolder.

    Args:
        runs: Folders written by `dinounet train`, or a folder of such folders; for ONNX also a bundle, for nnU-Net also
            bundles.
        output: Folder for the bundle: a new one, or an existing bundle, in which your part of README.md is kept. For
            other formats it must be new.
        format: Format to write.
        licence: Licence under which you share the trained weights, by its name on the Hub, such as cc-by-4.0.
        weights: For ONNX: source of the backbone's weights, if not the same as in training.
        int8: For ONNX, 8-bit quantization: of the weights of matrix products only (weights), or also of convolutions
            and activations (static), with scales measured on the images of --calibrate.
        calibrate: Images, or folders of images, for static quantization, such as those used in training.

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
    """Make a bundle of a Dino U-Net that was trained in nnU-Net or by the published code, for prediction by dinounet.

    A checkpoint is a pickle: it is read as tensors and plain values, and refused if it contains anything else. The
    frozen backbone of a published checkpoint is kept in the bundle's folder, for this machine; `dinounet push` leaves
    it out.

    Args:
        checkpoint: File checkpoint_final.pth or checkpoint_best.pth, or a model folder of nnU-Net, whose folds then
            predict together.
        plans: File plans.json that the model was trained with, if not the one in its folder; for volumes, a 2d
            configuration.
        dataset: File dataset.json of the training data, if not the one in its folder.
        output: Folder for the bundle: a new one, or an existing bundle.
        licence: Licence of the trained weights, by its name on the Hub.

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

    Log in first with `hf auth login`, or set HF_TOKEN. Weights, model.json and the model card are uploaded in one
    commit, without the backbone's weights.

    Args:
        bundle: Folder written by `dinounet export` or `dinounet import`.
        repository: Repository on the Hub, user/name or hf://user/name; created if it does not exist.
        revision: Branch to upload to, created if it does not exist; by default main.
        private: Create the repository as private, visible to its owners only.

    Returns:
        Its address.
    """
    from dinounet.bundle.hub import push_bundle

    return push_bundle(Path(bundle), repository, revision=revision, private=private)
