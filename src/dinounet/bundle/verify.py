"""A bundle's files checked before they are used: sizes, hashes, shapes and names of tensors."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path

import psutil

from dinounet.errors import DataError, WeightsError
from dinounet.schema.base import LARGEST_JSON, read_record
from dinounet.schema.bundle import BUNDLE, EXPORTED, BundledNetwork, BundleRecord, OnnxFile, OnnxRecord
from dinounet.schema.network import NetworkConfig, UNetConfig
from dinounet.schema.plan import Plan


def read_bundle(folder: Path) -> BundleRecord:
    """Read a bundle's record, upgraded if it is an older one; of the weights nothing is read.

    Raises:
        UserError: it is missing or damaged, has unknown, missing or wrong keys, or is of a newer dinounet.
    """
    return read_record(BundleRecord, folder / BUNDLE, what="the record of a bundle", largest=LARGEST_JSON)


def checked_weights(folder: Path, record: BundleRecord) -> list[Path]:
    """The files of weights of a bundle, once each is what its record says.

    Raises:
        WeightsError: one is missing, damaged or changed, holds other tensors than its network has, or its network is
            larger than this machine's memory.
    """
    paths = [folder / name for name in record.files]
    for path, one in zip(paths, record.networks, strict=True):
        if not path.is_file():
            raise WeightsError(f"{folder} lacks {path.name}; get the bundle again")
        require_hash(path, one.sha256, BUNDLE)
        _require_shapes(path, one.network)
    return paths


def require_hash(path: Path, sha256: str, record: str) -> None:
    """Raise a WeightsError unless a file is what the record beside it says."""
    found = hash_file(path)
    if found != sha256:
        raise WeightsError(
            f"{path} is damaged or was changed: its sha256 is {found[:12]}, not {sha256[:12]} as {record} says; get "
            "the bundle again"
        )


def hash_file(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _require_shapes(path: Path, config: NetworkConfig | UNetConfig) -> None:
    """Compare the shapes in a file with those of its network, which is built without memory."""
    import torch  # here, since who predicts by ONNX reads records without it
    from safetensors import SafetensorError, safe_open

    from dinounet.backbones.frozen import build_network
    from dinounet.network.dinounet import DinoUNet
    from dinounet.network.unet import rename_monai_keys

    with torch.device("meta"):
        network = build_network(config)
    expected = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file:
            given = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 -- no mapping
        given = rename_monai_keys(given)
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged ({error}); get the bundle again") from None
    differing = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
    if differing:
        raise WeightsError(
            f"{path} does not hold the network that {BUNDLE} describes: {len(differing)} tensors differ, as "
            f"{', '.join(differing[:3])}; get the bundle again"
        )
    tensors = list(network.state_dict().values())
    if isinstance(network, DinoUNet) and network.config.backbone_args:  # else of a known size, and may be offloaded
        tensors += network.backbone.vit.parameters()
    needed, there = 4 * sum(tensor.numel() for tensor in tensors), psutil.virtual_memory().total
    if needed > there:
        raise WeightsError(
            f"the network of {path} takes {needed / 1e9:,.1f} GB, more than this machine's memory of "
            f"{there / 1e9:,.1f} GB; use a larger machine"
        )


def data_of(name: str) -> str:
    """The name of the file with a network's weights, where they don't fit into its own."""
    return f"{name}.data"


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
            f"{folder / (only or '')} has no {EXPORTED} beside it, which describes how images become its input; give "
            "it in the folder that `dinounet export --format onnx` wrote"
        )
    return read_record(OnnxRecord, path, what="the record of exported networks", largest=LARGEST_JSON)


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
                raise WeightsError(f"{path} refers to weights in a file outside its own; export it again")
            place = content.find(word, place + 1)
