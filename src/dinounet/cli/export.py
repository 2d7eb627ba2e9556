"""`dinounet export`: a trained run, or several, as a bundle to share, as ONNX files, or as a folder for nnU-Net."""

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
