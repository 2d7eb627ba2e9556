"""What images are stored as, and what is refused because it would not be read as stored."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

import dinounet
from datasets import picture
from dinounet.data.dataset import read_dataset
from dinounet.data.images import read_image
from dinounet.data.layouts import image_files
from dinounet.data.masks import read_mask
from dinounet.errors import DataError
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data
from dinounet.schema.plan import Plan
from dinounet.schema.recipe import Recipe
from networks import planned

RANDOM = np.random.RandomState(0)


def numbers(*shape: int, dtype: Any = np.uint16) -> np.ndarray:
    if np.dtype(dtype).kind == "f":
        return RANDOM.normal(0, 1e4, shape).astype(dtype)
    return RANDOM.randint(0, np.iinfo(dtype).max, shape, dtype=dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.int32, np.float32, np.float64])
def test_tiff_of_any_type_comes_as_stored(dtype: Any, tmp_path: Path) -> None:
    array = numbers(7, 9, dtype=dtype)
    tifffile.imwrite(tmp_path / "a.tif", array)
    found = read_image([tmp_path / "a.tif"])
    assert found.array.dtype == dtype
    assert found.is_flat
    np.testing.assert_array_equal(found.array[0, 0], array)


@pytest.mark.parametrize(
    ("shape", "order", "options"),
    [
        ((5, 7, 9), "ZYX", {}),  # pages of no known meaning
        ((5, 7, 9), "ZYX", {"metadata": None, "photometric": "minisblack"}),  # as other programs write them
        ((5, 7, 9), "ZYX", {"imagej": True, "metadata": {"axes": "ZYX"}}),
        ((5, 2, 7, 9), "ZCYX", {"imagej": True, "metadata": {"axes": "ZCYX"}}),
        ((2, 7, 9), "CYX", {"imagej": True, "metadata": {"axes": "CYX"}}),
        ((5, 2, 7, 9), "ZCYX", {"ome": True, "metadata": {"axes": "ZCYX"}}),
        ((2, 5, 7, 9), "CZYX", {"ome": True, "metadata": {"axes": "CZYX"}}),
        ((4, 7, 9), "CYX", {"metadata": {"axes": "CYX"}, "photometric": "minisblack"}),
        ((7, 9, 3), "YXC", {"photometric": "rgb"}),
        ((3, 7, 9), "CYX", {"photometric": "rgb", "planarconfig": "separate"}),
        ((7, 9, 5), "YXC", {"photometric": "minisblack", "planarconfig": "contig"}),
        ((5, 7, 9, 3), "ZYXC", {"photometric": "rgb"}),
    ],
)
def test_pages_and_axes_of_tiff_become_slices_and_channels(
    shape: tuple[int, ...], order: str, options: dict[str, Any], tmp_path: Path
) -> None:
    array = numbers(*shape)
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    expected = array
    for axis in "ZC":
        if axis not in order:
            expected, order = expected[None], axis + order
    expected = expected.transpose([order.index(axis) for axis in "CZYX"])
    np.testing.assert_array_equal(read_image([tmp_path / "a.tif"]).array, expected)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4, 7, 9), {"imagej": True, "metadata": {"axes": "TYX"}}, r"axes that aren't clear \(T 4, Y 7, X 9\)"),
        ((4, 5, 7, 9), {}, r"axes that aren't clear \(Q 4, Q 5, Y 7, X 9\); save one volume a file, with axes"),
        ((7, 9, 4), {"photometric": "rgb", "extrasamples": ["unassalpha"]}, "is partly transparent"),
        ((7, 9, 4), {"photometric": "separated"}, "has its colours in SEPARATED; convert it to RGB"),
        ((7, 9), {"extratags": [(274, 3, 1, 6, True)]}, r"asks viewers to turn it \(orientation 6\)"),
        ((7, 9), {"dtype": np.complex64}, "holds numbers of the type complex64"),
    ],
)
def test_tiff_that_is_not_clear_is_refused(
    shape: tuple[int, ...], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    array = numbers(*shape).astype(options.pop("dtype", np.uint16))
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    with pytest.raises(DataError, match=message):
        read_image([tmp_path / "a.tif"])


def test_an_opaque_alpha_channel_is_no_channel(tmp_path: Path) -> None:
    rgba = numbers(7, 9, 4, dtype=np.uint8)
    rgba[..., 3] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(np.moveaxis(read_image([path]).array[:, 0], 0, -1), rgba[..., :3])
    rgba[0, 0, 3] = 254
    Image.fromarray(rgba).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="is partly transparent; remove its alpha channel"):
        read_image([tmp_path / "a.png"])


def test_tiff_of_several_sizes_is_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(numbers(7, 9))
        file.write(numbers(8, 9))
    with pytest.raises(DataError, match="holds 2 images of other sizes or types; split it"):
        read_image([tmp_path / "a.tif"])


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["L", "I;16", "RGB", "1"])
def test_compressed_tiff_is_read_with_what_is_installed(compression: str, mode: str, tmp_path: Path) -> None:
    array = {
        "L": numbers(7, 9, dtype=np.uint8),
        "I;16": numbers(7, 9),
        "RGB": numbers(7, 9, 3, dtype=np.uint8),
        "1": numbers(7, 9) > 30000,
    }[mode]
    image = Image.fromarray(array)
    image.save(tmp_path / "a.tif", compression=compression, save_all=True, append_images=[image])
    found = read_image([tmp_path / "a.tif"]).array
    assert found.shape[1] == 2
    expected = array if array.ndim == 3 else array[..., None]
    np.testing.assert_array_equal(np.moveaxis(found[:, 1], 0, -1), expected)


def test_compression_that_nothing_installed_reads_in_full_is_named(tmp_path: Path) -> None:
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("imagecodecs is installed and reads it")
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(tmp_path / "a.tif"))
    writer.UseCompressionOn()
    writer.SetCompressor("LZW")
    writer.Execute(sitk.GetImageFromArray(numbers(7, 9, 3), isVector=True))
    with pytest.raises(DataError, match="compressed by LZW, which needs another package here: pip install imagecodecs"):
        read_image([tmp_path / "a.tif"])


def test_png_keeps_its_bits(tmp_path: Path) -> None:
    grey, colours, one = numbers(7, 9), numbers(7, 9, 3), numbers(7, 9) > 30000
    Image.fromarray(grey).save(tmp_path / "grey.png")
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / "colours.png"))
    Image.fromarray(one).save(tmp_path / "one.png")
    np.testing.assert_array_equal(read_image([tmp_path / "grey.png"]).array[0, 0], grey)
    np.testing.assert_array_equal(np.moveaxis(read_image([tmp_path / "colours.png"]).array[:, 0], 0, -1), colours)
    np.testing.assert_array_equal(read_image([tmp_path / "one.png"]).array[0, 0], one.astype(np.uint8))
    np.testing.assert_array_equal(read_mask(tmp_path / "one.png").array[0], one.astype(np.uint8))


def test_volumes_are_not_widened(tmp_path: Path) -> None:
    array = numbers(3, 5, 6, dtype=np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "a.nii.gz"))
    assert read_image([tmp_path / "a.nii.gz"]).array.dtype == np.int16
    assert read_mask(tmp_path / "a.nii.gz").array.dtype == np.int16


def test_a_photograph_that_is_shown_turned_is_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(numbers(7, 9, 3, dtype=np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    with pytest.raises(DataError, match=r"a\.jpg asks viewers to turn it \(orientation 6\), so that a mask may fit"):
        read_image([tmp_path / "a.jpg"])


def test_large_images_are_not_taken_for_attacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(numbers(70, 90, dtype=np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image([tmp_path / "a.png"]).shape == (1, 70, 90)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("CMYK", "has its colours in CMYK; convert it to RGB"),
        ("animated", "holds 2 pages; split it into files of one page"),
        ("empty", r"a\.png can't be read as an image"),
        ("link", r"a\.png is a symbolic link that leads nowhere"),
    ],
)
def test_wrong_pictures_are_answered(what: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.jpg" if what == "CMYK" else "a.png")
    if what == "CMYK":
        Image.new("CMYK", (9, 7)).save(path)
    elif what == "animated":
        Image.new("L", (9, 7)).save(path, save_all=True, append_images=[Image.new("L", (9, 7), 5)])
    elif what == "empty":
        path.touch()
    elif what == "link":
        path.symlink_to(path.name)
    with pytest.raises(DataError, match=message):
        read_image([path])


def test_a_file_that_may_not_be_read_is_told_from_a_broken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").touch()
    monkeypatch.setattr("os.access", lambda *_: False)  # the tests may run as root
    with pytest.raises(DataError, match=r"a\.png is not readable; change its permissions"):
        read_image([tmp_path / "a.png"])


def test_what_systems_leave_among_images_is_passed_over(tmp_path: Path) -> None:
    for name in ("bildé 1.png", "sub/b.ome.tif", ".hidden.png", "Thumbs.db", "__MACOSX/._b.png", "__MACOSX/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in image_files(tmp_path)] == ["bildé 1.png", "b.ome.tif"]
    (tmp_path / "sub" / "round").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"sub/round is a symbolic link that leads back to .*; remove it"):
        image_files(tmp_path)


@pytest.mark.slow
def test_a_stack_of_pages_is_trained_on_and_predicted_as_one(tmp_path: Path) -> None:
    data = tmp_path / "stacks"
    for index in range(2):
        slices = [picture((40, 48), 10 * index + z) for z in range(3)]
        for folder, part in (("images", 0), ("masks", 1)):
            (data / folder).mkdir(parents=True, exist_ok=True)
            path, stack = data / folder / f"c{index}.ome.tif", np.stack([s[part] for s in slices])
            tifffile.imwrite(path, stack, photometric="minisblack", metadata={"axes": "ZYX"})
    plan = plan_data(read_dataset(data), (32, 32))
    assert plan.fingerprint.median_shape == (3, 40, 48)
    write_json(tmp_path / "plan.json", Plan(plan, planned(num_classes=3), Recipe(steps=2, augmentation="none")))
    run = dinounet.train(data, tmp_path / "run", plan=tmp_path / "plan.json", weights="random", device="cpu")
    (mask, _) = dinounet.predict(run, [data / "images"], tmp_path / "out")
    assert mask.name == "c0.ome.tif"
    with tifffile.TiffFile(mask) as file:
        assert (len(file.pages), file.series[0].shape) == (3, (3, 40, 48))
        assert set(np.unique(file.asarray())) <= {0, 1, 2}
    np.testing.assert_array_equal(read_mask(mask).array, dinounet.load(run).predict(data / "images" / "c0.ome.tif"))
    shutil.rmtree(data / "images")
    dinounet.evaluate(tmp_path / "out", data / "masks")
