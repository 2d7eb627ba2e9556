"""`dinounet import`: a checkpoint of the published Dino U-Net as a bundle. (Python keeps the word for itself.)"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def import_(
    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    /,
    plans: Path,
    dataset: Path,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    *,
    licence: str | None = None,
) -> Path:
    """Make a bundle of a checkpoint of the published Dino U-Net, which dinounet then predicts with.

    The checkpoint is a pickle: it is read as tensors and plain values, and refused if it holds anything else. The
    frozen backbone in it is kept in the bundle's folder, for this machine; `dinounet push` leaves it out.

    Args:
        checkpoint: nnU-Net's checkpoint_final.pth or checkpoint_best.pth.
        plans: The plans.json in its folder; of volumes a 2d configuration.
        dataset: The dataset.json in its folder.
        output: Folder for the bundle: a new one, or an older bundle.
        licence: Licence of the trained weights, as the Hub names it.

    Returns:
        The bundle's folder.
    """
    from dinounet.sharing.published import import_checkpoint

    return import_checkpoint(Path(checkpoint), Path(plans), Path(dataset), Path(output), licence)
