"""Filling the backbone, and knowing what it was filled with.

Files are known by what they hold, not by their names. Of PyTorch's own, which are pickles, only tensors are read.
Whatever the source, the backbone is named by one hash of all numbers that decide what it computes, so that a trained
network can refuse to work on another one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dinounet.errors import WeightsError
from dinounet.network.backbone import FrozenBackbone
from dinounet.network.held import held_linears
from dinounet.network.hub import FILE, INDEX, download, pages
from dinounet.network.offload import bring_blocks
from dinounet.network.provenance import BackboneRecord
from dinounet.network.published import backbone_state, mismatches
from dinounet.network.reading import StoredBackbone
from dinounet.network.variants import TIMM, VARIANTS, BackboneVariant, find_variant

RANDOM_STD = 0.02
"""Deviation of random weights; timm's for linear layers."""

RANDOM_LAYER_SCALE = 0.3
"""A pretrained block's mean. With timm's 1e-5 a random backbone would pass its patch embedding through unchanged."""

NUMBERS_TOGETHER = 2**20
"""Drawn or hashed at a time."""

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)
"""Layers that start from ones and zeros."""


def fill_backbone(backbone: FrozenBackbone, name: str, weights: str, seed: int = 0) -> BackboneRecord:
    """Give a backbone its weights: from the Hugging Face Hub, at random, or from a file or folder in any known format.

    They pass one by one, are hashed, and rounded to what the backbone holds; what it keeps on the disk is only hashed.

    Raises:
        WeightsError: the weights can't be had, or don't fit, or are to be brought from the disk and stand in no file.
    """
    path = find_weights(name, weights)
    if path is None:
        if backbone.on_disk:
            raise WeightsError(
                "--offload computes from a file of weights, and random ones stand in none; pass a file by --weights, "
                "or leave --offload out"
            )
        sha256 = _fill(backbone, random_numbers(backbone, seed))
        return BackboneRecord(name, weights, sha256, "none (random weights)", backbone.precision)
    variant = find_variant(name)
    stored = StoredBackbone(path, without=_classifier(variant))
    _check(backbone, stored, path, variant)
    sha256 = _fill(backbone, _numbers_of(backbone, stored))
    if backbone.on_disk:
        bring_blocks(backbone, stored)
    return BackboneRecord(name, source_of(weights), sha256, variant.licence, backbone.precision)


def source_of(weights: str) -> str:
    """hub, random, or the file's absolute path: as a record names it."""
    return weights if weights in ("hub", "random") else str(Path(weights).absolute())


def find_weights(name: str, weights: str) -> Path | None:
    """The file or folder that holds a backbone's weights, downloaded if they are the Hub's and not in its cache.

    Returns:
        its path; None for random weights.

    Raises:
        WeightsError: there is no such file, or the Hub can't be reached or refuses.
    """
    if weights == "random":
        return None
    variant = find_variant(name)
    if weights == "hub":
        return download(variant)
    if "://" in weights:
        raise WeightsError(f"--weights is the link {weights}; download what it leads to and pass the file")
    path = Path(weights)
    if path.is_dir():
        held = [path / file for file in (FILE, INDEX) if (path / file).is_file()]
        if not held:
            raise WeightsError(f"{path} holds no {FILE} and no {INDEX}; {where_to_get(variant)}")
        return held[0] if held[0].name == FILE else path
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; {where_to_get(variant)}")
    return path


def where_to_get(variant: BackboneVariant) -> str:
    """What a user without the right file can do."""
    return f"download the weights of {variant.name} from {pages(variant)} and pass their file or folder by --weights"


def hash_backbone(backbone: FrozenBackbone) -> str:
    """sha256 over the name and the float32 numbers of every tensor, in the order of the names.

    What `fill_backbone` tells is the hash of the numbers as they come, before they are rounded to what the backbone
    holds: it is the same in every precision. Of a backbone in float32 it is this one.
    """
    return _hash(sorted(backbone_state(backbone.vit).items()))


