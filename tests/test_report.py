"""The report: whole, well-formed, alone in the world, and its pictures show what is there."""

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from dinounet.drawing import COLOURS, colours_of
from dinounet.errors import DataError
from dinounet.evaluation.evaluate import Metrics, evaluate_folders
from dinounet.evaluation.pictures import ERRORS, make_pictures
from dinounet.evaluation.report import write_report

LABELS = {"background": 0, "grey": 1, "<i>white</i>": 2}
RUN = {
    "status": "finished",
    "command": ["dinounet", "train", "my data"],
    "data": {"name": "ICBM<152>", "training_cases": ["x", "y"], "validation_cases": ["z"]},
    "plan": {"recipe": {"steps": 200, "learning_rate": 0.001}},
    "backbone": {"name": "dinov3_vits16", "weights": "random"},
    "trained_parameters": 6194948,
    "versions": {"torch": "2.14.1"},
    "machine": {"cores": 2},
    "notes": ["The weights are random."],
}
LOG = [
    *({"step": step, "loss": 2 / step, "learning_rate": 0.1, "seconds": 1.0} for step in range(1, 701)),
    {"step": 701, "loss": float("nan")},
    {"step": 350, "validation_loss": 0.5, "validation_dice": {"grey": 0.4}},
    {"step": 700, "validation_loss": 0.3, "validation_dice": {"grey": 0.8, "<i>white</i>": 0.625}},
]
VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """A page's tags, which must be balanced, its ids, which must be unique, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.tags, self.ids, self.references, self.labels, self.text = [], [], [], [], [], ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        named = dict(attributes)
        self.ids += [named["id"]] if "id" in named else []
        self.references += [named[name] for name in ("href", "src", "xlink:href", "srcset", "action") if name in named]
        self.labels += [named["aria-label"]] if named.get("role") == "img" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title", "script"):
            self.text += data


def example(root: Path) -> tuple[Metrics, dict[str, Path]]:
    """Two flat cases: one right, one with a square found, a square missed and a square taken for the other class."""
    folders = {name: root / name for name in ("predictions", "truth", "images")}
    for folder in folders.values():
        folder.mkdir()
    truth = np.zeros((60, 80), np.uint8)
    truth[20:40, 10:30] = 1
    truth[20:40, 50:70] = 2
    wrong = truth.copy()
    wrong[0:5, 0:5], wrong[20:24, 10:14], wrong[36:40, 66:70] = 2, 0, 1
    for case, prediction in (("right", truth), ("<b>wrong</b>".replace("/", "_"), wrong)):
        Image.fromarray(truth).save(folders["truth"] / f"{case}.png")
        Image.fromarray(prediction).save(folders["predictions"] / f"{case}.png")
        Image.fromarray(truth * 100).save(folders["images"] / f"{case}_0000.png")
    return evaluate_folders(folders["predictions"], folders["truth"], LABELS), folders


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def rgb(colour: str) -> list[int]:
    """The colour, opaque."""
    return [*bytes.fromhex(colour[1:]), 255]


@pytest.fixture
def page(tmp_path) -> str:
    metrics, folders = example(tmp_path)
    pictures = make_pictures(metrics, **folders)
    path = tmp_path / "out" / "report.html"
    write_report(
        path, title="<b>Title</b> & co", metrics=metrics, pictures=pictures, run=RUN, log=LOG, notes=["Mind <this>."]
    )
    return path.read_text(encoding="utf-8")


def test_report_is_well_formed_and_names_everything(page):
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    for words in (
        "<b>Title</b> & co", "Mind <this>.", "The weights are random.", "ICBM<152>", "right", "<b>wrong<_b>", "grey",
        "<i>white</i>", "mean HD95", "px", "cases to learn from: 2", "weights: random", "6\u202f194\u202f948",
        "torch 2.14.1", "cores 2", "dinounet train 'my data'", "No case is left out of a mean.", "0.625 at the end",
        "training loss (means of 2.33 steps)", *ERRORS,
    ):  # fmt: skip
        assert words in parsed.text, words
    assert not {"b", "i", "this"} & set(parsed.tags)  # names are text, not tags
    wrong, right = parsed.text.index("<b>wrong<_b>"), parsed.text.index("right\n")
    assert wrong < right  # worst first


def test_report_asks_nobody_for_anything(page):
    parsed = Page(page)
    for reference in parsed.references:
        assert reference.startswith(("data:", "#")), reference
        assert not reference.startswith("#") or reference[1:] in parsed.ids, reference
    assert "xlink" not in page
    assert not re.search(r"url\((?!#)|@import|https?://|<iframe|<object|\bon\w+=\"", page)
    # the one script that may run is the page's own
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; ") and f"; script-src 'sha256-{allowed}';" in policy


def test_every_picture_has_words(page):
    labels = Page(page).labels
    curves, strips, pictures = labels[:2], labels[2:6], labels[6:]
    assert curves[0].startswith("Loss against step, at the end: training loss (means of 2.33 steps)")
    assert curves[1] == "Validation Dice against step, at the end: grey 0.800, <i>white</i> 0.625"
    assert strips[0] == f"Dice of grey: worst {2 * 384 / (400 + 400):.3f} in <b>wrong<_b>, best 1.000 in right"
    assert strips[3].startswith("HD95 (px) of <i>white</i>: worst ")
    assert len(pictures) == 2 * 4
    assert pictures[3] == (
        "<b>wrong<_b>: 25 pixels predicted, not there, 16 pixels there, missed, 16 pixels taken for another class"
    )
    assert pictures[7] == "right: no wrong pixel"


def test_report_without_a_run(tmp_path):
    metrics, _ = example(tmp_path)
    write_report(tmp_path / "report.html", title="Only numbers", metrics=metrics)
    parsed = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "image" not in parsed.tags and "script" not in parsed.tags and "dialog" not in parsed.tags
    assert "Origin" not in parsed.text  # nothing is known of it
    assert f"{metrics.mean_over_cases_and_classes.dice:.3f}" in parsed.text
    assert "trained on" not in parsed.text


def test_a_missed_class_is_told_in_words(tmp_path):
    _, folders = example(tmp_path)
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(folders["predictions"] / "right.png")
    metrics = evaluate_folders(folders["predictions"], folders["truth"], LABELS)
    write_report(tmp_path / "report.html", title="Missed", metrics=metrics)
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert text.count("missed\n") == 2
    assert text.rindex("right") < text.rindex("<b>wrong<_b>")  # worst first, in the table too
    assert "missed entirely (only the prediction is empty): 2" in text


def test_panels_show_image_truth_prediction_and_errors(tmp_path):
    metrics, folders = example(tmp_path)
    wrong, right = make_pictures(metrics, **folders)
    assert wrong.case == "<b>wrong<_b>" and wrong.dice < right.dice == 1.0
    assert [panel.title for panel in wrong.panels] == ["Image", "Truth", "Prediction", "Errors"]
    image = pixels(wrong.image)
    assert image.shape == (60, 80)  # in shades of grey
    assert image[22, 52] == 255 and image[0, 0] == 0
    assert wrong.panels[0].layer is None
    truth, prediction, errors = (pixels(panel.layer) for panel in wrong.panels[1:])
    factor = 7  # 80 columns become 560
    assert truth.shape == (60 * factor, 80 * factor, 4)
    # outlines are opaque, as at the corner of each square; what is inside lets half of the image through
    assert truth[20 * factor, 10 * factor].tolist() == rgb(COLOURS[0])
    assert truth[20 * factor, 50 * factor].tolist() == rgb(COLOURS[1])
    assert truth[30 * factor, 60 * factor].tolist() == [*rgb(COLOURS[1])[:3], 128]
    assert truth[2, 2, 3] == 0
    assert prediction[0, 0].tolist() == rgb(COLOURS[1])
    extra, missed, other = (rgb(colour) for colour in ERRORS.values())
    assert errors[0, 0].tolist() == extra
    assert errors[20 * factor, 10 * factor].tolist() == missed
    assert errors[36 * factor, 66 * factor].tolist() == other
    assert not pixels(right.panels[3].layer).any()


def test_the_slice_with_the_most_errors_is_shown_across_the_coarsest_axis(tmp_path):
    folders = {name: tmp_path / name for name in ("predictions", "truth", "images")}
    truth = np.zeros((20, 5, 30), np.uint8)
    truth[2:8, 1, 4:9] = truth[2:18, 2, 4:20] = 1
    prediction = truth.copy()
    prediction[2:6, 3, 4:9], prediction[2, 2, 4] = 1, 0
    for name, array in zip(folders, (prediction, truth, truth * 100), strict=True):
        folders[name].mkdir()
        for case, content in (("wrong", array), ("right", truth if name == "predictions" else array)):
            image = sitk.GetImageFromArray(content)
            image.SetSpacing((0.5, 4.0, 1.0))
            sitk.WriteImage(image, str(folders[name] / f"{case}.nii.gz"))
    labels = {"background": 0, "grey": 1}
    metrics = evaluate_folders(folders["predictions"], folders["truth"], labels)
    wrong, right = make_pictures(metrics, **folders)
    assert np.array_equal(pixels(right.image) > 128, truth[:, 2] == 1)
    assert (wrong.slice_index, right.slice_index, wrong.slices) == (3, 2, 5)
    assert wrong.aspect == pytest.approx(30 * 0.5 / (20 * 1.0))
    assert "wrong, slice 4 of 5: 20 pixels predicted, not there" in wrong.panels[3].text
    assert len(make_pictures(metrics, **folders, most=1)) == 1


def test_colour_images_and_images_that_are_missing(tmp_path):
    metrics, folders = example(tmp_path)
    colour = np.zeros((60, 80, 3), np.uint8)
    colour[:30, :, 0] = 255
    Image.fromarray(colour).save(folders["images"] / "right_0000.png")
    shown = pixels(make_pictures(metrics, **folders)[1].image)
    assert shown[0, 0].tolist() == [255, 0, 0] and shown[-1, -1].tolist() == [0, 0, 0]
    (folders["images"] / "right_0000.png").unlink()
    with pytest.raises(DataError, match=r"images holds no image of right \(right_0000 or right\); add it"):
        make_pictures(metrics, **folders)


def test_large_slices_are_reduced_and_small_ones_not_too_long(tmp_path):
    cases = (
        ((1500, 3000), (512, 1024), (512, 1024)),
        ((400, 20), (400, 20), (800, 40)),
        ((90, 700), (90, 700), (90, 700)),
    )
    for shape, of_image, of_layers in cases:
        root = tmp_path / str(shape)
        folders = {name: root / name for name in ("predictions", "truth", "images")}
        for folder in folders.values():
            folder.mkdir(parents=True)
            Image.fromarray(np.eye(*shape, dtype=np.uint8)).save(folder / "x.png")
        metrics = evaluate_folders(folders["predictions"], folders["truth"], {"background": 0, "x": 1})
        (picture,) = make_pictures(metrics, **folders)
        assert pixels(picture.image).shape == of_image
        assert [pixels(panel.layer).shape[:2] for panel in picture.panels[1:]] == [of_layers] * 3


def test_every_class_has_a_colour_of_its_own():
    colours = colours_of([f"class {i}" for i in range(1, 21)])
    assert len(set(colours.values())) == 20
    assert colours["class 1"] == COLOURS[0]
