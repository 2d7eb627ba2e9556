"""Masks as people have them: colours, one file per class, smoothed, JPEG; and how images and masks find each other."""

import shlex
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from sklearn.metrics import f1_score

import dinounet
from conftest import shared
from datasets import describe, picture, write_png_dataset
from dinounet.cli.main import main
from dinounet.data.cache import build_cache
from dinounet.data.dataset import read_dataset
from dinounet.data.geometry import Volume
from dinounet.data.images import write_mask
from dinounet.data.label_inference import infer_labels
from dinounet.data.layouts import mask_files
from dinounet.data.masks import read_mask, read_truth
from dinounet.data.relabelling import relabel_folder
from dinounet.errors import ConfigError, DataError, UserError
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data
from dinounet.schema.labels import Labels, name_labels, parse_labels
from dinounet.schema.plan import Plan, read_plan
from dinounet.schema.recipe import Recipe
from networks import planned

COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 255]], np.uint8)
"""Of background, disc and square."""

GIVEN = "background=#000000,disc=#FF0000,square=#0080ff"


def save(path: Path, pixels: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def write_cases(root: Path, mask_name: str = "masks/*.png", image_name: str = "images/*.png", cases: int = 4) -> Path:
    """Pictures with masks in colours."""
    for index in range(cases):
        image, mask = picture((48, 56), index)
        save(root / image_name.replace("*", f"c{index}"), image)
        save(root / mask_name.replace("*", f"c{index}"), COLOURS[mask])
    return root


def truth(index: int) -> np.ndarray:
    return picture((48, 56), index)[1]


def test_exact_colours_are_classes(tmp_path: Path) -> None:
    dataset = read_dataset(write_cases(tmp_path / "data"))
    plan = plan_data(dataset)
    assert plan.labels.classes == {"background": 0, "class #0080ff": 1, "class #ff0000": 2}
    assert plan.labels.colours == {"background": "#000000", "class #0080ff": "#0080ff", "class #ff0000": "#ff0000"}
    discs = sum(np.count_nonzero(truth(index) == 1) for index in range(4))
    assert plan.fingerprint.label_pixels["class #ff0000"] == discs
    for index, case in enumerate(build_cache(dataset.cases, plan, tmp_path / "cache")):
        np.testing.assert_array_equal(case.mask[0], np.array([0, 2, 1])[truth(index)])


def test_colours_that_are_named_have_the_order_of_their_names(tmp_path: Path) -> None:
    dataset = read_dataset(write_cases(tmp_path / "data"), parse_labels(GIVEN))
    assert dataset.labels.classes == {"background": 0, "disc": 1, "square": 2}
    np.testing.assert_array_equal(read_truth(dataset.cases[0], dataset.labels).array[0], truth(0))
    plan = plan_data(dataset)
    write_json(tmp_path / "plan.json", Plan(plan, planned(num_classes=3), Recipe()))
    assert read_plan(tmp_path / "plan.json").data.labels.colours == {
        "background": "#000000", "disc": "#ff0000", "square": "#0080ff",
    }  # fmt: skip
    assert name_labels(parse_labels("lesion=#000000,ignore=#ff0000,background=#ffffff")) == Labels(
        {"background": 0, "lesion": 1}, None, 2, {"lesion": "#000000", "ignore": "#ff0000", "background": "#ffffff"}
    )


def test_a_grey_class_beside_colours_is_a_colour(tmp_path: Path) -> None:
    root = write_cases(tmp_path / "data")
    only_white = np.zeros((48, 56, 3), np.uint8)
    only_white[:4] = 255
    save(root / "masks" / "c0.png", only_white)
    save(root / "masks" / "c1.png", only_white * 0)
    dataset = read_dataset(root)
    plan = plan_data(dataset)
    assert "class #ffffff" in plan.labels.classes
    cached = build_cache(dataset.cases, plan, tmp_path / "cache")
    assert np.unique(cached[0].mask).tolist() == [0, list(plan.labels.classes).index("class #ffffff")]
    assert not cached[1].mask.any()


def test_masks_of_three_equal_channels_are_numbers_and_no_colours(tmp_path: Path) -> None:
    root = write_cases(tmp_path / "data")
    for index in range(4):
        grey = np.array([0, 1, 255], np.uint8)[truth(index)]
        save(root / "masks" / f"c{index}.png", grey if index == 0 else np.stack([grey] * 3, -1))
    named = read_dataset(root, {"background": 0, "disc": 1, "square": 255})
    dataset = read_dataset(root)
    with pytest.raises(DataError, match=r"hold 0, 1, 255; say what they stand for"):
        plan_data(dataset)
    assert plan_data(named).fingerprint.label_pixels["square"] == sum((truth(index) == 2).sum() for index in range(4))
    save(root / "masks" / "c3.png", COLOURS[truth(3)])
    with pytest.raises(DataError, match=r"some masks of data are in colours and others hold numbers \(1, 255\)"):
        plan_data(dataset)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ((128, 0, 0), r"hold #000000, #0080ff, #800000, #ff0000; some are mixtures of others; say what they stand for"),
        ((255, 1, 0), r"holds #ff0100 in 8 pixels, but the labels are background=#000000,disc=#ff0000"),
    ],
)
def test_colours_that_are_not_exact_are_asked_for(extra: tuple[int, ...], message: str, tmp_path: Path) -> None:
    root = write_cases(tmp_path / "data")
    pixels = np.array(Image.open(root / "masks" / "c0.png"))
    pixels[:2, :4] = extra
    save(root / "masks" / "c0.png", pixels)
    labels = parse_labels(GIVEN) if extra[1] else None
    with pytest.raises(DataError, match=message) as error:
        plan_data(read_dataset(root, labels))
    words = shlex.split(str(error.value))
    asked = words[words.index("--labels") + 1]
    parse_labels(asked)  # as it stands


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("background=0,lesion=#ff0000", "name either numbers or colours"),
        ("background=#000000,lesion=#ff00", "write it as background=0,lesion=1, or background=#000000"),
        ("a=#ff0000,b=#00ff00", "name what the background's colour, such as #000000, stands for"),
        ("a=#000000,ignore=#00ff00", "and one class at least"),
    ],
)
def test_wrong_names_of_colours_are_answered(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        name_labels(parse_labels(text))


@pytest.mark.slow
def test_from_colours_to_predicted_palettes_evaluation_and_report(tmp_path: Path) -> None:
    data = write_cases(tmp_path / "data")
    plan = plan_data(read_dataset(data, parse_labels(GIVEN)), (32, 32))
    write_json(tmp_path / "plan.json", Plan(plan, planned(num_classes=3), Recipe(steps=2, augmentation="none")))
    run = dinounet.train(
        data, tmp_path / "run", plan=tmp_path / "plan.json", labels=GIVEN, weights="random", device="cpu"
    )
    assert dinounet.load(run).plan.data.labels.as_cli == parse_labels(GIVEN)  # what --resume compares
    out = tmp_path / "out"
    written = dinounet.predict(run, [data / "images"], out)
    assert [path.name for path in written] == [f"c{index}.png" for index in range(4)]
    with Image.open(written[0]) as mask:
        assert mask.mode == "P"
        assert mask.getpalette()[:9] == COLOURS.ravel().tolist()
    save(out / "c0.png", picture((48, 56), 5)[1])  # plain numbers will do too
    metrics = dinounet.evaluate(out, data / "masks")
    for name, label in (("disc", 1), ("square", 2)):
        expected = f1_score(truth(0).ravel() == label, picture((48, 56), 5)[1].ravel() == label)
        assert metrics.cases[0].classes[name].dice == pytest.approx(expected)
    (out / "prediction.json").unlink()
    assert dinounet.evaluate(out, data / "masks", labels=GIVEN) == metrics
    page = dinounet.report(out, data / "masks", tmp_path / "r.html", images=data / "images", run=run)
    assert "square" in page.read_text()


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
def test_formats_with_a_palette_keep_numbers_and_show_colours(ending: str, tmp_path: Path) -> None:
    path, mask = tmp_path / f"a{ending}", truth(0)
    write_mask(path, mask[None], Volume(mask[None], None, path), name_labels(parse_labels(GIVEN)).palette)
    with Image.open(path) as shown:
        np.testing.assert_array_equal(np.asarray(shown.convert("RGB")), COLOURS[mask])
    np.testing.assert_array_equal(read_mask(path).array[0], mask)


def test_one_file_a_class_is_joined(tmp_path: Path) -> None:
    for how in ("masks/{name}/c{index}.png", "masks/c{index}_{name}.png", "masks/c{index}-{name}_mask.png"):
        root = write_cases(tmp_path / str(len(how)))
        shutil.rmtree(root / "masks")
        for index in range(4):
            for label, name in ((1, "disc"), (2, "square")):
                save(root / how.format(name=name, index=index), (truth(index) == label) * np.uint8(256 - label))
        dataset = read_dataset(root)
        assert dataset.labels.classes == {"background": 0, "disc": 1, "square": 2}
        for index, case in enumerate(dataset.cases):
            np.testing.assert_array_equal(read_truth(case, dataset.labels).array[0], truth(index))
        assert plan_data(dataset).fingerprint.label_pixels["square"] == sum((truth(i) == 2).sum() for i in range(4))
        other = read_dataset(root, {"background": 0, "square": 1, "disc": 5})
        np.testing.assert_array_equal(read_truth(other.cases[0], other.labels).array[0], np.array([0, 5, 1])[truth(0)])
        with pytest.raises(ConfigError, match="a file for each of disc, square, but the labels are"):
            read_dataset(root, {"background": 0, "circle": 1, "square": 2})
        for index in range(4):
            save(tmp_path / f"out {len(how)}" / f"c{index}.png", truth(index))
        metrics = dinounet.evaluate(tmp_path / f"out {len(how)}", root / "masks", labels="background=0,disc=1,square=2")
        assert metrics.mean_over_cases_and_classes.dice == 1


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("overlap", r"disc/c1\.png and .*square/c1\.png both hold 30 pixels; give each to one class"),
        ("missing", r"one mask per class \(disc, square\), but c1 has no mask of square; add masks of 0 where"),
        ("values", r"disc/c1\.png holds 7, 255 beside 0; the mask of one class must hold one number"),
    ],
)
def test_wrong_files_of_classes_are_answered(what: str, message: str, tmp_path: Path) -> None:
    root = write_cases(tmp_path / "data")
    shutil.rmtree(root / "masks")
    for index in range(4):
        for label, name in ((1, "disc"), (2, "square")):
            save(root / "masks" / name / f"c{index}.png", (truth(index) == label) * np.uint8(255))
    disc, square = (root / "masks" / name / "c1.png" for name in ("disc", "square"))
    pixels = np.array(Image.open(disc))
    if what == "overlap":
        where = np.argwhere(pixels)[:30]
        other = np.array(Image.open(square))
        other[tuple(where.T)] = 255
        save(square, other)
    elif what == "missing":
        square.unlink()
    elif what == "values":
        pixels[0, 0] = 7
        save(disc, pixels)
    with pytest.raises(DataError, match=message):
        plan_data(read_dataset(root))


