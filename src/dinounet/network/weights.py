"""Filling the backbone, and knowing what it was filled with.

Only safetensors files are read. Whatever the source, the backbone is named by one hash of all numbers that decide what
it computes, so that a trained network can refuse to work on another one.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dinounet.errors import WeightsError
from dinounet.network.backbone import FrozenBackbone
from dinounet.network.published import backbone_state, mismatches
from dinounet.network.variants import find_variant

RANDOM_STD = 0.02
"""Deviation of random weights; timm's for linear layers."""

RANDOM_LAYER_SCALE = 0.3
"""A pretrained block's mean. With timm's 1e-5 a random backbone would pass its patch embedding through unchanged."""


@dataclass(frozen=True)
class BackboneRecord:
    """Which backbone it was: enough to find the same one again, and to notice another one."""

    name: str
    """As in `dinounet info`."""

    weights: str
    """hub, random, or the path of the file that they were read from."""

    sha256: str
    """Of the numbers in the backbone, whatever file or format they came from."""

    licence: str
    """Of the weights."""


def fill_backbone(backbone: FrozenBackbone, name: str, weights: str, seed: int = 0) -> BackboneRecord:
    """Give a backbone its weights: from the Hugging Face Hub, at random, or from a safetensors file in timm's names.

    Raises:
        WeightsError: the weights can't be had, or don't fit.
    """
    path = find_weights(name, weights)
    if path is None:
        _fill_at_random(backbone, seed)
        return BackboneRecord(name, weights, hash_backbone(backbone), "none (random weights)")
    _fill_from_file(backbone, path, name)
    return BackboneRecord(name, source_of(weights), hash_backbone(backbone), find_variant(name).licence)


def source_of(weights: str) -> str:
    """hub, random, or the file's absolute path: as a record names it."""
    return weights if weights in ("hub", "random") else str(Path(weights).absolute())


def find_weights(name: str, weights: str) -> Path | None:
    """The file that holds a backbone's weights, downloaded if they are the Hub's and not in its cache; None for random.

    Raises:
        WeightsError: there is no such file, or the Hub can't be reached or refuses.
    """
    if weights == "random":
        return None
    if weights == "hub":
        return _download(find_variant(name).timm_name)
    path = Path(weights)
    if not path.is_file():
        raise WeightsError(f"{path} is no file; give --weights a safetensors file of {name}, or hub, or random")
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path} is not a .safetensors file; other formats can run code and are not read")
    return path


def hash_backbone(backbone: FrozenBackbone) -> str:
    """sha256 over the name and the float32 numbers of every tensor, in the order of the names."""
    digest = hashlib.sha256()
    for key, tensor in sorted(backbone_state(backbone.vit).items()):
        digest.update(f"{key}\0".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _fill_at_random(backbone: FrozenBackbone, seed: int) -> None:
    """The same numbers on every machine, in every version: NumPy's legacy generator is frozen, and uniform is exact."""
    random = np.random.RandomState(seed)
    bound = RANDOM_STD * math.sqrt(3)
    for name, parameter in sorted(backbone.vit.named_parameters()):
        with torch.no_grad():
            if ".gamma" in name:  # .gamma_1 of DINOv3, .ls1.gamma of DINOv2
                parameter.fill_(RANDOM_LAYER_SCALE)
            elif "norm" in name:
                parameter.fill_(float(name.endswith("weight")))
            elif "bias" in name:
                parameter.zero_()
            else:
                numbers = random.uniform(-bound, bound, parameter.numel()).astype(np.float32)
                parameter.copy_(torch.from_numpy(numbers).view(parameter.shape))


def _fill_from_file(backbone: FrozenBackbone, path: Path, name: str) -> None:
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} can't be read as safetensors ({error}); download it again") from None
    problems = mismatches(backbone.vit.state_dict(), state)
    if problems:
        listed = "; ".join(f"{len(keys)} {kind}, as {', '.join(keys[:3])}" for kind, keys in problems.items())
        raise WeightsError(f"{path} does not fit {name} ({listed}); choose the backbone that the file is of")
    backbone.vit.load_state_dict(state)


def _download(timm_name: str) -> Path:
    """The weights' file in the Hub's cache, downloaded if it isn't there yet; offline mode is respected."""
    import timm
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    repository, file = timm.get_pretrained_cfg(timm_name).hf_hub_id, "model.safetensors"
    try:
        cached = try_to_load_from_cache(repository, file)
        if isinstance(cached, str):
            return Path(cached)
        get_hf_file_metadata(hf_hub_url(repository, file), timeout=10)  # asks once; a download would retry for long
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # the hub's client raises its own errors, its HTTP library's and the system's
        reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        raise WeightsError(
            f"the weights can't be had from the Hugging Face Hub ({type(error).__name__}: {reason}); where there is a "
            f"connection, download {file} from https://huggingface.co/{repository} and pass it as --weights FILE"
        ) from None
