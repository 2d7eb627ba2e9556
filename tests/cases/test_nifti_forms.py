"""NIfTI as its standard and nibabel have it: two forms, scaling, units, types, and what a mask takes of its image."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

import dinounet
from dinounet.data.images import read_image, write_mask
from dinounet.data.lazy_volume import open_image
from dinounet.errors import DataError

STEPS = np.diag([0.8, 0.8, 3.0, 1.0])
STEPS[:3, 3] = -20, -30, -40
SHAPE = (20, 18, 6)


def turned(degrees: float) -> np.ndarray:
    angle, matrix = np.deg2rad(degrees), np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return matrix


SHIFTED, MIRRORED, SHEARED = STEPS.copy(), np.diag([-1.0, 1, 1, 1]) @ STEPS, np.eye(4)
SHIFTED[0, 3] = -10
SHEARED[0, 2] = 0.3
SHEARED = SHEARED @ STEPS

FORMS = {  # qform and its code, sform and its code
    "same": (STEPS, 1, STEPS, 1),
    "sform only": (None, 0, STEPS, 1),
    "qform only": (STEPS, 1, None, 0),
    "neither": (None, 0, None, 0),
    "sform elsewhere": (STEPS, 1, SHIFTED, 1),
    "sform elsewhere, of a template": (STEPS, 1, SHIFTED, 4),
    "sform elsewhere, aligned": (STEPS, 2, SHIFTED, 2),
    "sform mirrored": (STEPS, 1, MIRRORED, 2),
    "sform as large again": (STEPS, 1, STEPS * [2, 2, 2, 1], 2),
    "oblique": (turned(20) @ STEPS, 1, turned(20) @ STEPS, 1),
    "sheared": (STEPS, 1, SHEARED, 2),
    "sheared, sform only": (None, 0, SHEARED, 2),
    "left-handed": (None, 0, MIRRORED, 1),
    "left-handed qform": (MIRRORED, 1, None, 0),
    "axes permuted": (None, 0, STEPS[:, [2, 1, 0, 3]], 1),
}

PLACE = [
    "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
]  # fmt: skip


def image_of(forms: str = "same", array: np.ndarray | None = None, unit: str | None = "mm") -> nibabel.Nifti1Image:
    qform, qcode, sform, scode = FORMS[forms]
    array = np.random.RandomState(0).randint(0, 1000, SHAPE).astype(np.int16) if array is None else array
    image = nibabel.Nifti1Image(array, None)
    image.header.set_zooms((3.0, 0.8, 0.8) if forms == "axes permuted" else (0.8, 0.8, 3.0))
    image.header.set_xyzt_units(unit)
    if qform is not None:
        image.set_qform(qform, qcode)
    if sform is not None:
        image.set_sform(sform, scode)
    image.header["qform_code"], image.header["sform_code"] = qcode, scode
    return image


def header_of(path: Path) -> nibabel.Nifti1Header:
    """As it is stored: nibabel.load takes scaling and more out of it."""
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
        return nibabel.Nifti1Header.from_fileobj(file, check=False)


def lps(affine: np.ndarray) -> np.ndarray:
    return np.diag([-1, -1, 1, 1]) @ affine


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize("forms", FORMS)
def test_a_mask_lies_on_its_image_in_every_viewer(forms: str, ending: str, tmp_path: Path) -> None:
    source, out = tmp_path / f"image{ending}", tmp_path / f"mask{ending}"
    nibabel.save(image_of(forms), source)
    image = read_image([source])
    np.testing.assert_array_equal(image.array[0].T, np.asarray(nibabel.load(source).dataobj))
    affine = nibabel.load(source).affine
    assert image.spacing == pytest.approx(np.linalg.norm(affine[:3, :3], axis=0)[::-1])
    labels = np.random.RandomState(1).randint(0, 3, image.shape)
    write_mask(out, labels, like=image)
    theirs, ours = nibabel.load(source), nibabel.load(out)
    np.testing.assert_array_equal(np.asarray(ours.dataobj).T, labels)
    np.testing.assert_array_equal(ours.affine, theirs.affine)  # of viewers that follow the sform
    np.testing.assert_array_equal(ours.get_qform(), theirs.get_qform())  # and of those that follow the qform
    for field in PLACE:
        np.testing.assert_array_equal(header_of(out)[field], header_of(source)[field], field)


def test_a_mask_takes_nothing_of_the_header_but_its_place(tmp_path: Path) -> None:
    image = image_of()
    header = image.header
    header["descrip"], header["aux_file"], header["db_name"] = b"Jane Doe, 1970", b"doe.txt", b"DOE^JANE"
    header["cal_max"], header["cal_min"], header["toffset"], header["slice_duration"] = 9, 3, 5, 2
    header.set_intent("z score", name="jane")
    header.set_slope_inter(2, -1024)
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    nibabel.save(image, tmp_path / "image.nii")
    write_mask(tmp_path / "mask.nii", np.ones(SHAPE[::-1], int), like=read_image([tmp_path / "image.nii"]))
    assert b"oe" not in (tmp_path / "mask.nii").read_bytes() and b"ane" not in (tmp_path / "mask.nii").read_bytes()
    ours, fresh = header_of(tmp_path / "mask.nii"), nibabel.Nifti1Header()
    assert (ours["scl_slope"], ours["scl_inter"]) == (1, 0)
    assert not ours.extensions
    for field in {*fresh} - {*PLACE, "dim", "datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter", "magic"}:
        assert ours[field].tolist() == fresh[field].tolist(), field
    assert np.unique(np.asarray(nibabel.load(tmp_path / "mask.nii").dataobj)).tolist() == [1]


@pytest.mark.parametrize("who", ["nibabel", "ITK"])
@pytest.mark.parametrize("forms", [name for name in FORMS if not name.startswith("sheared")])
def test_a_mask_that_another_program_saved_is_on_the_grid(forms: str, who: str, tmp_path: Path) -> None:
    """As nibabel's users do, with the one affine; and as ITK's, with the one matrix that it makes of both forms."""
    source, mask, array = tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz", np.ones(SHAPE, np.uint8)
    nibabel.save(image_of(forms), source)
    if who == "nibabel":
        nibabel.save(nibabel.Nifti1Image(array, nibabel.load(source).affine), mask)
    else:
        written = sitk.GetImageFromArray(array.T)
        written.CopyInformation(sitk.ReadImage(str(source)))
        sitk.WriteImage(written, str(mask))
    assert len(read_image([source, mask]).array) == 2


def test_a_code_that_nibabel_does_not_know_is_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of("sform elsewhere")
    image.header["sform_code"] = 99
    nibabel.save(image, tmp_path / "image.nii")
    found = read_image([tmp_path / "image.nii"])
    assert found.geometry.origin == pytest.approx(lps(SHIFTED)[:3, 3])
    write_mask(tmp_path / "mask.nii", np.ones(found.shape, int), like=found)
    assert (header_of(tmp_path / "mask.nii")["sform_code"], capfd.readouterr().err) == (99, "")


def test_what_no_form_puts_there_is_elsewhere(tmp_path: Path) -> None:
    nibabel.save(image_of("sform elsewhere"), tmp_path / "image.nii")
    away = STEPS.copy()
    away[1, 3] += 1
    nibabel.save(nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), away), tmp_path / "mask.nii")
    with pytest.raises(DataError, match=r"differ in origin: .* by up to 12\.5 voxels"):
        read_image([tmp_path / "image.nii", tmp_path / "mask.nii"])


@pytest.mark.parametrize("forms", ["sform elsewhere", "oblique", "axes permuted", "qform only", "left-handed qform"])
@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_masks_in_other_formats_lie_where_the_form_that_holds_says(forms: str, ending: str, tmp_path: Path) -> None:
    source, out = tmp_path / "image.nii", tmp_path / f"mask{ending}"
    nibabel.save(image_of(forms), source)
    image = read_image([source])
    write_mask(out, np.ones(image.shape, int), like=image)
    theirs, ours = lps(nibabel.load(source).affine), sitk.ReadImage(str(out))
    for index in ((0, 0, 0), (19, 0, 0), (0, 17, 0), (0, 0, 5), (19, 17, 5)):
        np.testing.assert_allclose(ours.TransformIndexToPhysicalPoint(index), (theirs @ (*index, 1))[:3], atol=1e-4)
    assert len(read_image([source, out]).array) == 2


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_masks_of_other_formats_have_both_forms_as_the_scanners(ending: str, tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.ones(SHAPE[::-1], np.int16))
    image.SetSpacing((0.8, 0.7, 3)), image.SetOrigin((4, 5, 6)), image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / f"image{ending}"))
    write_mask(tmp_path / "mask.nii.gz", np.ones(SHAPE[::-1], int), like=read_image([tmp_path / f"image{ending}"]))
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    assert (mask.header["qform_code"], mask.header["sform_code"]) == (1, 1)
    assert mask.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(mask.get_qform(), mask.get_sform(), atol=1e-5)
    for index in ((0, 0, 0), (19, 0, 0), (0, 17, 5)):
        place = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose((lps(mask.affine) @ (*index, 1))[:3], place, atol=1e-4)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("slope", [(0, 10), (float("nan"), 10), (1, 0), (0.5, -7), (1, -1024)])
def test_a_file_has_the_same_values_whole_and_plane_by_plane(
    slope: tuple[float, float], order: str, version: int, tmp_path: Path
) -> None:
    stored = np.random.RandomState(0).randint(0, 4, SHAPE).astype(f"{order}i2")
    path = tmp_path / "a.nii"
    kind = {1: nibabel.Nifti1Image, 2: nibabel.Nifti2Image}[version]
    header = kind.header_class(endianness=order)
    header.set_data_dtype(stored.dtype)
    nibabel.save(kind(stored, STEPS, header), path)
    content, place, number = bytearray(path.read_bytes()), *((112, "f4") if version == 1 else (176, "f8"))
    factors = np.array(slope, f"{order}{number}").tobytes()
    content[place : place + len(factors)] = factors
    path.write_bytes(content)
    factor, offset = slope if slope[0] == slope[0] and slope[0] else (1, 0)
    expected = stored.T * factor + offset
    whole, planes = read_image([path]).array[0], open_image([path], 0).array
    np.testing.assert_array_equal(whole, expected)
    np.testing.assert_array_equal(np.stack([planes[..., z, :, :][0] for z in (3, 0)]), expected[[3, 0]])
    assert whole.dtype == planes.dtype == (np.int16 if (factor, offset) == (1, 0) else np.float32)
    np.testing.assert_array_equal(whole, nibabel.load(path).get_fdata().T)


def test_large_scaled_numbers_keep_their_last_digit(tmp_path: Path) -> None:
    stored = np.array([2**31 - 2, 2**31 - 1], np.int32).reshape(2, 1, 1)
    image = nibabel.Nifti1Image(stored, STEPS)
    image.header.set_slope_inter(1, 1)
    nibabel.save(image, tmp_path / "a.nii")
    assert np.diff(read_image([tmp_path / "a.nii"]).array.ravel()).tolist() == [1]


@pytest.mark.parametrize(
    "kind", ["uint8", "int8", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]
)
def test_numbers_come_in_the_type_they_are_stored_in(kind: str, tmp_path: Path) -> None:
    array = np.random.RandomState(0).randint(0, 100, SHAPE).astype(kind)
    array[0, 0, 0] = np.iinfo(kind).max if np.dtype(kind).kind in "iu" else np.finfo(kind).max
    nibabel.save(nibabel.Nifti1Image(array, STEPS, dtype=kind), tmp_path / "a.nii.gz")
    found = read_image([tmp_path / "a.nii.gz"]).array[0]
    assert found.dtype == kind
    np.testing.assert_array_equal(found.T, array)


def test_colours_and_vectors_are_channels_and_time_is_not(tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    colours = random.randint(0, 256, (*SHAPE, 3)).astype(np.uint8)
    packed = colours.view(np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))[..., 0]
    nibabel.save(nibabel.Nifti1Image(packed, STEPS), tmp_path / "rgb.nii.gz")
    for image in (read_image([tmp_path / "rgb.nii.gz"]), open_image([tmp_path / "rgb.nii.gz"], 0)):
        planes = np.stack([image.array[..., z, :, :] for z in range(6)], 1)
        np.testing.assert_array_equal(planes.T, np.moveaxis(colours, -1, -1))
    vectors = random.normal(size=(*SHAPE, 1, 5)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(vectors, STEPS), tmp_path / "vectors.nii")
    found = read_image([tmp_path / "vectors.nii"])
    np.testing.assert_array_equal(found.array, np.moveaxis(vectors[..., 0, :], -1, 0).transpose(0, 3, 2, 1))
    write_mask(tmp_path / "mask.nii", np.ones(found.shape, int), like=found)
    assert nibabel.load(tmp_path / "mask.nii").shape == SHAPE
    nibabel.save(nibabel.Nifti1Image(vectors[..., 0, :], STEPS), tmp_path / "film.nii")
    with pytest.raises(DataError, match=r"film\.nii has 4 dimensions; only 2 and 3 are possible"):
        read_image([tmp_path / "film.nii"])
    nibabel.save(nibabel.Nifti1Image(vectors[..., 0, 0].astype(np.complex64), STEPS), tmp_path / "k.nii")
    with pytest.raises(DataError, match=r"k\.nii holds complex numbers; save their magnitude"):
        read_image([tmp_path / "k.nii"])


@pytest.mark.parametrize(("unit", "factor"), [("micron", 0.001), ("meter", 1000), ("mm", 1), (None, 1)])
def test_units_are_read_and_kept(unit: str | None, factor: float, tmp_path: Path) -> None:
    nibabel.save(image_of("oblique", unit=unit), tmp_path / "image.nii")
    image = read_image([tmp_path / "image.nii"])
    assert image.spacing == pytest.approx(np.array([3.0, 0.8, 0.8]) * factor)
    write_mask(tmp_path / "mask.nii", np.ones(image.shape, int), like=image)
    ours, theirs = header_of(tmp_path / "mask.nii"), header_of(tmp_path / "image.nii")
    assert ours.get_xyzt_units() == theirs.get_xyzt_units()
    np.testing.assert_array_equal(ours.get_best_affine(), theirs.get_best_affine())
    write_mask(tmp_path / "mask.nrrd", np.ones(image.shape, int), like=image)
    mask = sitk.ReadImage(str(tmp_path / "mask.nrrd"))
    assert mask.GetSpacing() == pytest.approx(np.array([0.8, 0.8, 3.0]) * factor)
    assert mask.GetOrigin() == pytest.approx(lps(turned(20) @ STEPS)[:3, 3] * factor, rel=1e-5)


def test_a_clean_mask_lies_as_the_one_that_it_was_made_of(tmp_path: Path) -> None:
    array = np.zeros(SHAPE, np.uint8)
    array[4:9] = 250
    (tmp_path / "masks").mkdir()
    nibabel.save(image_of("sform mirrored", array), tmp_path / "masks" / "a.nii.gz")
    dinounet.relabel(tmp_path / "masks", tmp_path / "clean", labels="background=0,lesion=255")
    ours, theirs = (header_of(tmp_path / folder / "a.nii.gz") for folder in ("clean", "masks"))
    for field in PLACE:
        np.testing.assert_array_equal(ours[field], theirs[field], field)


@pytest.mark.slow
def test_a_sheared_grid_has_no_lengths(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        array = np.zeros(SHAPE, np.uint8)
        array[4:9, 4:9] = 1
        nibabel.save(image_of("sheared", array), tmp_path / folder / "a.nii.gz")
    sentence = r"a\.nii\.gz is sheared: its axes are not at right angles, .*; resample it, and what lies on its grid"
    with pytest.raises(DataError, match=sentence):
        dinounet.evaluate(tmp_path / "masks", tmp_path / "masks", labels="background=0,x=1")
    with pytest.raises(DataError, match=sentence):
        dinounet.plan(tmp_path)


def broken(what: str, path: Path) -> None:
    nibabel.save(image_of("sform only"), path)
    content = bytearray(path.read_bytes())
    if what == "no place":
        content[280:328] = bytes(48)
    elif what == "NaN in the sform":
        content[280:284] = np.float32(np.nan).tobytes()
    elif what == "a pair":
        content[344:348] = b"ni1\0"
    elif what == "Analyze":
        content[344:348] = bytes(4)
    elif what == "cut":
        content = content[:-1]
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("no place", r"has a sform that is no place in space; correct its header"),
        ("NaN in the sform", r"has a sform that is no place in space; correct its header"),
        ("a pair", r"is a header whose voxels are in another file; save it as one NIfTI file"),
        ("Analyze", r"is an Analyze file, which doesn't tell left from right; save it as NIfTI"),
        ("cut", r"can't be read as an image \(it ends after \d+ of \d+ bytes\); is it whole\?"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(what: str, sentence: str, tmp_path: Path) -> None:
    broken(what, tmp_path / "a.nii")
    for read in (lambda: read_image([tmp_path / "a.nii"]), lambda: open_image([tmp_path / "a.nii"], 0)):
        with pytest.raises(DataError, match=sentence):
            read()