def smooth(mask: np.ndarray) -> np.ndarray:
    """What enlarging and reducing an image leaves."""
    image = Image.fromarray(mask)
    size = image.size
    larger = image.resize((size[0] + 1, size[1] + 1), Image.Resampling.BICUBIC)
    return np.asarray(larger.resize(size, Image.Resampling.BICUBIC))


@pytest.mark.parametrize("what", ["smoothed", "JPEG", "JPEG in colours"])
def test_mixtures_are_refused_with_the_command_that_repairs_them(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = Path("my data")
    for index in range(3):
        image, mask = picture((160, 200), index)
        save(data / "images" / f"c{index}.png", image)
        numbers = np.array([0, 127, 255], np.uint8)[mask]
        if what == "smoothed":
            save(data / "masks" / f"c{index}.png", smooth(numbers))
        elif what == "JPEG":
            save(data / "masks" / f"c{index}.jpg", numbers, quality=80)
        else:
            colours = np.array([[0, 0, 0], [0, 255, 0], [255, 0, 0]], np.uint8)
            save(data / "masks" / f"c{index}.jpg", colours[mask], quality=90)
    assert main(["plan", str(data)]) == 2
    message = capsys.readouterr().err
    assert ("as smoothed masks do" if what == "smoothed" else "which changes labels in storing them: ") in message
    command = shlex.split(message[message.index("dinounet relabel") :])
    assert main(command[1:]) == 0
    told = capsys.readouterr().out
    assert "pixels changed" in told
    shutil.rmtree(data / "masks")
    Path(command[4]).rename(data / "masks")
    plan = plan_data(read_dataset(data, parse_labels(told.split("--labels ")[1].split('"')[0])))
    assert len(plan.labels.classes) == 3
    for index in range(3):
        found = read_mask(data / "masks" / f"c{index}.png").array[0]
        expected = picture((160, 200), index)[1]
        wrong = found != np.array(list(plan.labels.classes.values()))[expected]
        inside = np.ones_like(expected, bool)
        for axis in (0, 1):
            for step in (-3, -2, -1, 1, 2, 3):  # mixtures lie at the borders alone
                inside &= np.roll(expected, step, axis) == expected
        assert not wrong[inside].any()


def test_relabel_tells_what_it_changed_and_writes_nothing_over_anything(tmp_path: Path) -> None:
    mask = np.zeros((10, 10), np.uint8)
    mask[:, 5:] = 255
    mask[:, 4], mask[0, 5] = 60, 200
    save(tmp_path / "masks" / "sub" / "a.bmp", mask)
    volume = sitk.GetImageFromArray(np.array([[[0.1, 0.9], [1.0, 0.0]]], np.float32))
    volume.SetSpacing((2, 3, 4))
    sitk.WriteImage(volume, str(tmp_path / "masks" / "b.nii.gz"))
    folder, out = tmp_path / "masks", tmp_path / "out"
    changes = relabel_folder(folder, mask_files(folder), out, parse_labels("background=0,lesion=255"))
    by_name = {change.path.relative_to(out).as_posix(): change for change in changes}
    assert by_name.keys() == {"sub/a.png", "b.nii.gz"}
    assert by_name["sub/a.png"][1:] == (11, 0.11, 60)
    expected = np.zeros((10, 10), np.uint8)
    expected[:, 5:] = 255
    np.testing.assert_array_equal(np.asarray(Image.open(out / "sub" / "a.png")), expected)
    assert sitk.ReadImage(str(out / "b.nii.gz")).GetSpacing() == (2, 3, 4)
    paths = dinounet.relabel(folder, tmp_path / "other", labels="background=0,lesion=1")
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(paths[0]))).ravel().tolist() == [0, 1, 1, 0]
    with pytest.raises(UserError, match="exists already; give the clean masks another name"):
        dinounet.relabel(folder, out, labels="background=0,lesion=1")
    (folder / "c.png").write_text("hello")
    with pytest.raises(DataError, match=r"c\.png can't be read"):
        dinounet.relabel(folder, tmp_path / "third", labels="background=0,lesion=1")
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.array([[[0.0, 0.5]]], np.float32), r"holds the value 0\.5; a mask must hold whole .*: dinounet relabel"),
        (np.array([[[0.0, np.nan]]], np.float32), r"a\.nii\.gz holds 1 pixels that are NaN or infinite"),
        (np.array([[[0, -1]]], np.int16), r"holds the label -1; store a number from 0 up in its place, such as 255"),
    ],
)
def test_numbers_that_no_mask_may_hold_are_answered(pixels: np.ndarray, message: str, tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(pixels), str(tmp_path / "a.nii.gz"))
    with pytest.raises(DataError, match=message):
        read_mask(tmp_path / "a.nii.gz")


