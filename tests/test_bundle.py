"""Bundles: what they hold, that they predict as the runs that they were made of, and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import dinounet
from datasets import write_png_dataset
from dinounet.backbones.frozen import build_network
from dinounet.bundle import verify as bundles
from dinounet.bundle.card import make_card
from dinounet.bundle.verify import read_bundle
from dinounet.cli.main import main
from dinounet.data.dataset import read_dataset
from dinounet.errors import ConfigError, DataError, UserError, WeightsError
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data
from dinounet.schema.base import json_schema
from dinounet.schema.bundle import BundleRecord
from dinounet.schema.network import plan_unet
from dinounet.schema.plan import Plan
from dinounet.schema.prediction import Postprocessing, Steps
from dinounet.schema.recipe import Recipe
from networks import planned
from schema import FILE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of patients, and two folds that were trained on them by the same plan and reviewed."""
    root = tmp_path_factory.mktemp("secret_folder")
    data = write_png_dataset(root / "pictures")
    for path in [*data.glob("*Tr/case_0*"), *data.glob("*Tr/case_1*")]:
        path.rename(path.with_name(path.name.replace("case_", "jane_doe_")))
    recipe = Recipe(steps=3, augmentation="none", seed=7)  # which the random backbone is of, too
    plan = Plan(plan_data(read_dataset(data), (64, 64)), planned(num_classes=3), recipe)
    write_json(root / "plan.json", plan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "sys.argv", ["/opt/secret_folder/dinounet", "train", str(data), f"--plan={root}/p", "--fold", "0"]
        )
        for fold in (0, 1):
            dinounet.train(
                data, root / "runs" / f"fold_{fold}", plan=root / "plan.json", weights="random", device="cpu", fold=fold
            )
    return root


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    return place / "runs" / "fold_0"


@pytest.fixture
def bundle(run: Path, tmp_path: Path) -> Path:
    return dinounet.export([run], tmp_path / "bundle")


@pytest.fixture
def image(place: Path) -> Path:
    return place / "pictures" / "imagesTs" / "case_6_0000.png"


def predict_proba(model: object, image: Path) -> np.ndarray:
    return dinounet.load(model, device="cpu").predict_proba(image)


def test_a_bundle_predicts_as_its_run_bit_for_bit(run: Path, bundle: Path, image: Path, tmp_path: Path) -> None:
    np.testing.assert_array_equal(predict_proba(bundle, image), predict_proba(run, image))
    for model, folder in ((run, "of_run"), (bundle, "of_bundle")):
        assert main(["predict", str(model), str(image), "-o", str(tmp_path / folder)]) == 0
    of_run, of_bundle = (tmp_path / folder / "case_6.png" for folder in ("of_run", "of_bundle"))
    assert of_run.read_bytes() == of_bundle.read_bytes()
    told = [json.loads((tmp_path / folder / "prediction.json").read_text()) for folder in ("of_run", "of_bundle")]
    assert told[1]["models"] == [{**told[0]["models"][0], "run": str(bundle)}]
    assert told[1]["backbone"] == told[0]["backbone"]


def test_a_bundle_of_folds_predicts_as_they_do_together(place: Path, image: Path, tmp_path: Path) -> None:
    both = dinounet.export(place / "runs", tmp_path / "both")
    assert sorted(path.name for path in both.iterdir()) == [
        "README.md", "model.json", "model_0.safetensors", "model_1.safetensors",
    ]  # fmt: skip
    together = predict_proba(both, image)
    np.testing.assert_array_equal(together, predict_proba(place / "runs", image))
    assert not np.array_equal(together, predict_proba(place / "runs" / "fold_0", image))


def test_what_was_chosen_for_the_masks_goes_along(run: Path, image: Path, tmp_path: Path) -> None:
    chosen = tmp_path / "chosen"
    shutil.copytree(run, chosen, ignore=shutil.ignore_patterns("cache"))
    post = Postprocessing({"disc": Steps(keep_largest=True), "square": Steps(smallest=9)}, cases=("jane_doe_1",))
    write_json(chosen / "postprocessing.json", post)
    found = dinounet.load(dinounet.export([chosen], tmp_path / "bundle")).postprocessing
    assert found == replace(post, cases=())
    assert dinounet.load(tmp_path / "bundle", postprocessing="none").postprocessing is None


def test_a_unet_is_shared_too(place: Path, image: Path, tmp_path: Path) -> None:
    data = plan_data(read_dataset(place / "pictures"), (32, 32))
    network = plan_unet((32, 32), in_channels=1, num_classes=3)
    write_json(tmp_path / "plan.json", Plan(data, network, Recipe(steps=1, augmentation="none")))
    run = dinounet.train(place / "pictures", tmp_path / "run", plan=tmp_path / "plan.json", device="cpu", report=False)
    bundle = dinounet.export([run], tmp_path / "bundle")
    np.testing.assert_array_equal(predict_proba(bundle, image), predict_proba(run, image))


