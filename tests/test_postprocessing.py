"""What is done to predicted masks after the network, and on what it is chosen."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from scipy import ndimage
from skimage.morphology import remove_small_objects
from sklearn.metrics import f1_score

import dinounet
from datasets import write_png_dataset
from dinounet import pipeline as review
from dinounet.data.dataset import read_dataset
from dinounet.data.layouts import Case
from dinounet.errors import ConfigError, DataError, Interrupted
from dinounet.evaluation.postprocessing_search import choose, improves
from dinounet.inference.postprocessing import Segmentation, SegmentationBuilder, agree, apply, describe
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data
from dinounet.schema.base import read_record
from dinounet.schema.labels import Labels, Region
from dinounet.schema.plan import Plan
from dinounet.schema.prediction import Postprocessing, Steps, read_postprocessing
from dinounet.schema.recipe import Recipe
from dinounet.schema.run import read_run
from networks import planned

LESION = Labels({"background": 0, "lesion": 1})
PAIR = Labels({"background": 0, "a": 1, "b": 2})
NESTED = Labels({"background": 0, "rim": 1, "middle": 2}, (Region("whole", (1, 2), 1), Region("core", (2,), 2)))
LARGEST = Steps(keep_largest=True)
FILL = Steps(fill_holes=True)


def drawn(rows: str) -> np.ndarray:
    """A flat mask (1, H, W) of digits, dots being 0."""
    return np.array([[[int(c) for c in row.replace(".", "0")] for row in rows.split()]], np.uint8)


def done(labels: np.ndarray, known: Labels, **steps: Steps) -> np.ndarray:
    return apply(Postprocessing(steps), labels.copy(), None, known)


@pytest.mark.parametrize(
    ("before", "after", "steps"),
    [
        ("11..1 11... ..122 1..2.", "11... 11... ..122 ...2.", {"a": LARGEST}),  # a corner connects; b is not asked for
        ("11.11 ..... 22..2", "11.11 ..... 22...", {"a": LARGEST, "b": LARGEST}),  # of equally large ones both stay
        ("11..1 11... .....", "11... 11... .....", {"a": Steps(smallest=2)}),
        ("11..1 11... .....", "..... ..... .....", {"a": Steps(smallest=5)}),  # 4 are fewer than 5
        ("11..1 11... .....", "11... 11... .....", {"a": Steps(smallest=4)}),
        (".111. 1...1 1.2.1 .111. .....", ".111. 11111 11211 .111. .....", {"a": FILL}),  # not what is another class's
        ("111 1.1 1.1", "111 1.1 1.1", {"a": FILL}),  # open to the border
        ("22222 21112 21.12 21112 22222", "22222 21112 21112 21112 22222", {"a": FILL}),
        ("111 121 111", "111 1.1 111", {"b": Steps(smallest=2)}),  # what is removed is background
        ("1111 1.21 1111", "1111 1111 1111", {"a": FILL, "b": Steps(smallest=2)}),  # removed before holes are filled
        ("...", "...", {"a": Steps(True, 3.0, True)}),
        ("1", "1", {"a": Steps(True, 1.0, True)}),
    ],
)  # fmt: skip
def test_by_hand(before: str, after: str, steps: dict[str, Steps]) -> None:
    np.testing.assert_array_equal(done(drawn(before), PAIR, **steps), drawn(after))


def test_random_volumes_as_scikit_image_and_scipy_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinounet.inference.postprocessing.STRIP", 1000)  # so that there are several strips
    labels = np.random.RandomState(0).choice([0, 1, 2], (20, 30, 40), p=[0.9, 0.08, 0.02]).astype(np.uint16)
    labels[4:16, 5:20, 8:30] = 1
    labels[8:10, 8:12, 11:20] = 0
    labels[9, 9, 15] = 2
    mask = labels == 1
    kept = remove_small_objects(mask, max_size=6, connectivity=3)  # those of 6 too
    assert 0 < np.count_nonzero(mask & ~kept) < np.count_nonzero(mask)
    expected = np.where(mask & ~kept, 0, labels)
    np.testing.assert_array_equal(done(labels, PAIR, a=Steps(smallest=7)), expected)
    filled = np.where(ndimage.binary_fill_holes(mask) & (labels == 0), 1, labels)
    assert np.count_nonzero(filled != labels) > 50
    np.testing.assert_array_equal(done(labels, PAIR, a=FILL), filled)


def test_flat_masks_are_two_dimensional_and_volumes_are_not() -> None:
    ring = drawn("..... .111. .1.1. .111. .....")
    full = drawn("..... .111. .111. .111. .....")
    volume = np.concatenate([ring * 0, ring, ring * 0])
    np.testing.assert_array_equal(done(ring, PAIR, a=FILL), full)
    np.testing.assert_array_equal(done(np.moveaxis(ring, 0, 2), PAIR, a=FILL), np.moveaxis(full, 0, 2))
    np.testing.assert_array_equal(done(volume, PAIR, a=FILL), volume)  # above and below the hole is open
    shell = np.concatenate([ring * 0, full, ring, full, ring * 0])
    np.testing.assert_array_equal(done(shell, PAIR, a=FILL), np.concatenate([ring * 0, full, full, full, ring * 0]))
    stairs = np.zeros((3, 4, 4), np.uint8)
    stairs[0, 0, 0] = stairs[1, 1, 1] = stairs[2, 2, 2] = 1  # one component, by corners
    np.testing.assert_array_equal(done(stairs, PAIR, a=LARGEST), stairs)


def test_sizes_in_mm_hold_at_any_spacing() -> None:
    post = Postprocessing({"a": Steps(smallest=8.0)}, unit="mm3", spacing=(1.0, 1.0, 1.0))
    blob = np.zeros((6, 6, 6), np.uint8)
    blob[1:3, 1:3, 1:3] = 1  # 8 voxels
    assert apply(post, blob.copy(), (1.0, 1.0, 1.0), PAIR).any()
    assert apply(post, blob.copy(), (0.5, 2.0, 1.0), PAIR).any()
    assert not apply(post, blob.copy(), (0.5, 0.5, 3.0), PAIR).any()
    assert apply(post, blob.copy(), None, PAIR).any()  # taken to have the record's
    assert not apply(replace(post, spacing=(0.9, 1.0, 1.0)), blob.copy(), None, PAIR).any()
    in_pixels = Postprocessing({"a": Steps(smallest=8.0)})
    assert apply(in_pixels, blob.copy(), (0.5, 0.5, 3.0), PAIR).any()


def test_a_region_is_the_union_of_its_labels() -> None:
    mask = drawn("111..12 121..11 111....")
    np.testing.assert_array_equal(done(mask, NESTED, whole=LARGEST), drawn("111.... 121.... 111...."))
    np.testing.assert_array_equal(done(mask, NESTED, core=Steps(smallest=2)), drawn("111..1. 1.1..11 111...."))
    hole = drawn("11111 12221 12.21 12221 11111")
    full = drawn("11111 12221 12121 12221 11111")
    np.testing.assert_array_equal(done(hole, NESTED, whole=FILL), full)  # written as 1
    np.testing.assert_array_equal(done(hole, NESTED, whole=FILL, core=FILL), drawn("11111 12221 12221 12221 11111"))


def test_the_record_is_read_strictly_and_told_in_words(tmp_path: Path) -> None:
    post = Postprocessing(
        {"a": Steps(True, 12.5, True, 0.5, 0.75), "b": Steps()}, "mm3", (3.0, 0.5, 0.5), cases=("x", "y")
    )
    assert read_postprocessing(tmp_path) is None
    path = tmp_path / "postprocessing.json"
    write_json(path, post)
    assert read_postprocessing(tmp_path) == post
    assert describe(post) == "a: largest component kept, components below 12.5 mm³ removed, holes filled"
    assert describe(Postprocessing({"b": Steps()})) == ""
    path.write_text('{"classes": {"a": {"fill_holes": true}}}')  # by hand
    assert read_postprocessing(tmp_path) == Postprocessing({"a": FILL})
    for text, message in [
        (
            '{"classes": {"a": {"keep_biggest": true}}}',
            "'classes.a.keep_biggest'; did you mean 'keep_largest'",
        ),
        ('{"classes": {"a": {"smallest": 0}}}', "smallest is 0.0; it must be above 0, or null"),
        ('{"classes": {"a": {"smallest": -3}}}', "smallest is -3.0; it must be above 0, or null"),
        ('{"classes": {"a": {"smallest": "big"}}}', "classes.a.smallest is 'big'; it must be a number"),
        ('{"classes": {}, "unit": "mm3"}', "unit is mm3 and spacing None; give a spacing with mm3, and null with px"),
        ('{"classes": {}, "unit": "mm3", "spacing": [1, 0, 1]}', r"spacing is \[1.0, 0.0, 1.0\]; give three distances"),
        ('{"classes": {}, "format": 2}', "has the format 2, of a newer dinounet than this one, which reads 1; upgrade"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_record(Postprocessing, path, what="a postprocessing")
    with pytest.raises(ConfigError, match="names c, but masks hold a, b; name these"):
        done(drawn("1"), PAIR, c=FILL)


def blank() -> np.ndarray:
    return np.zeros((60, 60), np.uint8)


def disc(label: int = 1, y: int = 30, x: int = 30, radius: int = 12, on: np.ndarray | None = None) -> np.ndarray:
    rows, columns = np.mgrid[:60, :60]
    mask = blank() if on is None else on.copy()
    mask[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = label
    return mask


def specks(mask: np.ndarray, label: int = 1, size: int = 3) -> np.ndarray:
    mask = mask.copy()
    for corner in (1, 54):
        mask[corner : corner + size, 2 : 2 + size] = label
    return mask


def chosen(folder: Path, pairs: Sequence[tuple[np.ndarray, np.ndarray]], known: Labels) -> Postprocessing:
    """What is chosen of truths and predictions as PNG, or NIfTI with slices of 2 x 0.5 x 0.5 mm."""
    cases, predicted = [], {}
    for index, pair in enumerate(pairs):
        for name, mask in zip(("truth", "predicted"), pair, strict=True):
            path = folder / name / f"case_{index}{'.png' if mask.ndim == 2 else '.nii.gz'}"
            path.parent.mkdir(exist_ok=True)
            if mask.ndim == 2:
                Image.fromarray(mask).save(path)
            else:
                image = sitk.GetImageFromArray(mask)
                image.SetSpacing((0.5, 0.5, 2.0))
                sitk.WriteImage(image, str(path))
            predicted[f"case_{index}"] = path
        cases.append(Case(f"case_{index}", (), predicted[f"case_{index}"].parent.parent / "truth" / path.name))
    return choose(cases, predicted, known)


def test_only_what_helps_is_chosen(tmp_path: Path) -> None:
    pairs = []
    for shift in range(4):
        truth = disc(2, 30, 50, 4, on=disc(1, 30, 20 + shift))  # b: two components of 49 and 49 pixels
        truth = disc(2, 50, 50, 4, on=truth)
        predicted = specks(specks(truth, 1, 2 + shift), 2, 1)
        predicted[29:32, 20 + shift] = 0  # a hole in a
        pairs.append((truth, predicted))
    post = chosen(tmp_path, pairs, PAIR)
    a, b = post.classes["a"], post.classes["b"]
    assert (a.keep_largest, a.smallest, a.fill_holes) == (True, None, True)  # the largest alone leaves nothing to do
    assert (b.keep_largest, b.smallest, b.fill_holes) == (False, pytest.approx(4.9), False)
    assert (post.unit, post.spacing, post.cases) == ("px", None, ("case_0", "case_1", "case_2", "case_3"))
    for name, label in (("a", 1), ("b", 2)):
        before = [f1_score((truth == label).ravel(), (mask == label).ravel()) for truth, mask in pairs]
        assert post.classes[name].dice_before == pytest.approx(np.mean(before))
        assert post.classes[name].dice_after == pytest.approx(1.0)
    for truth, mask in pairs:
        np.testing.assert_array_equal(apply(post, mask[None].copy(), None, PAIR)[0], truth)


def test_sizes_of_volumes_are_in_mm(tmp_path: Path) -> None:
    truth = np.stack([disc(1, 30, 20, 4) | disc(1, 30, 45, 4)] * 3)  # two components of 3 * 49 voxels of 0.5 mm³
    predicted = np.stack([specks(truth[0]), truth[0], specks(truth[0], 1, 1)])
    post = chosen(tmp_path, [(truth, predicted)] * 3, LESION)
    assert (post.unit, post.spacing) == ("mm3", (2.0, 0.5, 0.5))
    # 3 x 3 voxels are 4.5 mm³; the shares of 73.5 mm³ are 7.35, 18.4 and 36.8, all equally good
    assert (post.classes["lesion"].keep_largest, post.classes["lesion"].smallest) == (False, 7.35)


def test_few_cases_and_single_gains_choose_nothing(tmp_path: Path) -> None:
    truth = disc()
    good, better = (truth, truth), (truth, specks(truth))
    for folder, pairs, expected in [
        ("two", [better] * 2, False),
        ("three", [better] * 3, True),
        ("one of four", [better, good, good, good], False),
        ("two of four", [better, better, good, good], True),
        ("none", [good] * 4, False),
        ("nothing", [(blank(), blank())] * 4, False),
    ]:
        (tmp_path / folder).mkdir()
        post = chosen(tmp_path / folder, pairs, LESION)
        assert post.does_something is expected, folder
        assert post.classes["lesion"].dice_before == pytest.approx(
            np.mean([f1_score(t.ravel(), p.ravel(), zero_division=1.0) for t, p in pairs])
        )
    with pytest.raises(DataError, match="there is no case to select postprocessing on"):
        choose([], {}, LESION)


def test_a_mean_that_rises_is_not_enough_if_one_case_loses(tmp_path: Path) -> None:
    truth = disc()
    split = truth.copy()
    split[22, :] = 0  # a part of it, as if it were another component
    pairs = [(truth, specks(truth, 1, 5))] * 5
    assert chosen(tmp_path, pairs, LESION).classes["lesion"].keep_largest
    assert not chosen(tmp_path, [*pairs, (truth, split)], LESION).classes["lesion"].keep_largest


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        ([0.01, 0.01, 0.0], [0.0, 0.0, 0.0], True),
        ([0.01, 0.01, -0.0009], [0.0, 0.0, 0.0], True),
        ([0.02, 0.02, -0.002], [0.0, 0.0, 0.0], False),  # a case loses
        ([0.03, 0.0, 0.0], [0.0, 0.0, 0.0], False),  # only one gains
        ([0.001, 0.001, 0.0], [0.0, 0.0, 0.0], False),  # too little
        ([0.01, 0.01, 0.01], [0.0, 0.0, -0.0005], False),  # another class's mean falls
        ([0.01, 0.01, 0.01], [0.1, 0.1, -0.002], False),  # another class loses in one case
    ],
)  # fmt: skip
def test_the_rule(own: list[float], other: list[float], expected: bool) -> None:
    before = {"own": [0.5] * 3, "other": [0.5] * 3}
    after = {"own": [0.5 + gain for gain in own], "other": [0.5 + gain for gain in other]}
    assert improves("own", before, after) is expected


def test_what_helps_a_region_must_not_harm_another(tmp_path: Path) -> None:
    truth = disc(2, 30, 30, 6, on=disc(1, 30, 30, 20))
    stray = disc(2, 20, 20, 3, on=truth)  # too much core, but within the whole: removed, it would leave a hole there
    post = chosen(tmp_path, [(truth, stray)] * 4, NESTED)
    core, whole = post.classes["core"], post.classes["whole"]
    assert not core.does_something and not whole.does_something
    assert whole.dice_before == 1.0
    assert core.dice_before == pytest.approx(f1_score((truth == 2).ravel(), (stray == 2).ravel()))

    hollow = truth.copy()
    hollow[28:33, 28:33] = 0  # filled as core by core's step, which leaves no hole to the whole's
    post = chosen(tmp_path, [(truth, hollow)] * 4, NESTED)
    assert post.classes["core"].fill_holes and post.classes["core"].dice_after == 1.0
    assert post.classes["whole"].dice_after == 1.0


def test_steps_that_help_alone_but_not_together_are_dropped(tmp_path: Path) -> None:
    truth = disc(2, 50, 50, 5, on=disc(1, 24, 24, 18))
    truth[20:26, 20:26] = 0  # a hole in a that is right
    predicted = truth.copy()
    predicted[20:26, 20:26] = 2  # taken for b: away with it, but then it is a hole in a
    predicted[12:15, 20:23] = 0  # a hole in a that is wrong
    post = chosen(tmp_path, [(truth, predicted)] * 4, PAIR)
    a, b = post.classes["a"], post.classes["b"]
    assert b.keep_largest and not a.does_something
    assert (a.dice_after, b.dice_after) == (a.dice_before, 1.0)


def test_pixels_that_the_truth_ignores_decide_nothing(tmp_path: Path) -> None:
    truth = disc()
    ignoring = truth.copy()
    ignoring[:, :8] = 255  # where the specks are
    known = Labels({"background": 0, "lesion": 1}, None, 255)
    assert not chosen(tmp_path, [(ignoring, specks(truth))] * 4, known).does_something
    assert chosen(tmp_path, [(truth, specks(truth))] * 4, known).does_something


@pytest.fixture
def run_of_specks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, dict]:
    """A dataset, a run's folder and how to train it; its network sees the truth, and specks of "disc" beside it."""
    data = write_png_dataset(tmp_path / "pictures", cases=17)
    (tmp_path / "held out.txt").write_text("case_1\ncase_4\n")
    plan = plan_data(read_dataset(data, test=["case_1", "case_4"]), (64, 64))
    write_json(tmp_path / "plan.json", Plan(plan, planned(num_classes=3), Recipe(steps=1, augmentation="none")))

    finish = SegmentationBuilder.finish

    def finish_otherwise(draft: SegmentationBuilder, post: Postprocessing | None) -> Segmentation:
        mask = np.array(Image.open(data / "labelsTr" / draft.volume.source.name.replace("_0000", "")))
        mask[:2, :2] = mask[-3:, :3] = 1
        draft._labels[:] = mask
        return finish(draft, post)

    monkeypatch.setattr(SegmentationBuilder, "finish", finish_otherwise)
    options = {"plan": tmp_path / "plan.json", "test": tmp_path / "held out.txt", "weights": "random", "device": "cpu"}
    return data, tmp_path / "run", options


