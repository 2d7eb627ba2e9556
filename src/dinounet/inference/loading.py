"""From runs and bundles to a predictor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file

from dinounet.device import Device, Precision, choose_device, choose_precision
from dinounet.errors import ConfigError, WeightsError
from dinounet.files import read_record
from dinounet.inference.models import TrainedModel, find_models
from dinounet.inference.postprocessing import Postprocessing, agree, check_names
from dinounet.inference.predictor import Batch, Predictor, Settings
from dinounet.inference.views import TestTimeAugmentation
from dinounet.network.backbone import FrozenBackbone, build_backbone
from dinounet.network.build import Network, build_network
from dinounet.network.config import NetworkConfig
from dinounet.network.initialisation import WithoutInitialValues
from dinounet.network.weights import BackboneRecord, fill_backbone

PostprocessingChoice = Literal["auto", "none"] | str | Path
"""auto: what the run's review chose, of several runs what all of them chose; none; or a file."""


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
        runs: the folder that `dinounet train` or `dinounet export` wrote, several, a folder that holds several, or the
            name of a bundle on the Hugging Face Hub, user/name or user/name@revision. A folder on this machine goes
            before a name on the Hub.
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
    if (weights or offload) and all(model.backbone is None for model in models):
        flag = "--weights" if weights else "--offload"
        raise ConfigError(f"{first.named} is a U-Net, which has no backbone; leave {flag} out")
    settings = Settings(tta, step, batch)
    networks: list[Network] = []
    filled: list[tuple[TrainedModel, Any, BackboneRecord]] = []
    """Backbones, which folds share."""
    for model in models:
        shared = next((one for one in filled if _same_backbone(one[0], model)), None)
        with WithoutInitialValues():
            network = build_network(model.plan.network, shared[1] if shared else _outline(model, offload))
        if model.backbone and not shared:
            filled.append((model, network.backbone, _fill(network, model.backbone, weights, model)))
        try:
            network.load_state_dict(load_file(model.file))
        except (SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise WeightsError(f"{model.file} is damaged ({reason}); copy the run again") from None
        networks.append(network)
    chosen = choose_device(device)
    backbone = filled[0][2] if first.backbone else None
    post = _postprocessing(postprocessing, models)
    return Predictor(networks, first.plan, backbone, chosen, choose_precision(precision, chosen), settings, post)


def require_alike(model: TrainedModel, first: TrainedModel) -> None:
    """Raise a ConfigError unless both see an image the same and answer the same."""
    for name in (
        "channels", "labels", "regions", "ignore", "slice_axis", "spacing", "unknown_spacing", "patch",
        "channel_projection", "file_ending",
    ):  # fmt: skip
        if getattr(model.plan.data, name) != getattr(first.plan.data, name):
            raise ConfigError(
                f"{model.named} and {first.named} can't predict together: their plans differ in data.{name}; train "
                "them by one plan (--plan plan.json)"
            )


def _outline(model: TrainedModel, offload: bool) -> FrozenBackbone | None:
    """The model's backbone, not filled yet; a U-Net has none."""
    config = model.plan.network
    return build_backbone(config, offload=offload) if isinstance(config, NetworkConfig) else None


def _same_backbone(one: TrainedModel, other: TrainedModel) -> bool:
    """Whether one backbone in memory serves both."""
    hashes = [model.backbone and model.backbone.sha256 for model in (one, other)]
    return None not in hashes and hashes[0] == hashes[1] and one.plan.network == other.plan.network


def _fill(network: Any, known: BackboneRecord, weights: str | None, model: TrainedModel) -> BackboneRecord:
    """Give the network the backbone that it was trained on."""
    found = fill_backbone(network.backbone, known.name, weights or known.weights, model.seed)
    if found.sha256 != known.sha256:
        raise WeightsError(
            f"the weights from {found.weights} are not those that {model.named} was trained on (sha256 "
            f"{found.sha256[:12]}, not {known.sha256[:12]}); pass the right ones with --weights"
        )
    return found


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
