"""The model card: facts of the bundle, as the Hub reads them, and a part that belongs to people."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import dinounet
from datasets import write_png_dataset
from dinounet.backbones.registry import VARIANTS
from dinounet.bundle.card import BEGIN, END, make_card
from dinounet.bundle.verify import read_bundle
from dinounet.data.dataset import read_dataset
from dinounet.errors import DataError
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data
from dinounet.schema.bundle import BundleRecord
from dinounet.schema.labels import Labels
from dinounet.schema.plan import Plan
from dinounet.schema.recipe import Recipe
from networks import planned

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("card")
    data = write_png_dataset(root / "pictures")
    plan = Plan(plan_data(read_dataset(data), (64, 64)), planned(num_classes=3), Recipe(steps=3, augmentation="none"))
    write_json(root / "plan.json", plan)
    return dinounet.train(data, root / "run", plan=root / "plan.json", weights="random", device="cpu")


@pytest.fixture
def bundle(run: Path, tmp_path: Path) -> Path:
    return dinounet.export([run], tmp_path / "bundle")


@pytest.fixture
def record(bundle: Path) -> BundleRecord:
    return read_bundle(bundle)


def on(record: BundleRecord, name: str) -> BundleRecord:
    """As if its network stood on this backbone of the Hub's."""
    (one,) = record.networks
    network = replace(one.network, backbone=name)
    backbone = replace(one.backbone, name=name, weights="hub", licence=VARIANTS[name].licence)
    return replace(record, networks=(replace(one, network=network, backbone=backbone),))


def test_the_hub_reads_its_facts(record: BundleRecord) -> None:
    facts = ModelCard(make_card(on(record, "dinov3_vits16"))).data
    assert (facts.library_name, facts.pipeline_tag) == ("dinounet", "image-segmentation")
    assert {"dinounet", "medical-imaging", "dinov3"} <= set(facts.tags)
    assert (facts.license, facts.license_name) == ("other", "dinov3-license")
    assert facts.license_link == "https://ai.meta.com/resources/models-and-libraries/dinov3-license"
    facts = ModelCard(make_card(replace(on(record, "dinov3_vits16"), licence="cc-by-4.0"))).data
    assert (facts.license, facts.license_name) == ("cc-by-4.0", None)
    facts = ModelCard(make_card(on(record, "dinov2_vits14"))).data
    assert facts.license == "unknown"
    assert "dinov3" not in facts.tags


def test_it_tells_what_the_bundle_knows(run: Path, bundle: Path, record: BundleRecord) -> None:
    card = (bundle / "README.md").read_text()
    dice = json.loads((run / "validation" / "metrics.json").read_text())["mean_over_cases"]["disc"]
    low, high = dice["intervals"]["dice"]
    assert f"| disc | {dice['dice']:.3f} ({low:.3f} to {high:.3f}) |" in card
    for fact in (
        "| training cases | 4 |", "| validation cases | 2 |", "0 = background, 1 = disc, 2 = square",
        "base default, steps 3, ", record.networks[0].backbone.sha256, record.networks[0].training.data_sha256,
        "random numbers, generated again from the seed", 'dinounet.load("hf://user/name")', "not a medical device",
    ):  # fmt: skip
        assert fact in card
    assert "https://huggingface.co/timm/vit_small" in make_card(on(record, "dinov3_vits16"))
    assert 'dinounet.load("hf://me/mine")' in make_card(record, name="me/mine")


def test_what_was_not_measured_is_said(record: BundleRecord) -> None:
    (one,) = record.networks
    assert "It was not evaluated." in make_card(replace(record, networks=(replace(one, metrics=()),)))
    both = make_card(replace(record, networks=(one, one)))
    assert "The networks' joint predictions were not evaluated." in both
    assert "validation cases of network 1 alone" in both


def test_what_people_wrote_is_kept_and_the_rest_is_written_anew(run: Path, bundle: Path) -> None:
    card = bundle / "README.md"
    text = card.read_text()
    ours = "\nMade by Ada.\n\n## Cite\n\n`{{ data }}` & <b>us</b>, 5 % — ü\n"
    before, _, rest = text.partition(BEGIN)
    card.write_text(before.replace("disc", "disk") + BEGIN + ours + END + rest.partition(END)[2])
    dinounet.export([run], bundle, licence="mit")
    again = card.read_text()
    assert BEGIN + ours + END in again
    assert "disk" not in again
    assert ModelCard(again).data.license == "mit"
    dinounet.load(bundle)


@pytest.mark.parametrize("change", [("\n" + END, ""), (BEGIN, ""), (END, END + END), (BEGIN, END)])
def test_a_card_without_its_marks_is_not_overwritten(change: tuple[str, str], run: Path, bundle: Path) -> None:
    card = bundle / "README.md"
    card.write_text(card.read_text().replace(*change))
    before = card.read_bytes()
    with pytest.raises(DataError, match=r"has lost the two comments around its editable part .*put them back"):
        dinounet.export([run], bundle)
    assert card.read_bytes() == before


def test_fewer_networks_leave_no_file_of_the_former_ones(run: Path, bundle: Path) -> None:
    (bundle / "model.safetensors").rename(bundle / "model_1.safetensors")
    dinounet.export([run], bundle)
    assert sorted(path.name for path in bundle.iterdir()) == ["README.md", "model.json", "model.safetensors"]


def test_odd_names_neither_break_tables_nor_bring_marks_or_markup(record: BundleRecord) -> None:
    name = f"a|b\n---\n{END}{BEGIN}<script>x</script>"
    labels = Labels({"background": 0, name: 1, "square": 2})
    card = make_card(replace(record, data=replace(record.data, dataset=name, labels=labels), postprocessing=None))
    assert (card.count(BEGIN), card.count(END), card.count("<script>")) == (1, 1, 0)
    assert r"1 = a\|b --- " in card
    assert ModelCard(card).data.library_name == "dinounet"