@pytest.mark.slow
def test_a_run_chooses_on_validation_cases_and_does_it_to_test_cases(
    run_of_specks: tuple[Path, Path, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    data, run, options = run_of_specks
    with monkeypatch.context() as patch:
        patch.setattr(review, "choose", stop)
        with pytest.raises(Interrupted):
            dinounet.train(data, run, **options)
    assert (run / "validation").exists() and not (run / "postprocessing.json").exists()
    dinounet.train(data, run, resume=True)

    watched = read_run(run).data.validation_cases
    post = read_postprocessing(run)
    assert post is not None and post.cases == watched and len(watched) == 3
    disc_steps = post.classes["disc"]
    assert disc_steps.keep_largest and not post.classes["square"].does_something
    metrics = json.loads((run / "validation" / "metrics.json").read_text())  # of the masks without postprocessing
    assert metrics["mean_over_cases"]["disc"]["dice"] == pytest.approx(disc_steps.dice_before)
    assert disc_steps.dice_before < disc_steps.dice_after == 1.0
    for name in watched:
        assert np.asarray(Image.open(run / "validation" / f"{name}.png"))[0, 0] == 1
    for name in ("case_1", "case_4"):
        truth = np.asarray(Image.open(data / "labelsTr" / f"{name}.png"))
        np.testing.assert_array_equal(np.asarray(Image.open(run / "test" / f"{name}.png")), truth)
    records = [json.loads((run / part / "prediction.json").read_text()) for part in ("validation", "test")]
    assert records[0]["postprocessing"] is None
    assert records[1]["postprocessing"] == json.loads((run / "postprocessing.json").read_text())
    told = "These masks are postprocessed as chosen on 3 validation cases (disc: largest component kept)."
    assert told in (run / "report.html").read_text()

    (run / "postprocessing.json").write_text('{"classes": {"disk": {"keep_largest": true}}}')
    (run / "report.html").unlink()
    shutil.rmtree(run / "test")
    with pytest.raises(ConfigError, match=r"run/postprocessing\.json names disk, but masks hold disc, square"):
        dinounet.train(data, run, resume=True)


@pytest.mark.slow
def test_the_report_of_validation_cases_says_that_they_are_not_postprocessed(
    run_of_specks: tuple[Path, Path, dict],
) -> None:
    data, run, options = run_of_specks
    plan = plan_data(read_dataset(data), (64, 64))
    write_json(options["plan"], Plan(plan, planned(num_classes=3), Recipe(steps=1, augmentation="none")))
    dinounet.train(data, run, **options | {"test": None})
    told = "These masks are as the network made them; on validation cases it was chosen how later masks are postproc"
    assert told in (run / "report.html").read_text()


def test_runs_that_predict_together_do_what_all_of_them_chose() -> None:
    one = Postprocessing({"a": Steps(True, 5.0, True), "b": Steps(True)}, "px", cases=("x",))
    other = Postprocessing({"a": Steps(True, 3.0, False)}, "px", cases=("y",))
    assert agree([one, other]) == Postprocessing({"a": Steps(True, 3.0, False), "b": Steps()}, "px", cases=("x", "y"))
    assert agree([one, None]) is None
    scaled = replace(other, unit="mm3", spacing=(1.0, 1.0, 1.0))
    assert agree([one, scaled]).classes["a"] == Steps(True, None, False)