def test_float_masks_with_whole_numbers_are_masks(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.array([[[0.0, 2.0]]], np.float32)), str(tmp_path / "a.nii.gz"))
    assert read_mask(tmp_path / "a.nii.gz").array.ravel().tolist() == [0, 2]


def test_too_many_classes_are_refused() -> None:
    many = {f"class {index}": index for index in range(257)}
    with pytest.raises(ConfigError, match="there are 257 classes; there can be 256 at most"):
        name_labels(many)
    with pytest.raises(DataError, match="in which each object has a number of its own; store a number per class"):
        infer_labels(dict.fromkeys(range(300), 1), "x", Path("masks"))


def test_colours_do_not_fit_the_numbers_of_nnunet(tmp_path: Path) -> None:
    root = write_png_dataset(tmp_path / "data")
    save(root / "labelsTr" / "case_1.png", COLOURS[picture((72, 80), 1)[1]])
    describe(root, ".png")
    with pytest.raises(DataError, match=r"case_1\.png is a mask in different colours \(#000000, #0080ff, #ff0000\)"):
        plan_data(read_dataset(root))


@pytest.mark.parametrize(
    ("images", "masks", "names"),
    [
        ("images/p1/*.png", "masks/p1/*.png", "p1_"),
        ("images/p 1/é/*.png", "labels/p 1/é/*_mask.png", "p 1_é_"),
        ("p1/*.png", "p1/*_seg.png", "p1_"),
        ("images/a.b.*.png", "masks/a.b.*_annotation.png", "a.b."),
        ("images/*.ome.tif", "masks/*.png", ""),
    ],
)
def test_folders_are_part_of_names(images: str, masks: str, names: str, tmp_path: Path) -> None:
    dataset = read_dataset(write_cases(tmp_path / "data", masks, images))
    assert [case.name for case in dataset.cases] == [f"{names}c{index}" for index in range(4)]
    plan_data(dataset)


