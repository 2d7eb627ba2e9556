"""A folder of exported networks: what is given to programs that have onnxruntime and no PyTorch.

    model.onnx        a network with its backbone; of several that predict together model_0.onnx, model_1.onnx ...
    model.onnx.data   its weights, where it would have more than 2 GB
    onnx.json         everything between a file and a network, and between logits and a mask: a bundle's record

It names no file, as a bundle doesn't. An ONNX file can name others with its weights: only its own one is let through,
since older versions of onnxruntime would read whatever is named.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dinounet.errors import ConfigError, DataError, WeightsError
from dinounet.files import to_record
from dinounet.inference.bundle import (
    LARGEST_NUMBER,
    BundledNetwork,
    BundleRecord,
    read_untrusted,
    require_hash,
    upgrade,
)
from dinounet.plans import Plan

EXPORTED = "onnx.json"

INPUT, OUTPUT = "image", "logits"
"""Of each network: float32 (batch, channels, height, width) and (batch, classes or regions, height, width)."""

FORMAT = 1


@dataclass(frozen=True)
class OnnxFile:
    """One network's file."""

    sha256: str
    """Of the file itself."""

    data_sha256: str | None = None
    """Of the file beside it that holds the weights; None: it holds them itself."""


@dataclass(frozen=True)
class OnnxRecord:
    """What `onnx.json` holds."""

    bundle: BundleRecord
    """What a bundle's `model.json` holds: from a file to a patch, the networks, from logits to a mask."""

    files: tuple[OnnxFile, ...]
    """Of each of the bundle's networks."""

    multiple: tuple[int, int]
    """Rows and columns of what a network is given are multiples of these, and twice these at least; an image is
    enlarged to that below and to the right by its last row and column, and the logits there are cut off."""

    opset: int
    """Of ONNX's operators."""

    int8: Literal["none", "weights", "static"] = "none"
    """weights: those of products are held in int8, and what they are multiplied by is rounded as it comes; static:
    convolutions too, and everything between them is rounded by scales that were measured on images."""

    calibration_images: int = 0
    """On which the scales were measured."""

    format: int = FORMAT
    """Version of this file's keys."""

    def __post_init__(self) -> None:
        if len(self.files) != len(self.bundle.networks):
            raise ConfigError(f"files names {len(self.files)} files for {len(self.bundle.networks)} networks")
        if not all(1 <= step <= LARGEST_NUMBER for step in self.multiple):
            raise ConfigError(f"multiple is {list(self.multiple)}; it must be two numbers from 1 to {LARGEST_NUMBER}")

    @property
    def names(self) -> list[str]:
        """The files, in the order of the networks."""
        return names_of(len(self.files))

    @property
    def precision(self) -> str:
        """That the networks compute with."""
        return "fp32" if self.int8 == "none" else "int8"


def names_of(networks: int) -> list[str]:
    """The names of so many networks' files."""
    return ["model.onnx"] if networks == 1 else [f"model_{index}.onnx" for index in range(networks)]


def data_of(name: str) -> str:
    """The name of the file with a network's weights, where they don't fit into its own."""
    return f"{name}.data"


def is_onnx_file(path: Path) -> bool:
    """Whether a name is that of an ONNX file, and of no folder."""
    return path.suffix == ".onnx" and not path.is_dir()


def read_exported(folder: Path, only: str | None = None) -> OnnxRecord:
    """The record in a folder; of the networks nothing is read.

    Args:
        folder: that `dinounet export --format onnx` wrote.
        only: the file in it that is asked for.

    Raises:
        UserError: the file or the record is missing, or the record is damaged or of another version.
    """
    path = folder / EXPORTED
    if only and not (folder / only).is_file():
        raise DataError(f"{folder / only} does not exist; give the file or folder that `dinounet export` wrote")
    if not path.is_file():
        raise DataError(
            f"{folder / (only or '')} has no {EXPORTED} beside it, which says how images become its input; give it "
            "in the folder that `dinounet export --format onnx` wrote"
        )
    content = read_untrusted(path, what="the record of exported networks")
    if isinstance(content, Mapping) and content.get("format") != FORMAT:
        raise ConfigError(
            f"{path} has the format {content.get('format')!r}, and this dinounet reads {FORMAT}; export the bundle "
            "anew, or use the dinounet that wrote it"
        )
    if isinstance(content, Mapping) and "bundle" in content:
        content = {**content, "bundle": upgrade(content["bundle"], f"{path}, bundle,")}
    return to_record(OnnxRecord, content, where=str(path))


def checked_networks(
    folder: Path, record: OnnxRecord, only: str | None = None
) -> Iterator[tuple[str, OnnxFile, BundledNetwork, Plan]]:
    """Of each network (or the only one) its file, which is what the record says, and what is known of it.

    Raises:
        WeightsError: a file is missing, damaged or changed, or the record knows none of that name.
    """
    if only and only not in record.names:
        raise WeightsError(
            f"{folder / only} is none of the networks of {EXPORTED} beside it, which are {', '.join(record.names)}"
        )
    for name, file, one, plan in zip(
        record.names, record.files, record.bundle.networks, record.bundle.plans, strict=True
    ):
        if only in (None, name):
            hashes = {name: file.sha256} | ({data_of(name): file.data_sha256} if file.data_sha256 else {})
            for held, sha256 in hashes.items():
                if not (folder / held).is_file():
                    raise WeightsError(f"{folder} lacks {held}; copy the folder again")
                require_hash(folder / held, sha256, EXPORTED)
            _require_own_weights(folder / name, data_of(name) if file.data_sha256 else None)
            yield name, file, one, plan


def _require_own_weights(path: Path, data: str | None) -> None:
    """Raise a WeightsError if an ONNX file has weights in any other file than this one.

    A tensor in another file has an entry `location` in its field 13 (onnx.proto, TensorProto.external_data). Wherever
    these letters stand, they must be that entry in its usual form, of that length and with that value.
    """
    word, usual = b"location", b""
    if data:
        key, value = b"\n\x08" + word, b"\x12" + bytes([len(data)]) + data.encode()
        usual = b"\x6a" + bytes([len(key) + len(value)]) + key + value
    ahead = usual.find(word)
    if not path.stat().st_size:  # nothing to map, and no ONNX
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = content.find(word)
        while place >= 0:
            if not data or content[max(place - ahead, 0) : place - ahead + len(usual)] != usual:
                raise WeightsError(f"{path} wants weights from a file that is not its own; export it again")
            place = content.find(word, place + 1)
