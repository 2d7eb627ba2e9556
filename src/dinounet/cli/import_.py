"""`dinounet import`: what nnU-Net or the published code trained, as a bundle. (Python keeps the word for itself.)"""

from __future__ import annotations

from pathlib import Path

from dinounet.schema.arguments import checked


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
