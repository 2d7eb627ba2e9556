"""Files of weights, read a few tensors at a time: what is read is let go before the next, so 7B never is there twice.

A file is mapped into memory, and parts that were looked at count as the process's for as long as it is: so it is opened
anew for each read, which takes a millisecond.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dinounet.errors import WeightsError
from dinounet.network.formats import find_format
from dinounet.network.hub import INDEX, shards


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
        """By name: vectors as they are, of all else only the shape, on PyTorch's device `meta`."""
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
    """What `take` makes of a file's tensors, of those that are named, or of all."""
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
            f"{path} is no file of weights, neither of safetensors nor of PyTorch: it begins with {start!r}; download "
            "it again, and look at it if it is small: it may say what went wrong"
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
        """By name: vectors as they are, of all else the shape."""
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
