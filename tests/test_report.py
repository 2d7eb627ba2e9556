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

from dinounet.cli.main import main
from dinounet.data.images import COLOURS, colours_of
from dinounet.errors import DataError
from dinounet.evaluation.evaluate import evaluate_folders
from dinounet.evaluation.means import summarise
from dinounet.reporting.case_images import ERRORS, make_pictures
from dinounet.reporting.charts import MOST_DOTS, make_distributions
from dinounet.reporting.report import MOST_LISTED, MOST_OPEN, find_failures, write_report
from dinounet.schema.labels import Labels
from dinounet.schema.metrics import Bin, Calibration, CaseMetrics, ClassMetrics, Metrics, write_metrics

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


def scored(*cases: tuple[float, float, str | None], calibration: Calibration | None = None) -> Metrics:
    """Metrics of cases c0, c1, ... in mm whose one class has this Dice, HD95, and is empty there."""
    found = [
        CaseMetrics(f"c{index}", "mm", "ml", {"lesion": ClassMetrics(dice, 0.5, 0.5, 0.5, 0.5, hd95, 1.0, -2.0, empty)})
        for index, (dice, hd95, empty) in enumerate(cases)
    ]
    return summarise(found, Labels({"background": 0, "lesion": 1}, None, None, None), 1.0, calibration)


def written(path: Path, metrics: Metrics) -> str:
    write_report(path / "report.html", title="Numbers", metrics=metrics)
    return (path / "report.html").read_text(encoding="utf-8")


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
        "<i>white</i>", "mean HD95", "px", "training cases: 2", "weights: random", "6\u202f194\u202f948",
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


def test_distributions_place_every_case_and_tell_quartiles():
    metrics = scored((0.5, 10, None), (0.6, 8, None), (0.7, 6, None), (0.8, 4, None), (0.9, 2, None))
    dice, hd95 = make_distributions(metrics)
    assert (dice.title, hd95.title) == ("Dice", "HD95 (mm)")
    (strip,) = dice.strips
    assert [dot.x for dot in strip.dots] == pytest.approx([50, 60, 70, 80, 90])  # worst first
    assert strip.dots[0].text == "c0: 0.500"
    assert strip.box == pytest.approx((60, 70, 80))
    assert strip.words == "median 0.700, middle half 0.600 to 0.800, worst 0.500 in c0, best 0.900 in c4"
    assert [text for _, text in hd95.ticks] == ["0", "2", "4", "6", "8", "10"]
    assert [dot.x for dot in hd95.strips[0].dots] == pytest.approx([100, 80, 60, 40, 20])
    assert hd95.strips[0].words.endswith("worst 10.00 mm in c0, best 2.00 mm in c4")
    assert not hd95.band


def test_distances_that_the_policy_sets_do_not_squeeze_the_others():
    dice, hd95 = make_distributions(scored((0.5, 9, None), (0, 900, "prediction"), (0, 900, "truth"), (1, 0, "both")))
    assert float(hd95.ticks[-1][1]) == 10 and hd95.band
    dots = {dot.text: dot for dot in hd95.strips[0].dots}
    beyond = [dots["c1: 900.00 mm, missed"], dots["c2: 900.00 mm, not in the truth"]]
    assert all(dot.empty and hd95.ticks[-1][0] < dot.x < 100 for dot in beyond)
    assert not dots["c0: 9.00 mm"].empty and dots["c0: 9.00 mm"].x == pytest.approx(0.9 * hd95.ticks[-1][0])
    assert dots["c3: 0.00 mm, empty in both"].x == 0
    assert dice.strips[0].box is None  # of four cases
    assert [dot.x for dot in dice.strips[0].dots] == pytest.approx([0, 0, 50, 100])


def test_dots_of_one_value_lie_side_by_side_and_of_many_cases_the_worst_are_shown(tmp_path):
    (strip, *_) = make_distributions(scored(*[(0.5, 1, None)] * 5))[0].strips
    assert len({dot.y for dot in strip.dots}) == 5
    assert strip.words == "median 0.500, middle half 0.500 to 0.500, all 0.500"
    many = scored(*[(index / 300, 1, None) for index in range(300)])
    (strip,) = make_distributions(many)[0].strips
    assert len(strip.dots) == MOST_DOTS and strip.dots[-1].text == f"c{MOST_DOTS - 1}: {(MOST_DOTS - 1) / 300:.3f}"
    assert "best 0.997 in c299" in strip.words
    assert f"one of the {MOST_DOTS} worst cases" in written(tmp_path, many)


