"""NIfTI by nibabel alone, whole or plane by plane, and masks in it.

Voxels lie where the sform says if its code is above 0, else where the qform says, else only the spacing is known
(pixdim) and they are placed as ITK does. The header is taken as it is stored: nibabel's own checks repair some of what
is wrong, and tell that on standard error.
"""

from __future__ import annotations

import gzip
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dinounet.data.geometry import Geometry, NiftiForms, rounded
from dinounet.errors import DataError

NIFTI_ENDINGS = (".nii.gz", ".nii")

MAGIC: dict[bytes, Literal[1, 2]] = {b"n+1": 1, b"n+2": 2}
"""What stands in the headers of single files, and the version of the format."""

PAIRS = (b"ni1", b"ni2")
"""What stands in a header whose pixels are in a file of their own."""

MM = {1: 1000.0, 3: 0.001}
"""Units by the lower three bits of xyzt_units: metres and micrometres; all else is millimetres."""

FARTHEST = 1e30
"""Numbers by which a header places voxels are smaller than this."""

SCANNER = 1
"""Code of a form that is in the scanner's coordinates, as those of DICOM, NRRD and MHA are."""

MOST_OF_INT16 = 32767
"""Voxels along an axis up to which a file can be NIfTI-1."""

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""NIfTI's coordinates go to the right and the front, ours to the left and the back."""


@dataclass(frozen=True)
class NiftiFile:
    """A NIfTI file whose header is known and whose voxels are read when they are asked for."""

    path: Path
    """The file."""

    shape: tuple[int, int, int, int]
    """Channels, slices, rows and columns."""

    dtype: np.dtype[Any]
    """Type of the voxels that are read: as stored where the header asks for no scaling."""

    geometry: Geometry
    """Place in space."""

    can_give_planes: bool
    """Whether a plane can be read without the others."""

    _stored: Any
    """nibabel's proxy of the array as it is stored, (X, Y, ...)."""

    _scaling: tuple[float, float] | None
    """Slope and intercept, if the header has any."""

    _unpacked: gzip.GzipFile | None
    """A compressed file as it is unpacked."""

    def read(self) -> np.ndarray:
        """All voxels, (C, Z, Y, X)."""
        stored = np.asarray(self._stored)
        self._check_sum()
        depth, rows, columns = self.shape[1:]
        stored = stored.reshape(columns, rows, depth, -1, order="F")
        if self._scaling is None and stored.dtype.names is None:
            return np.ascontiguousarray(stored.T).astype(self.dtype, copy=False)
        array = np.empty(self.shape, self.dtype)
        for z in range(depth):
            array[:, z] = self._decode(stored[:, :, z])
        return array

    def read_plane(self, z: int) -> np.ndarray:
        """One plane, (C, Y, X); those of a compressed file cost one pass over it if they are read in order."""
        rest = len(self._stored.shape) - 3
        plane = np.asarray(self._stored[(slice(None), slice(None), z, *[0] * rest)])
        if z == self.shape[1] - 1:
            self._check_sum()
        return self._decode(plane[..., None])

    def _check_sum(self) -> None:
        """Raise an OSError if a compressed file isn't what was compressed: gzip compares that at the end alone."""
        while self._unpacked is not None and self._unpacked.read(1 << 20):
            pass

    def _decode(self, stored: np.ndarray) -> np.ndarray:
        """(C, Y, X) of (X, Y, C) as stored."""
        if stored.dtype.names:  # a colour
            stored = np.concatenate([stored[name] for name in stored.dtype.names], axis=-1)
        if self._scaling is not None:
            slope, intercept = self._scaling
            stored = stored * np.float64(slope) + np.float64(intercept)
        with np.errstate(over="ignore"):  # what becomes infinite is refused by whoever reads it
            return stored.T.astype(self.dtype)


def open_nifti(path: Path) -> NiftiFile:
    """Read a file's header.

    Raises:
        DataError: it is whole, but its header or its voxels can't be used.
        Exception: it is broken, in whatever way nibabel meets.
    """
    from nibabel.arrayproxy import ArrayProxy

    header, version = _read_header(path)
    stored_shape = tuple(int(length) for length in header.get_data_shape())
    shape, is_flat = _sizes(path, stored_shape)
    stored = header.get_data_dtype()
    offset = int(header["vox_offset"]) or header.single_vox_offset
    if offset < header.single_vox_offset:
        raise ValueError(f"its voxels begin at byte {offset}, in its header")
    _require_whole(path, offset + math.prod(stored_shape) * stored.itemsize)
    slope, intercept = header.get_slope_inter()
    scaling = None if slope is None or (slope, intercept) == (1, 0) or stored.names else (slope, intercept)
    if stored.names:
        shape = (len(stored.names), *shape[1:])
    # the file stays open, so that a compressed one is not unpacked from its start for each plane
    spec = (stored_shape, stored, offset, 1.0, 0.0)
    unpacked = gzip.GzipFile(path) if path.name.lower().endswith(".gz") else None
    return NiftiFile(
        path,
        shape,
        _type_of_values(path, stored, scaling is not None),
        _place(path, header, version, is_flat, _dims_of_mask(stored_shape, is_flat)),
        not is_flat and len(stored_shape) >= 3 and math.prod(stored_shape[3:]) == 1,
        ArrayProxy(unpacked or str(path), spec, mmap=False, keep_file_open=True),
        scaling,
        unpacked,
    )