def test_a_bundle_names_no_patient_and_no_path(place: Path, run: Path, bundle: Path) -> None:
    assert "jane_doe" in (run / "run.json").read_text()
    for text in ((bundle / "model.json").read_text(), (bundle / "README.md").read_text()):
        assert not [secret for secret in ("jane", "case_", "secret_folder", str(place)) if secret in text]
    record = read_bundle(bundle)
    made = record.networks[0].training
    assert made.command == ("dinounet", "train", "PATH", "--plan=PATH", "--fold", "0")
    assert (made.training_cases, made.validation_cases) == (4, 2)
    assert made.data_sha256 == json.loads((run / "run.json").read_text())["data"]["sha256"]


def test_the_weights_are_what_is_trained_and_nothing_else(run: Path, bundle: Path) -> None:
    trained = dinounet.load(run).networks[0]
    held = load_file(bundle / "model.safetensors")
    assert held.keys() == trained.state_dict().keys()
    assert not [name for name in held if "backbone" in name]


def test_the_published_size_has_less_than_26_mb(tmp_path: Path) -> None:
    save_file(build_network(dinounet.network_config()).state_dict(), tmp_path / "s.safetensors")
    assert (tmp_path / "s.safetensors").stat().st_size < 26e6


def test_metrics_are_those_of_the_review(run: Path, bundle: Path) -> None:
    reviewed = json.loads((run / "validation" / "metrics.json").read_text())
    (found,) = read_bundle(bundle).networks[0].metrics
    assert (found.part, found.cases) == ("validation", 2)
    expected = reviewed["mean_over_cases"]["disc"]
    disc = found.classes["disc"]["hd95"]
    assert [disc.mean, disc.low, disc.high] == [expected["hd95"], *expected["intervals"]["hd95"]]


def test_the_schema_is_that_of_the_dataclasses_and_bundles_fulfil_it(bundle: Path) -> None:
    schema = json.loads(FILE.read_text())
    assert schema == json_schema(BundleRecord), "run python tests/schema.py; see CONTRIBUTING.md about the format"
    content = json.loads((bundle / "model.json").read_text())
    jsonschema.validate(content, schema)
    content["networks"][0]["surprise"] = 1
    with pytest.raises(jsonschema.ValidationError, match="surprise"):
        jsonschema.validate(content, schema)


def test_a_bundle_of_a_newer_or_unknown_format_is_refused(bundle: Path) -> None:
    rewrite(bundle, lambda content: {"plan": content.pop("data"), **content, "format": 0})
    with pytest.raises(ConfigError, match=r"model\.json has the format 0, which this dinounet can't read"):
        dinounet.load(bundle)
    newer = BundleRecord.format + 1
    rewrite(bundle, lambda content: {**content, "format": newer, "brand_new": True})
    message = f"has the format {newer}, of a newer dinounet than this one, which reads {BundleRecord.format}; upgrade"
    with pytest.raises(ConfigError, match=message):
        dinounet.load(bundle)


def test_a_recipe_of_another_version_is_nothing_that_prediction_reads(bundle: Path, image: Path) -> None:
    now = predict_proba(bundle, image)
    put({"brand_new": "trick", "steps": None}, "networks", 0, "training", "recipe")(bundle)
    np.testing.assert_array_equal(predict_proba(bundle, image), now)
    assert "brand\\_new trick" in make_card(read_bundle(bundle))


def test_every_format_before_todays_has_its_upgrade() -> None:
    assert sorted(BundleRecord.MIGRATIONS) == list(range(1, BundleRecord.format))


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = bundle / "model.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def put(value: object, *keys: str | int) -> Callable[[Path], None]:
    """Changes one value of the record."""

    def change(bundle: Path) -> None:
        content = json.loads((bundle / "model.json").read_text())
        inner: Any = content
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        (bundle / "model.json").write_text(json.dumps(content))

    return change


def write(text: str) -> Callable[[Path], None]:
    return lambda bundle: (bundle / "model.json").write_text(text) and None


def other_tensors(bundle: Path) -> None:
    held = load_file(bundle / "model.safetensors")
    save_file({**held, "fapm.shared.bias": held["fapm.shared.bias"][:1].clone()}, bundle / "model.safetensors")
    put(bundles.hash_file(bundle / "model.safetensors"), "networks", 0, "sha256")(bundle)


def twice(bundle: Path) -> None:
    text = (bundle / "model.json").read_text()
    (bundle / "model.json").write_text(text.replace('"networks":', '"licence": "a", "networks":', 1))


