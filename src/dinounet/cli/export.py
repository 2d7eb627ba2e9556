"""`dinounet export`: a trained run, or several, as a bundle to share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def export(
    runs: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")],
    /,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    *,
    licence: str | None = None,
) -> Path:
    """Write a bundle: the trained weights, everything that prediction needs beside them, and a model card.

    A bundle holds no weights of the backbone, which are found by name and known by their hash; no names of cases; and
    no paths. `dinounet predict`, `load`, `info` and `push` take it. Several runs, such as the folds of a dataset,
    become one bundle whose networks predict together. Their weights are not averaged: the mean of two networks is none.

    Args:
        runs: Folders that `dinounet train` wrote, or a folder of such.
        output: Folder for the bundle: a new one, or an older bundle, of which the part of README.md that you wrote is
            kept.
        licence: Licence that you give the trained weights, as the Hub names it, such as cc-by-4.0.

    Returns:
        The bundle's folder.
    """
    runs = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]  # Python users may give one
    from dinounet.sharing.export import export_runs

    return export_runs(runs, Path(output), licence)