def step_of(path: Path) -> float:
    """Difference in value of neighbouring stored integers; 0 where the header asks for no scaling."""
    scaling = open_nifti(path)._scaling
    return abs(scaling[0]) if scaling else 0.0


def write_nifti(path: Path, array: np.ndarray, geometry: Geometry | None) -> None:
    """Write an array (Z, Y, X) of the given place.

    What lies on the grid of a NIfTI file gets that file's forms, codes and units, and else nothing of its header, which
    may hold a patient's data. What lies elsewhere gets both forms, as the scanner's; a sheared place has no qform.
    """
    import nibabel

    forms = None if geometry is None else geometry.nifti
    flat = geometry is not None and len(geometry.spacing) == 2
    dims = forms.dims if forms else 2 if flat else 3
    voxels = array.T.reshape(*array.shape[: -dims - 1 : -1], *[1] * (dims - 3))
    large = max(voxels.shape) > MOST_OF_INT16 or (forms is not None and forms.version == 2)
    kind: Any = nibabel.Nifti2Image if large else nibabel.Nifti1Image
    image = kind(voxels, None, dtype=array.dtype)
    header = image.header  # filled in place: what is given is checked, and codes that nibabel doesn't know become 0
    if forms is not None:
        header["pixdim"], header["xyzt_units"] = forms.pixdim, forms.xyzt_units
        header["qform_code"], header["sform_code"] = forms.qform_code, forms.sform_code
        for name, number in zip("bcd", forms.quatern, strict=True):
            header[f"quatern_{name}"] = number
        for axis, number, row in zip("xyz", forms.qoffset, forms.srow, strict=True):
            header[f"qoffset_{axis}"], header[f"srow_{axis}"] = number, row
    elif geometry is not None:
        affine = TO_LPS @ geometry.affine
        header.set_zooms(geometry.spacing)
        header.set_xyzt_units("mm")
        header.set_sform(affine, SCANNER)
        if not geometry.is_sheared:
            header.set_qform(affine, SCANNER)
    nibabel.save(image, path)


def _read_header(path: Path) -> tuple[Any, Literal[1, 2]]:
    import nibabel

    with nibabel.openers.ImageOpener(str(path)) as file:
        begin = file.read(540)
    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        size = kind.template_dtype.itemsize
        if len(begin) < size or size not in (int.from_bytes(begin[:4], order) for order in ("little", "big")):
            continue
        header = kind(begin[:size], check=False)
        magic = header["magic"].item()
        if magic in MAGIC:
            return header, MAGIC[magic]
        if magic in PAIRS:
            raise DataError(f"{path} is a header whose voxels are in another file; save it as one NIfTI file")
        if not magic:
            raise DataError(f"{path} is an Analyze file, which doesn't tell left from right; save it as NIfTI")
    raise ValueError("it has no header of NIfTI's")


def _sizes(path: Path, stored: tuple[int, ...]) -> tuple[tuple[int, int, int, int], bool]:
    """Channels, slices, rows and columns, and whether it is a flat image.

    The fifth dimension is, as the standard has it, that of a voxel's values; the fourth is time.
    """
    if not stored or min(stored) < 1:
        raise ValueError(f"it has the size {' x '.join(map(str, stored))}")
    used = max((place + 1 for place, length in enumerate(stored) if length > 1), default=0)
    values = stored[4] if used == 5 and stored[3] == 1 else 1
    if len(stored) < 2 or (used > 3 and values == 1):
        raise DataError(
            f"{path} has {max(used, len(stored[:2]))} dimensions; only 2 and 3 are possible, and the fifth for channels"
        )
    columns, rows, depth = (*stored, 1)[:3]
    return (values, depth, rows, columns), len(stored) == 2 or (values > 1 and depth == 1)  # as ITK writes the latter


def _dims_of_mask(stored: tuple[int, ...], is_flat: bool) -> int:
    return 2 if is_flat else 3 if math.prod(stored[3:]) > 1 else len(stored)