NETWORK = ("networks", 0, "network")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: flip(b / "model.safetensors"), r"is damaged or was changed: its sha256 is \w{12}, not \w{12} as"),
        (lambda b: (b / "model.safetensors").write_bytes(b""), "is damaged or was changed: its sha256 is e3b0c44298fc"),
        (lambda b: (b / "model.safetensors").unlink(), r"lacks model\.safetensors; get the bundle again"),
        (other_tensors, r"not hold the network that model\.json describes: 1 tensors differ, as fapm\.shared\.bias"),
        (lambda b: (b / "model.json").unlink(), r"is not a run: it holds no run\.json, and no model\.json as a bundle"),
        (write(""), r"is not JSON .*it should be the record of a bundle"),
        (write("[1, 2]"), r"model\.json holds \[1, 2\]; it must be an object"),
        (write("[" * 100_000), r"is not JSON .*it should be the record of a bundle"),
        (write('{"format": 1, "data": ' + "[" * 400 + "]" * 400 + "}"), "but not its keys|nests"),
        (write(" " * (1 << 24) + "{}"), "has more than 16,777,216 bytes, too many for the record of a bundle"),
        (twice, "duplicate key 'licence'"),
        (put({}, "surprise"), "unknown key 'surprise'"),
        (put("../../weights.safetensors", "networks", 0, "file"), r"unknown key 'networks\[0\]\.file'; did you mean"),
        (put(["nine"], "format"), r"has the format \['nine'\], which this dinounet can't read"),
        (put("1", "format"), "has the format '1', which this dinounet can't read"),
        (put([], "networks"), "networks is empty; name one at least"),
        (put(10**9, *NETWORK, "rank"), r"networks\[0\]\.rank is 1000000000; at most 8192 is read"),
        (put(10**400, *NETWORK, "backbone_scale"), "is not JSON .a number has 401 digits"),
        (write('{"format": ' + "1" * 5000 + "}"), "is not JSON .a number has 5000 digits"),
        (put(float("inf"), *NETWORK, "drop_path"), r"0\]\.network\.drop_path is inf; it must be a finite number"),
        (put([10**9, 64], "data", "patch"), r"\.patch is 1000000000; at most 8192 is read"),
        (put({"depth": 8000}, *NETWORK, "backbone_args"), r"backbone_args\.depth is 8000; at most 256 is read"),
        (put({"checkpoint_path": "/tmp/evil.pth"}, *NETWORK, "backbone_args"), "has checkpoint_path; leave it"),
        (put("os.system", *NETWORK, "architecture"), "architecture is 'os.system'; it must be 'dinounet' or 'unet'"),
        (put("hf-hub:evil/model", *NETWORK, "backbone"), "names two backbones, dinov3_vits16 and hf-hub:evil/model"),
        (put("timm:hf-hub:evil/model", *NETWORK, "backbone"), "backbones, dinov3_vits16 and timm:hf-hub:evil/model"),
        (put("/etc/passwd", "networks", 0, "backbone", "weights"), "weights is '/etc/passwd'; it must be hub"),
        (put("0" * 64, "networks", 0, "backbone", "sha256"), "are not those that .* was trained on"),
        (put(None, "networks", 0, "backbone"), "has a backbone that does not go with its architecture"),
        (put(7, *NETWORK, "num_classes"), "network.num_classes is 7 but data names 3 labels"),
    ],
)  # fmt: skip
def test_a_damaged_or_hostile_bundle_is_one_sentence(
    change: Callable[[Path], None],
    message: str,
    bundle: Path,
    image: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(bundle)
    with pytest.raises(UserError, match=message):
        dinounet.load(bundle)
    assert main(["predict", str(bundle), str(image), "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_network_that_the_machine_has_no_memory_for_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("", (), {"total": 1e6}))
    with pytest.raises(WeightsError, match=r"takes 0\.0 GB, more than this machine's memory of 0\.0 GB; use a larger"):
        dinounet.load(bundle)


def test_a_link_to_weights_elsewhere_is_nothing_but_a_file_to_be_hashed(bundle: Path, tmp_path: Path) -> None:
    weights = bundle / "model.safetensors"
    weights.rename(tmp_path / "moved")
    weights.symlink_to(tmp_path / "moved")  # as the Hub's cache has them
    dinounet.load(bundle)
    weights.unlink()
    weights.symlink_to("/etc/hostname")
    with pytest.raises(WeightsError, match="is damaged or was changed"):
        dinounet.load(bundle)
    weights.unlink()
    weights.symlink_to("/dev/zero")  # which has no end
    with pytest.raises(WeightsError, match=r"lacks model\.safetensors"):
        dinounet.load(bundle)


def test_what_can_not_be_exported_is_told(run: Path, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a bundle already; export the run that it was made of"):
        dinounet.export([bundle], tmp_path / "b")
    with pytest.raises(DataError, match="nowhere does not exist; give the folder"):
        dinounet.export([tmp_path / "nowhere"], tmp_path / "b")
    with pytest.raises(DataError, match="there is a duplicate run"):
        dinounet.export([run, run], tmp_path / "b")
    with pytest.raises(UserError, match="exists already; give the bundle another name"):
        dinounet.export([run], run.parent)
    with pytest.raises(UserError, match=r"lies in the run .*; give the bundle a place outside of it with -o"):
        dinounet.export(run.parent, run.parent / "bundle")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    (unfinished / "model.safetensors").unlink()
    with pytest.raises(DataError, match="its training is not finished; go on with it by --resume"):
        dinounet.export([unfinished], tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_info_tells_what_is_known_of_a_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(bundle)]) == 0
    told = capsys.readouterr().out
    assert all(text in told for text in ("pictures", "disc = 1", "dinov3_vits16", "4 for training, 2 for validation"))
    assert main(["info", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == BundleRecord.format