def test_patients_may_have_folders_with_an_image_and_a_mask_each(tmp_path: Path) -> None:
    dataset = read_dataset(write_cases(tmp_path / "data", "*/mask.png", "*/image.png"))
    assert [case.name for case in dataset.cases] == ["c0", "c1", "c2", "c3"]
    assert dataset.paired_by == "`image` at the end of the image's name and `mask` at the end of the mask's name (4)"


def test_predictions_of_nested_images_meet_their_nested_truth(tmp_path: Path) -> None:
    root = write_cases(tmp_path / "data", "masks/p1/*.png", "images/p1/*.png")
    for index in range(4):
        save(tmp_path / "out" / f"p1_c{index}.png", truth(index))
    metrics = dinounet.evaluate(tmp_path / "out", root / "masks", labels=GIVEN)
    assert [case.case for case in metrics.cases] == [f"p1_c{index}" for index in range(4)]
    assert metrics.mean_over_cases_and_classes.dice == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("images/c0.png", "images/C1.png"), r"C1 and c1 differ only in small and capital letters"),
        (("images/c0.png", "images/c1.bmp"), r"2 files in .*images are named c1"),
        (("images/c0.png", "images/p/c0.png"), r"p/c0\.png has no mask; .*c0\.png has no image"),
    ],
)
def test_names_that_some_systems_confuse_are_refused(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    root = write_cases(tmp_path / "data")
    (root / change[1]).parent.mkdir(exist_ok=True)
    Image.open(root / change[0]).save(root / change[1])
    (root / change[0]).unlink()
    with pytest.raises(DataError, match=message):
        read_dataset(root)


def test_an_e_with_an_accent_is_one_letter_however_it_is_stored(tmp_path: Path) -> None:
    root = write_cases(tmp_path / "data")
    composed = unicodedata.normalize("NFC", "é")
    (root / "images" / "c0.png").rename(root / "images" / f"{composed}.png")
    (root / "masks" / "c0.png").rename(root / "masks" / f"{unicodedata.normalize('NFD', composed)}.png")
    assert {case.name for case in read_dataset(root).cases} == {composed, "c1", "c2", "c3"}


@pytest.mark.slow
def test_the_plan_tells_what_was_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cases(tmp_path / "data", "masks/*_segmentation.png")
    dinounet.plan(tmp_path / "data", labels=GIVEN)
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "`_segmentation` at the end of the mask's name (4)" in told
    assert "colours #000000 background, #ff0000 disc, #0080ff square" in told


def test_the_shared_data_is_understood() -> None:
    axon = shared("data/axon_sem")
    with pytest.raises(DataError, match=r"hold 0, 128, 255; .*--labels background=0,class1=128,class2=255"):
        plan_data(read_dataset(axon))
    plan = plan_data(read_dataset(axon, parse_labels("background=0,myelin=128,axon=255")))
    pixels = np.asarray(Image.open(axon / "mask.png"))
    pixels = pixels if pixels.ndim == 2 else pixels[..., 0]
    assert plan.fingerprint.label_pixels == {
        "background": (pixels == 0).sum(), "myelin": (pixels == 128).sum(), "axon": (pixels == 255).sum(),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["brain", "lung"])
def test_shared_volumes_in_pairs_are_understood(name: str) -> None:
    root = shared(f"data/{'brain_mr' if name == 'brain' else 'lung_ct'}")
    dataset = read_dataset(root)
    assert [case.name for case in dataset.cases] == [f"{name}1", f"{name}2"]
    plan = plan_data(dataset)
    counts: dict[int, int] = {}
    for case in dataset.cases:
        found, numbers = np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(case.mask))), return_counts=True)
        for value, number in zip(found.tolist(), numbers.tolist(), strict=True):
            counts[value] = counts.get(value, 0) + number
    assert {plan.labels.classes[key]: number for key, number in plan.fingerprint.label_pixels.items()} == counts
    sizes = [sitk.ReadImage(str(case.images[0])).GetSize()[::-1] for case in dataset.cases]
    assert plan.fingerprint.median_shape == tuple(np.median(sizes, axis=0).astype(int))
