"""`dinounet export`: a trained run, or several, as a bundle to share, or for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro


def export(
    runs: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")],
    /,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    *,
    licence: str | None = None,
    format: Literal["bundle", "nnunet"] = "bundle",
) -> Path:
    """Write a bundle: the trained weights, everything that prediction needs beside them, and a model card.

    A bundle holds no weights of the backbone, which are found by name and known by their hash; no names of cases; and
    no paths. `dinounet predict`, `load`, `info` and `push` take it. Several runs, such as the folds of a dataset,
    become one bundle whose networks predict together. Their weights are not averaged: the mean of two networks is none.

    Args:
        runs: Folders that `dinounet train` wrote, or a folder of such; for nnunet also bundles.
        output: Folder for the bundle: a new one, or an older bundle, of which the part of README.md that you wrote is
            kept.
        licence: Licence that you give the trained weights, as the Hub names it, such as cc-by-4.0.
        format: bundle; or nnunet, a folder that nnUNetv2_predict_from_modelfolder predicts from.

    Returns:
        The folder that was written.
    """
    runs = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]  # Python users may give one
    if format == "nnunet":
        from dinounet.integrations.nnunet.folders import export_to_nnunet

        return export_to_nnunet(runs, Path(output))
    from dinounet.sharing.export import export_runs

    return export_runs(runs, Path(output), licence)