def _hash(numbers: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for key, tensor in numbers:
        digest.update(f"{key}\0".encode())
        for part in tensor.detach().reshape(-1).split(NUMBERS_TOGETHER):
            digest.update(part.float().cpu().numpy().data)
    return digest.hexdigest()


def _fill(backbone: FrozenBackbone, numbers: Iterator[tuple[str, Tensor]]) -> str:
    """Take over every tensor, one at a time; returns the hash of all as they came."""
    layers, others = held_linears(backbone.vit), backbone_state(backbone.vit)

    def take() -> Iterator[tuple[str, Tensor]]:
        for key, tensor in numbers:
            yield key, tensor
            if key not in layers:
                others[key].copy_(tensor)
            elif layers[key].is_here:
                layers[key].fill(tensor)

    with torch.no_grad():
        return _hash(take())


def random_numbers(backbone: FrozenBackbone, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Tensors and their names, in the names' order.

    The same numbers on every machine, in every version: NumPy's legacy generator is frozen, and uniform is exact.
    """
    random = np.random.RandomState(seed)
    bound = RANDOM_STD * math.sqrt(3)
    norms = {name for name, module in backbone.vit.named_modules() if isinstance(module, NORMS)}
    parameters = {name for name, _ in backbone.vit.named_parameters()}
    for name, tensor in sorted(backbone_state(backbone.vit).items()):
        if name not in parameters:
            yield name, tensor
        elif ".gamma" in name:  # .gamma_1 of DINOv3, .ls1.gamma of DINOv2
            yield name, torch.full(tensor.shape, RANDOM_LAYER_SCALE)
        elif "norm" in name or name.rpartition(".")[0] in norms:
            yield name, torch.full(tensor.shape, float(name.endswith("weight")))
        elif "bias" in name:
            yield name, torch.zeros(tensor.shape)
        else:
            drawn = torch.empty(tensor.numel())
            for part in drawn.split(NUMBERS_TOGETHER):
                part.copy_(torch.from_numpy(random.uniform(-bound, bound, len(part)).astype(np.float32)))
            yield name, drawn.view(tensor.shape)


def _check(backbone: FrozenBackbone, stored: StoredBackbone, path: Path, variant: BackboneVariant) -> None:
    """Every tensor of a file is used once, or named in an error."""
    expected = backbone.vit.state_dict()
    rope = {key: tensor for key, tensor in backbone_state(backbone.vit).items() if key not in expected}
    given = stored.outlines
    # the periods are in Meta's files alone; the others mean those that timm computes
    problems = mismatches({**expected, **{key: rope[key] for key in rope.keys() & given.keys()}}, given)
    if problems:
        listed = "; ".join(f"{len(keys)} {kind}, as {', '.join(keys[:3])}" for kind, keys in problems.items())
        size = sum(tensor.numel() for key, tensor in given.items() if key not in rope)
        same = [other.name for other in VARIANTS.values() if other.frozen == size]
        remedy = (
            f"it has the size of {' or '.join(same)}: choose that backbone, or" if same else "choose its backbone, or"
        )
        raise WeightsError(
            f"{path} does not fit {variant.name} (read as {stored.format.name}: {listed}); {remedy} "
            f"{where_to_get(variant)}"
        )


def _numbers_of(backbone: FrozenBackbone, stored: StoredBackbone) -> Iterator[tuple[str, Tensor]]:
    """Tensors and their names, in the names' order; what a file leaves out is as timm computes it."""
    state = sorted(backbone_state(backbone.vit).items())
    given = stored.read(name for name, _ in state if name in stored.outlines)
    for name, tensor in state:
        yield next(given) if name in stored.outlines else (name, tensor)


def _classifier(variant: BackboneVariant) -> tuple[str, ...]:
    """How the names of a classifier's tensors begin, which models of timm's have and a backbone doesn't."""
    if not variant.name.startswith(TIMM):
        return ()
    import timm

    names = getattr(timm.get_pretrained_cfg(variant.timm_name), "classifier", None) or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
