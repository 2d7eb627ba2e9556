"""Filling the backbone, and knowing what it was filled with.

Files are known by what they hold, not by their names. Of PyTorch's own, which are pickles, only tensors are read.
Whatever the source, the backbone is named by one hash of all numbers that decide what it computes, so that a trained
network can refuse to work on another one.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dinounet.errors import WeightsError
from dinounet.network.backbone import FrozenBackbone
from dinounet.network.formats import to_timm
from dinounet.network.hub import FILE, INDEX, download, pages, shards
from dinounet.network.published import backbone_state, mismatches
from dinounet.network.variants import TIMM, VARIANTS, BackboneVariant, find_variant

RANDOM_STD = 0.02
"""Deviation of random weights; timm's for linear layers."""

RANDOM_LAYER_SCALE = 0.3
"""A pretrained block's mean. With timm's 1e-5 a random backbone would pass its patch embedding through unchanged."""

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)
"""Layers that start from ones and zeros."""


@dataclass(frozen=True)
class BackboneRecord:
    """Which backbone it was: enough to find the same one again, and to notice another one."""

    name: str
    """As in `dinounet info`."""

    weights: str
    """hub, random, or the path of the file or folder that they were read from."""

    sha256: str
    """Of the numbers in the backbone, whatever file or format they came from."""

    licence: str
    """Of the weights."""


def fill_backbone(backbone: FrozenBackbone, name: str, weights: str, seed: int = 0) -> BackboneRecord:
    """Give a backbone its weights: from the Hugging Face Hub, at random, or from a file or folder in any known format.

    Raises:
        WeightsError: the weights can't be had, or don't fit.
    """
    path = find_weights(name, weights)
    if path is None:
        _fill_at_random(backbone, seed)
        return BackboneRecord(name, weights, hash_backbone(backbone), "none (random weights)")
    _fill_from(backbone, path, find_variant(name))
    return BackboneRecord(name, source_of(weights), hash_backbone(backbone), find_variant(name).licence)


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
    """sha256 over the name and the float32 numbers of every tensor, in the order of the names."""
    digest = hashlib.sha256()
    for key, tensor in sorted(backbone_state(backbone.vit).items()):
        digest.update(f"{key}\0".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, of a folder with an index of several, or of a file of PyTorch's.

    Raises:
        WeightsError: it is none of these, is damaged or incomplete, or holds more than tensors.
    """
    if path.is_dir():
        tensors: dict[str, Tensor] = {}
        for name in shards(path / INDEX):
            if not (path / name).is_file():
                raise WeightsError(f"{path} lacks {name}, which its {INDEX} names; download it into that folder")
            tensors |= read_tensors(path / name)
        return tensors
    with path.open("rb") as file:
        start = file.read(16)
    if start[8:9] != b"{":  # where a safetensors file's header begins, after its length
        if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
            return _read_pytorch(path)
        raise WeightsError(
            f"{path} is no file of weights, neither of safetensors nor of PyTorch: it begins with {start!r}; download "
            "it again, and look at it if it is small: it may say what went wrong"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged or incomplete ({error}); download it again") from None


def _read_pytorch(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by `torch.save`, without running what a pickle may ask to be run."""
    whole = zipfile.is_zipfile(path)  # its table of contents is at the end
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=whole)
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path} holds more than tensors, which could run code and is not read; use the project's own file of "
            "weights, or one in safetensors"
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} is damaged or incomplete ({reason}); download it again") from None
    if not isinstance(held, dict) or not held or not all(isinstance(tensor, Tensor) for tensor in held.values()):
        raise WeightsError(f"{path} does not hold tensors by name; use the project's own file of a backbone's weights")
    return held


def _fill_at_random(backbone: FrozenBackbone, seed: int) -> None:
    """The same numbers on every machine, in every version: NumPy's legacy generator is frozen, and uniform is exact."""
    random = np.random.RandomState(seed)
    bound = RANDOM_STD * math.sqrt(3)
    norms = {name for name, module in backbone.vit.named_modules() if isinstance(module, NORMS)}
    for name, parameter in sorted(backbone.vit.named_parameters()):
        with torch.no_grad():
            if ".gamma" in name:  # .gamma_1 of DINOv3, .ls1.gamma of DINOv2
                parameter.fill_(RANDOM_LAYER_SCALE)
            elif "norm" in name or name.rpartition(".")[0] in norms:
                parameter.fill_(float(name.endswith("weight")))
            elif "bias" in name:
                parameter.zero_()
            else:
                numbers = random.uniform(-bound, bound, parameter.numel()).astype(np.float32)
                parameter.copy_(torch.from_numpy(numbers).view(parameter.shape))


def _fill_from(backbone: FrozenBackbone, path: Path, variant: BackboneVariant) -> None:
    """Copy a file's numbers: every tensor is used once, or named in an error."""
    format, state = to_timm(read_tensors(path))
    expected = backbone.vit.state_dict()
    rope = {key: tensor for key, tensor in backbone_state(backbone.vit).items() if key not in expected}
    given = {key: tensor for key, tensor in state.items() if not key.startswith(_classifier(variant))}
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
            f"{path} does not fit {variant.name} (read as {format}: {listed}); {remedy} {where_to_get(variant)}"
        )
    with torch.no_grad():
        for key, tensor in given.items():
            {**expected, **rope}[key].copy_(tensor)


def _classifier(variant: BackboneVariant) -> tuple[str, ...]:
    """How the names of a classifier's tensors begin, which models of timm's have and a backbone doesn't."""
    if not variant.name.startswith(TIMM):
        return ()
    import timm

    names = getattr(timm.get_pretrained_cfg(variant.timm_name), "classifier", None) or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
