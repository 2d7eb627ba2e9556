"""Weights of the backbone: found, read a few tensors at a time, checked by their hash, filled in."""

from __future__ import annotations

import hashlib
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dinounet.backbones.frozen import FrozenBackbone
from dinounet.backbones.hub import FILE, INDEX, download, pages, shards, source_of
from dinounet.backbones.key_names import backbone_state, find_format, mismatches
from dinounet.backbones.low_precision import quantized_linears
from dinounet.backbones.registry import TIMM, VARIANTS, BackboneVariant, find_variant
from dinounet.errors import WeightsError
from dinounet.schema.network import BackboneRecord


class TensorFiles:
    """The tensors in a safetensors file, in a folder with an index of several, or in a file of PyTorch's.

    Args:
        path: the file or folder.

    Raises:
        WeightsError: it is none of these, is damaged or incomplete, or holds more than tensors.
    """

    def __init__(self, path: Path) -> None:
        files = [path / name for name in shards(path / INDEX)] if path.is_dir() else [path]
        for file in files:
            if not file.is_file():
                raise WeightsError(f"{path} lacks {file.name}, which its {INDEX} names; download it into that folder")
        self._files: dict[str, Path] = {}
        self.outlines: dict[str, Tensor] = {}
        """Tensors by name: vectors with their numbers, all others as shapes on PyTorch's device `meta`."""
        for file in files:
            outlines = _read(file, None, lambda tensor: tensor.clone() if tensor.ndim < 2 else tensor.to("meta"))
            self.outlines |= outlines
            self._files |= dict.fromkeys(outlines, file)

    def read(self, names: Collection[str]) -> dict[str, Tensor]:
        """Some tensors, mapped: they take memory as they are looked at, until they are let go.

        Raises:
            WeightsError: a file is not any more what it was.
        """
        found: dict[str, Tensor] = {}
        for file in dict.fromkeys(self._files[name] for name in names):
            found |= _read(file, [name for name in names if self._files[name] == file], lambda tensor: tensor)
        return found


def _read(path: Path, names: Collection[str] | None, take: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Results of `take` for the named tensors of a file, or for all of them, by name."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
        if start[8:9] == b"{":  # where a safetensors file's header begins, after its length
            with safe_open(path, "pt") as tensors:
                return {name: take(tensors.get_tensor(name)) for name in (tensors.keys() if names is None else names)}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged or incomplete ({error}); download it again") from None
    if start[:4] != b"PK\x03\x04" and start[:1] != b"\x80":
        raise WeightsError(
            f"{path} is not a file of weights, neither of safetensors nor of PyTorch: it begins with {start!r}; "
            "download it again, and look at it if it is small: it may say what went wrong"
        )
    held = _read_pytorch(path)
    return {name: take(held[name]) for name in (held if names is None else names)}


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


class StoredBackbone:
    """The tensors of a backbone by timm's names, whatever format they are in, converted as they are read.

    Args:
        path: file or folder.
        without: how the names begin, in timm's, of tensors that are not a backbone's.

    Raises:
        WeightsError: it can't be read, or holds a tensor twice.
    """

    def __init__(self, path: Path, without: tuple[str, ...] = ()) -> None:
        self._files = TensorFiles(path)
        self.format = find_format(self._files.outlines)
        held = self.format.convert(self._files.outlines)
        self.outlines = {name: tensor for name, tensor in held.items() if not name.startswith(without)}
        """Tensors by name: vectors with their numbers, all others as shapes."""
        groups: dict[str, list[str]] = {}
        for name in self._files.outlines:  # what makes up one tensor here stands in one block there
            groups.setdefault(_block_of(name), []).append(name)
        self._sources: dict[str, list[str]] = {}
        for names in groups.values():
            made = self.format.convert({name: self._files.outlines[name] for name in names})
            self._sources |= dict.fromkeys(made, names)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors one by one, and their names; of neighbours in a block the file is read once.

        Raises:
            WeightsError: a file is not any more what it was.
        """
        sources: list[str] = []
        block: dict[str, Tensor] = {}
        for name in names:
            if self._sources[name] is not sources:
                block = {}  # let go before the next is read
                sources = self._sources[name]
                block = self.format.convert(self._files.read(sources))
            yield name, block[name]


def _block_of(name: str) -> str:
    """A name up to its last number: the block, layer or stage that the tensor is part of."""
    found = re.match(r"(.*\.)?\d+(?=\.)", name)
    return found.group() if found else ""


def stream_blocks_from_disk(backbone: FrozenBackbone, stored: StoredBackbone) -> None:
    """Read each block's weights from a file before it computes, the next one's meanwhile, and release them afterwards.

    Not by accelerate's `disk_offload` (1.15): it starts from a model in memory, copies all weights to the disk once
    more (27 GB of 7B) and reads them only when they are due: passes of ViT-B took 1.5 times as long on a busy machine.
    """
    reader = ThreadPoolExecutor(1, "reads the next block")
    prefetched: dict[int, Future[dict[str, tuple[Tensor, Tensor]]]] = {}
    blocks = [quantized_linears(block) for block in backbone.vit.blocks]

    def read(index: int) -> dict[str, tuple[Tensor, Tensor]]:
        """A block's weights as they are stored."""
        names = [f"blocks.{index}.{name}" for name in blocks[index]]
        return {
            name: layer.convert(tensor)
            for (name, layer), (_, tensor) in zip(blocks[index].items(), stored.read(names), strict=True)
        }

    def load(index: int, image: Tensor) -> None:
        if index not in prefetched:
            prefetched[index] = reader.submit(read, index)
        weights = prefetched.pop(index).result()
        if index < max(backbone.taps):  # further ones don't compute
            prefetched[index + 1] = reader.submit(read, index + 1)
        for name, (weight, scale) in weights.items():
            blocks[index][name].put(weight.to(image.device), scale.to(image.device))

    def release(index: int) -> None:
        for layer in blocks[index].values():
            layer.empty("meta")

    for index, block in enumerate(backbone.vit.blocks):
        block.register_forward_pre_hook(lambda _block, inputs, index=index: load(index, inputs[0]))
        block.register_forward_hook(lambda _block, _inputs, _output, index=index: release(index))


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
                "--offload computes from a file of weights, and random weights are in none; pass a file by --weights, "
                "or leave --offload out"
            )
        sha256 = _fill(backbone, random_numbers(backbone, seed))
        return BackboneRecord(name, weights, sha256, "none (random weights)", backbone.precision)
    variant = find_variant(name)
    stored = StoredBackbone(path, without=_classifier(variant))
    _check(backbone, stored, path, variant)
    sha256 = _fill(backbone, _numbers_of(backbone, stored))
    if backbone.on_disk:
        stream_blocks_from_disk(backbone, stored)
    return BackboneRecord(name, source_of(weights), sha256, variant.licence, backbone.precision)


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
    """Remedy for a user without the right file."""
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
    layers, others = quantized_linears(backbone.vit), backbone_state(backbone.vit)

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
    """Prefixes of a classifier's tensors, which timm's models have and a backbone does not."""
    if not variant.name.startswith(TIMM):
        return ()
    import timm

    names = getattr(timm.get_pretrained_cfg(variant.timm_name), "classifier", None) or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