def test_failures_are_listed_by_kind_and_lead_to_what_is_shown_of_the_case(tmp_path):
    metrics = scored((0.49, 1, None), (0.5, 1, None), (0, 9, "prediction"), (0, 9, "truth"), (1, 0, "both"))
    found = find_failures(metrics)
    assert {kind: [one.case for one in failures] for kind, failures in found.items()} == {
        "Missed entirely": ["c2"], "Found where there is nothing": ["c3"], "Found, with a Dice under 0.5": ["c0"],
    }  # fmt: skip
    page = written(tmp_path, metrics)
    row = re.search(r'<li><a href="#(row-\d+)">c0</a>: .*lesion, Dice 0.490</li>', page)
    assert re.search(rf'<tbody id="{row[1]}">\s*<tr>\s*<th [^>]*>c0</th>', page)

    metrics, folders = example(tmp_path)
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(folders["predictions"] / "right.png")
    metrics = evaluate_folders(folders["predictions"], folders["truth"], LABELS)
    write_report(tmp_path / "r.html", title="x", metrics=metrics, pictures=make_pictures(metrics, **folders, most=1))
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count('<li><a href="#case-1">right</a>') == 2
    assert "Missed entirely: 2" in page
    assert page.count("<p>None.</p>") == 2


def test_long_lists_are_folded_away_and_whole(tmp_path):
    few, many = scored(*[(0.1, 1, None)] * MOST_LISTED), scored(*[(0.1, 1, None)] * (MOST_OPEN + 1))
    assert "<details>" not in written(tmp_path, few)
    page = written(tmp_path, many)
    assert f"<summary>{MOST_OPEN + 1 - MOST_LISTED} more</summary>" in page
    assert f"<summary>All {MOST_OPEN + 1} cases</summary>" in page
    assert page.count("<li><a") == page.count("<tbody id=") == MOST_OPEN + 1


def test_means_stand_with_their_intervals_and_units(tmp_path):
    metrics = scored((0.5, 10, None), (0.7, 20, None), (0.9, 60, None))
    page = written(tmp_path, metrics)
    low, high = metrics.mean_over_cases["lesion"].intervals["hd95"]
    assert f">30.00<small>{low:.2f} to {high:.2f}</small>" in page
    for title in ("Dice", "IoU", "NSD", "Precision", "Recall", "HD95 (mm)", "ASSD (mm)", "Δ volume (ml)"):
        assert page.count(f'<th scope="col" class="number">{title}</th>') == 2  # of classes and of cases
    for words in (metrics.bootstrap, metrics.policy, "within 1 mm of the other"):
        assert words in Page(page).text
    assert "One case gives no intervals." in written(tmp_path, scored((0.5, 10, None)))


def test_calibration_is_drawn_or_how_to_get_it_is_said(tmp_path):
    assert "Predict with <code>--probabilities</code> and evaluate again." in written(tmp_path, scored((0.5, 1, None)))
    bins = (Bin(0, 0.5, 0, None, None), Bin(0.5, 1, 1000, 0.9, 0.8))
    page = written(tmp_path, scored((0.5, 1, None), calibration=Calibration(bins, 0.1, 1000)))
    assert "Share of decisions that is right, by confidence: 0.80 at 0.90" in Page(page).labels
    assert "Expected calibration error: <strong>0.100</strong>" in page
    assert '<th scope="row">0.50 to 1.00</th>' in page and "0.00 to 0.50</th>" not in page
    assert "--probabilities" not in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pictures", "-1"], "pictures is -1; give 0 or more cases to picture"),
        (["--images", "nowhere"], "nowhere is not a folder; give the one with the images of the cases"),
        (
            ["--images", "empty"],
            "empty holds no image of <b>wrong<_b>; right (<b>wrong<_b>_0000 or <b>wrong<_b>, and so on); add them",
        ),
        (["--metrics", "nothing.json"], "nothing.json does not exist; it should be what `dinounet evaluate` wrote"),
        (["--metrics", "broken.json"], "broken.json is not JSON"),
        (["--metrics", "nan.json"], "nan.json: cases[1].classes.grey.dice is nan; it must be a finite number"),
        (["--metrics", "old.json"], "old.json has the format 1, which this dinounet can't read; create it again"),
        (["--output", "empty"], "empty is a folder; name a file with -o"),
        (["--output", "old.json/page.html"], "old.json is not a writable directory; choose another with -o"),
        (["--run", "empty"], "empty is not a run: it holds no run.json"),
    ],
)
def test_wrong_input_is_told_in_a_sentence_and_leaves_nothing(tmp_path, monkeypatch, capsys, words, message):
    metrics, folders = example(tmp_path)
    write_metrics(folders["predictions"] / "metrics.json", metrics)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text('{"format": 2')
    (tmp_path / "nan.json").write_text(
        (folders["predictions"] / "metrics.json").read_text().replace('"dice": 1.0', '"dice": NaN')
    )
    (tmp_path / "old.json").write_text('{"format": 1, "cases": []}')
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    given = {"--images": "images", "--output": "page.html", **dict([words])}
    assert main(["report", "predictions", "truth", *(word for pair in given.items() for word in pair)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_pictures_as_many_cases_as_it_is_told(tmp_path, monkeypatch):
    metrics, folders = example(tmp_path)
    write_metrics(folders["predictions"] / "metrics.json", metrics)
    monkeypatch.chdir(tmp_path)
    for most, expected in ((0, 0), (1, 1), (5, 2)):
        words = ["--images", "images", "-o", "page.html", "--pictures", str(most)]
        assert main(["report", "predictions", "truth", *words]) == 0
        assert (tmp_path / "page.html").read_text().count("<article") == expected