def _type_of_values(path: Path, stored: np.dtype[Any], is_scaled: bool) -> np.dtype[Any]:
    """What holds the values: what is stored, in this machine's byte order, or a float that keeps scaled ones apart."""
    if stored.names:
        return np.dtype(np.uint8)
    if stored.kind == "c":
        raise DataError(f"{path} holds complex numbers; save their magnitude")
    if stored.kind not in "iuf":
        raise ValueError("its header tells no type of voxels")
    if stored.kind == "f":
        return np.dtype(f"f{min(stored.itemsize, 8)}")
    if is_scaled:
        return np.dtype(np.float32 if stored.itemsize <= 2 else np.float64)
    return stored.newbyteorder("=")


def _require_whole(path: Path, wanted: int) -> None:
    """Raise a ValueError unless the file, unpacked, has as many bytes."""
    held = path.stat().st_size
    if path.name.lower().endswith(".gz"):
        with path.open("rb") as file:
            file.seek(-4, os.SEEK_END)
            if int.from_bytes(file.read(), "little") == wanted % 2**32:
                return  # what gzip notes at its end, unless it is cut, or made of several parts
        with gzip.open(path) as unpacked:
            held = unpacked.seek(wanted)
    if held < wanted:
        raise ValueError(f"it ends after {held} of {wanted} bytes")


def _place(path: Path, header: Any, version: Literal[1, 2], is_flat: bool, dims: int) -> Geometry:
    """Where the voxels lie by each form that is set, the one that holds first; else by pixdim, as ITK places them."""
    steps = [abs(float(step)) for step in header["pixdim"][1:4]]
    told = header["pixdim"][1 : 1 + min(3, len(header.get_data_shape()))].tolist()
    if not all(0 < abs(step) < FARTHEST for step in told):
        raise DataError(f"{path} has the spacing {rounded(told)}; correct its header")
    forms = NiftiForms(
        version,
        dims,
        tuple(header["pixdim"].tolist()),
        int(header["xyzt_units"]),
        int(header["qform_code"]),
        tuple(float(header[f"quatern_{name}"]) for name in "bcd"),
        tuple(float(header[f"qoffset_{axis}"]) for axis in "xyz"),
        int(header["sform_code"]),
        tuple(tuple(header[f"srow_{axis}"].tolist()) for axis in "xyz"),
    )
    affines = []
    if forms.sform_code > 0:
        affines.append(np.array([*forms.srow, (0, 0, 0, 1)]))
    if forms.qform_code > 0:
        affines.append(_of_quaternion(forms, steps))
    unit = MM.get(forms.xyzt_units & 7, 1.0)
    if not affines:
        return replace(_as_geometry(TO_LPS @ np.diag([*steps, 1]), unit, is_flat), is_placed=False, nifti=forms)
    found = [_as_geometry(affine, unit, is_flat) for affine in affines if _is_place(affine, is_flat)]
    if not _is_place(affines[0], is_flat):
        name = "sform" if forms.sform_code > 0 else "qform"
        raise DataError(f"{path} has a {name} that is no place in space; correct its header, such as its code to 0")
    return replace(found[0], also=tuple(found[1:]), nifti=forms)


def _of_quaternion(forms: NiftiForms, steps: list[float]) -> np.ndarray:
    """The qform as a matrix; a quaternion that rounding has made too long is shortened, as in the format's own code."""
    from nibabel.quaternions import quat2mat

    b, c, d = forms.quatern
    if not max(map(abs, forms.quatern)) < FARTHEST:
        return np.full((4, 4), np.nan)
    quaternion = np.array([math.sqrt(max(0.0, 1 - (b * b + c * c + d * d))), b, c, d])
    affine = np.eye(4)
    affine[:3, :3] = quat2mat(quaternion) * steps
    if forms.pixdim[0] < 0:
        affine[:3, 2] *= -1
    affine[:3, 3] = forms.qoffset
    return affine


def _is_place(affine: np.ndarray, is_flat: bool) -> bool:
    """Whether the axes of an image span a plane, or space."""
    axes = affine[:3, : 2 if is_flat else 3]
    return bool((np.abs(affine[:3]) < FARTHEST).all()) and int(np.linalg.matrix_rank(axes)) == axes.shape[1]


def _as_geometry(affine: np.ndarray, unit: float, is_flat: bool) -> Geometry:
    """A place in millimetres and our directions, of a matrix from indices to NIfTI's coordinates."""
    axes = (TO_LPS @ affine)[:3]
    spacing = np.linalg.norm(axes[:, : 2 if is_flat else 3], axis=0)
    direction = axes[:, : len(spacing)] / spacing
    if is_flat:
        normal = np.cross(*direction.T)
        direction = np.column_stack([direction, normal / np.linalg.norm(normal)])
    return Geometry(
        tuple((spacing * unit).tolist()),
        tuple((axes[:, 3] * unit + 0.0).tolist()),  # no -0.0
        tuple((direction.ravel() + 0.0).tolist()),
    )
