"""From runs, bundles and exported networks to a predictor. PyTorch is imported for the first two alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dinounet.arguments import checked
from dinounet.data.formats import other_reading
from dinounet.device import Device, Precision
from dinounet.errors import ConfigError
from dinounet.files import read_record
from dinounet.inference.ensemble import require_alike
from dinounet.inference.models import TrainedModel, find_models
from dinounet.inference.postprocessing import Postprocessing, agree, check_names
from dinounet.inference.predictor import Batch, Engine, Predictor, Settings
from dinounet.inference.views import TestTimeAugmentation
from dinounet.network.provenance import BackboneRecord
from dinounet.progress import say

PostprocessingChoice = Literal["auto", "none"] | str | Path
"""auto: what the run's review chose, of several runs what all of them chose; none; or a file."""


@checked
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
        from dinounet.inference.by_onnxruntime import ByOnnxruntime

        engine, backbone = ByOnnxruntime(models, device, precision), first.backbone
    else:
        from dinounet.device import choose_device, choose_precision
        from dinounet.inference.by_pytorch import ByPyTorch, load_networks

        chosen = choose_device(device)
        computed = choose_precision(precision, chosen)
        networks, backbone = load_networks(models, weights, offload=offload)
        engine = ByPyTorch(networks, chosen, computed)
    return Predictor(engine, first.plan, backbone, settings, post, models)


def _postprocessing(choice: PostprocessingChoice, models: Sequence[TrainedModel]) -> Postprocessing | None:
    """What is done with masks; of several models what was chosen for all of them."""
    if choice == "none":
        return None
    known = models[0].plan.data.meaning
    if choice != "auto":
        post = read_record(Postprocessing, Path(choice), what="a postprocessing, as a run's folder holds it")
        check_names(post, known, str(choice))
        return post
    posts = [model.postprocessing for model in models]
    return posts[0] if len(posts) == 1 else agree(posts)
