"""Units that NRRD and MHA tell beside their numbers, which ITK passes over, and what these formats can't give."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from dinounet.data.images import read_image, write_mask
from dinounet.data.lazy_volume import open_image
from dinounet.errors import DataError

SHAPE = (4, 3, 2)


def nrrd(path: Path, fields: str, shape: tuple[int, ...] = SHAPE) -> Path:
    sizes = " ".join(map(str, shape[::-1]))
    header = f"NRRD0005\ntype: uint8\ndimension: {len(shape)}\nsizes: {sizes}\nencoding: raw\n{fields}\n\n"
    path.write_bytes(header.encode() + np.arange(np.prod(shape), dtype=np.uint8).tobytes())
    return path


def fields_of(path: Path) -> dict[str, str]:
    header = path.read_bytes().split(b"\n\n")[0].decode()
    return dict(line.split(": ", 1) for line in header.splitlines() if ": " in line and not line.startswith("#"))


LPS = """space: left-posterior-superior
space directions: (200,0,0) (0,200,0) (0,0,0.9)
space origin: (1000,2000,3)
"""
RAS = LPS.replace("left-posterior", "right-anterior")

UNITS = {
    "micrometres in the plane": (LPS + 'space units: "um" "um" "mm"', (0.9, 0.2, 0.2), (1, 2, 3)),
    "in words": (LPS + 'space units: "micrometers" "microns" "millimeter"', (0.9, 0.2, 0.2), (1, 2, 3)),
    "other axes": (RAS + 'space units: "um" "um" "mm"', (0.9, 0.2, 0.2), (-1, -2, 3)),
    "a µ": (LPS + 'space units: "µm" "μm" "mm"', (0.9, 0.2, 0.2), (1, 2, 3)),
    "millimetres": (LPS + 'space units: "mm" "mm" "mm"', (0.9, 200, 200), (1000, 2000, 3)),
    "none": (LPS, (0.9, 200, 200), (1000, 2000, 3)),
    "empty": (LPS + 'space units: "" "" ""', (0.9, 200, 200), (1000, 2000, 3)),
    "of a box without a space": ('spacings: 200 200 0.9\nunits: "um" "um" "mm"', (0.9, 0.2, 0.2), (0, 0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("units", UNITS)
def test_units_of_nrrd_are_read_and_masks_keep_numbers_and_units(units: str, tmp_path: Path) -> None:
    fields, spacing, origin = UNITS[units]
    image = read_image([nrrd(tmp_path / "a.nrrd", fields)])
    assert image.spacing == pytest.approx(spacing)
    assert image.geometry.origin == pytest.approx(origin)
    assert open_image([tmp_path / "a.nrrd"], 0).spacing == image.spacing
    write_mask(tmp_path / "mask.nrrd", np.ones(SHAPE, int), like=image)
    write_mask(tmp_path / "mask.nii", np.ones(SHAPE, int), like=image)
    theirs, ours = (sitk.ReadImage(str(tmp_path / name)) for name in ("a.nrrd", "mask.nrrd"))
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):  # the numbers alone, as ITK has them
        assert getattr(ours, get)() == pytest.approx(getattr(theirs, get)())
    assert sitk.GetArrayFromImage(ours).sum() == np.prod(SHAPE)
    told = fields_of(tmp_path / "mask.nrrd").get("space units")
    assert told == ('"um" "um" "mm"' if spacing[1] < 1 else None)
    again = read_image([tmp_path / "a.nrrd", tmp_path / "mask.nrrd", tmp_path / "mask.nii"])
    assert again.spacing == pytest.approx(spacing)
    assert nibabel.load(tmp_path / "mask.nii").header.get_zooms() == pytest.approx(spacing[::-1])


def test_units_go_with_the_axes_of_space_and_not_of_the_image(tmp_path: Path) -> None:
    turned = "space: left-posterior-superior\nspace directions: (0,0,0.9) (200,0,0) (0,300,0)\nspace origin: (0,0,5)\n"
    image = read_image([nrrd(tmp_path / "a.nrrd", turned + 'space units: "um" "um" "mm"')])
    assert image.geometry.spacing == pytest.approx((0.9, 0.2, 0.3))
    assert image.geometry.origin == pytest.approx((0, 0, 5))


def test_a_unit_that_is_none_is_told(tmp_path: Path) -> None:
    nrrd(tmp_path / "a.nrrd", LPS + 'space units: "furlong" "um" "mm"')
    with pytest.raises(DataError, match=r"has the units furlong, um, mm; give one of nm, um, mm, cm, m for each"):
        read_image([tmp_path / "a.nrrd"])


@pytest.mark.parametrize(("unit", "factor"), [("um", 0.001), ("mm", 1), ("cm", 10), ("?", 1)])
@pytest.mark.parametrize("whole", [True, False])
def test_units_of_mha_are_read_and_kept(unit: str, factor: float, whole: bool, tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.arange(24, dtype=np.uint8).reshape(SHAPE))
    image.SetSpacing((2, 2, 9)), image.SetOrigin((1, 2, 3))
    sitk.WriteImage(image, str(tmp_path / "plain.mha"))
    content = (tmp_path / "plain.mha").read_bytes()
    path = tmp_path / "a.mha"
    path.write_bytes(content.replace(b"ElementSpacing", f"DistanceUnits = {unit}\nElementSpacing".encode()))
    found = read_image([path]) if whole else open_image([path], 0)
    assert found.spacing == pytest.approx(np.array([9, 2, 2]) * factor)
    write_mask(tmp_path / "mask.mha", np.ones(SHAPE, int), like=found)
    assert sitk.ReadImage(str(tmp_path / "mask.mha")).GetSpacing() == pytest.approx((2, 2, 9))
    read_image([path, tmp_path / "mask.mha"])
    written = (tmp_path / "mask.mha").read_bytes().split(b"ElementDataFile")[0]
    assert (f"DistanceUnits = {unit}".encode() in written) == (unit in ("um", "cm"))


def test_a_slice_in_space_is_whole_and_told_what_to_do(tmp_path: Path) -> None:
    fields = "space: left-posterior-superior\nspace directions: (0,0.5,0) (0,0,2)\nspace origin: (11,12,13)"
    nrrd(tmp_path / "a.nrrd", fields, (5, 6))
    with pytest.raises(DataError, match=r"is a slice of two dimensions in a space of three; save it as a volume"):
        read_image([tmp_path / "a.nrrd"])


def test_a_sheared_nrrd_keeps_its_shear_and_in_nifti_has_a_sform_alone(tmp_path: Path) -> None:
    fields = "space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0.9,0,3)\nspace origin: (4,5,6)"
    image = read_image([nrrd(tmp_path / "a.nrrd", fields)])
    for name in ("mask.nrrd", "mask.nii"):
        write_mask(tmp_path / name, np.ones(SHAPE, int), like=image)
    assert len(read_image([tmp_path / "a.nrrd", tmp_path / "mask.nrrd", tmp_path / "mask.nii"]).array) == 3
    mask = nibabel.load(tmp_path / "mask.nii")
    assert (mask.header["qform_code"], mask.header["sform_code"]) == (0, 1)
    np.testing.assert_allclose(mask.affine[:3], [[-1, 0, -0.9, -4], [0, -1, 0, -5], [0, 0, 3, 6]], atol=1e-6)
