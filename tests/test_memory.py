"""What a trial step tells, and what patch, batch and micro-batch follow from it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dinounet
from datasets import write_png_dataset
from dinounet.backbones.frozen import build_network
from dinounet.backbones.registry import network_config
from dinounet.data.dataset import read_dataset
from dinounet.errors import UserError
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data
from dinounet.planning.planner import make_plan
from dinounet.schema.network import plan_unet
from dinounet.schema.plan import Plan, StepMemory, read_plan
from dinounet.schema.recipe import Recipe
from dinounet.schema.run import read_run
from dinounet.training import memory
from dinounet.training.memory import fit_to_memory, measure_step, watch_memory
from networks import planned

GB = 10**9


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    data = plan_data(read_dataset(write_png_dataset(tmp_path / "pictures")), (512, 384))
    return make_plan(data, Recipe(), network_config())


@pytest.mark.slow
def test_a_block_of_known_size_is_seen_also_where_as_much_was_freed_before() -> None:
    small = [torch.ones(2**18) for _ in range(400)]
    del small
    with watch_memory("cpu") as grown:
        kept = [torch.ones(2**18) for _ in range(400)]
    assert grown[0] == pytest.approx(400 * 2**20, rel=0.1)
    assert len(kept) == 400
    with watch_memory("cpu") as grown:
        block = torch.ones(400 * 2**20 // 4)
        block.add_(1)
    assert grown[0] == pytest.approx(400 * 2**20, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_trial_leaves_no_trace(precision: str, plan: Plan) -> None:
    plan = replace(plan, network=planned(num_classes=3), data=replace(plan.data, patch=(64, 64)))
    network = build_network(plan.network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    found = measure_step(network, plan, "cpu", precision)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in network.parameters())
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert found.fixed == 4 * 3 * trained  # the gradient and AdamW's two moments, float32


def test_what_fits_is_a_share_of_what_is_free() -> None:
    found = StepMemory("cuda", free=10 * GB, fixed=GB, a_pixel=1e4)
    assert found.patches((512, 512)) == int((8e9 - 1e9) / (1e4 * 512 * 512)) == 2
    assert found.needed((512, 512)) == pytest.approx((1e9 + 1e4 * 512 * 512) / 0.8)


def test_a_gpus_batch_is_what_fits_up_to_nnunets_and_a_cpus_the_recipes(plan: Plan) -> None:
    roomy = StepMemory("cuda", free=80 * GB, fixed=0, a_pixel=1e4)
    shape = (20, 512, 384)
    many = replace(plan.data, fingerprint=replace(plan.data.fingerprint, cases=100, median_shape=shape))
    plan = replace(plan, data=many)

    def batch(found: StepMemory, **given: bool) -> int:
        return fit_to_memory(
            plan, found, **{"patch_is_given": False, "batch_is_given": False, **given}
        ).recipe.batch_size

    assert batch(roomy) == 13
    assert batch(replace(roomy, free=25 * GB)) == int(20e9 / (1e4 * 512 * 384)) == 10
    assert batch(roomy, batch_is_given=True) == 2
    assert batch(replace(roomy, device="cpu")) == 2
    few = replace(plan, data=replace(many, fingerprint=replace(many.fingerprint, cases=3)))
    assert (
        fit_to_memory(few, roomy, patch_is_given=False, batch_is_given=False).recipe.batch_size == 4
    )  # 5 % of the pixels


def test_patches_shrink_until_one_fits_and_given_ones_are_refused(plan: Plan) -> None:
    short = StepMemory("cpu", free=GB, fixed=0, a_pixel=1e4)  # 80,000 pixels
    fitted = fit_to_memory(plan, short, patch_is_given=False, batch_is_given=False)
    assert fitted.data.patch == (256, 256)
    assert fitted.memory == short
    unet = replace(plan, network=plan_unet(plan.data.patch, in_channels=1, num_classes=3))
    fitted = fit_to_memory(unet, short, patch_is_given=False, batch_is_given=False)
    assert fitted.network == plan_unet((256, 256), in_channels=1, num_classes=3)
    message = r"one patch of 512 x 384 needs 2\.5 GB and 1 GB are free on cpu; choose a smaller --patch"
    with pytest.raises(UserError, match=message):
        fit_to_memory(plan, short, patch_is_given=True, batch_is_given=False)
    with pytest.raises(UserError, match=r"one patch of 64 x 64 needs .* choose a smaller --patch or backbone"):
        fit_to_memory(plan, replace(short, free=1000), patch_is_given=False, batch_is_given=False)


@pytest.mark.slow
def test_where_memory_is_short_patches_go_through_the_network_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_png_dataset(tmp_path / "pictures")
    recipe = Recipe(steps=1, batch_size=4, augmentation="none")
    write_json(tmp_path / "plan.json", Plan(plan_data(read_dataset(data), (64, 64)), planned(num_classes=3), recipe))
    options = {"plan": tmp_path / "plan.json", "weights": "random", "device": "cpu", "report": False}

    def short(*_: object) -> StepMemory:
        return StepMemory("cpu", free=64 * 64 * 4000, fixed=0, a_pixel=1000)

    monkeypatch.setattr("dinounet.training.memory.measure_step", short)
    run = dinounet.train(data, tmp_path / "run", **options)
    assert read_run(run).micro_batch_size == 3
    assert "3 of 4 patches go through the network at a time" in capsys.readouterr().out
    assert read_run(dinounet.train(data, tmp_path / "asked", micro_batch_size=2, **options)).micro_batch_size == 2


@pytest.mark.slow
def test_plan_writes_what_was_measured(tmp_path: Path) -> None:
    data = write_png_dataset(tmp_path / "pictures")
    dinounet.plan(data, output=tmp_path / "plan.json", patch=(64, 64), device="cpu")
    found = read_plan(tmp_path / "plan.json").memory
    assert found is not None
    assert found.device == "cpu"
    assert 100 < found.a_pixel < 100_000
    assert memory.TRIAL_SIDE == 256
