"""Wrong datasets: each is answered by one sentence that names the file and the remedy, and nothing is left behind."""

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

import wrong_descriptions  # noqa: F401 -- enters its datasets into the corpus
from dinounet.backbones.registry import network_config
from dinounet.cli.main import main
from dinounet.data.dataset import read_dataset
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data
from dinounet.planning.planner import make_plan
from dinounet.schema.plan import Plan, StepMemory
from dinounet.schema.recipe import Recipe
from dinounet.schema.run import read_run
from dinounet.training import session  # noqa: F401 -- so that torch leaves its temporary folder before we look
from networks import planned
from odd_datasets import ODD
from wrong_datasets import CORPUS, Wrong, cut, nnunet, pairs, volumes
from wrong_pixels import series


def content_of(folder: Path) -> dict[str, str]:
    """What lies in a folder and below: names, and hashes of files or targets of links."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with room for temporary files, in which the command runs."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(wrong: Wrong, root: Path) -> Path:
    """Make a wrong dataset; returns what the command is to be given."""
    root.mkdir()
    wrong.base(root)
    wrong.spoil(root)
    return root / wrong.data if wrong.data else root


@pytest.mark.slow
@pytest.mark.parametrize("name", CORPUS)
def test_a_wrong_dataset_is_answered(
    name: str, place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinounet.planning.planner.make_plan", lambda *_: pytest.fail("a wrong dataset was accepted"))
    wrong = CORPUS[name]
    data = write(wrong, place / "wrong")
    before = content_of(place)
    code = main(["plan", str(data), "-o", "plan.json", *wrong.flags])
    told = capfd.readouterr().err
    assert code == 2, told
    # beside ours there may be a C library's own line, which the program alone may keep away: see the next test
    told, *more = [line for line in told.splitlines() if line.startswith("dinounet: ")]
    assert not more
    for word in wrong.words:
        assert word in told
    assert content_of(place) == before, "something was left behind"


@pytest.mark.parametrize("name", ["a_truncated_mha", "a_spacing_of_zero"])
@pytest.mark.slow
def test_the_program_answers_so_too(name: str, tmp_path: Path) -> None:
    data = write(CORPUS[name], tmp_path / "wrong")
    words = [sys.executable, "-m", "dinounet", "train", str(data), "-o", "run", "--weights", "random"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("dinounet: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["wrong"]


def with_table(root: Path) -> None:
    pairs(root)
    (root / "table.csv").write_text("image,mask\nimages/a.png,masks/a.png\n")


FORBIDDEN = [
    (
        pairs,
        ["images/b.png", "masks/c.png"],
        r"images/b\.png is not readable; change its .*masks/c\.png is not",
    ),
    (pairs, ["images"], r"images: Permission denied; check the path, its permissions and the space that is left"),
    (with_table, ["table.csv"], r"table\.csv can't be read \(Permission denied\); it should be a table"),
    (nnunet, ["dataset.json"], r"dataset\.json can't be read \(Permission denied\); it should be the description"),
    (volumes, ["labelsTr/b.nii.gz"], r"labelsTr/b\.nii\.gz is not readable; change its permissions"),
    (series, ["images/a/000"], r"images/a/000 is not readable; change its permissions"),
]
"""What may not be read, and how that is answered."""


@pytest.mark.slow
def test_what_may_not_be_read_is_answered(tmp_path: Path) -> None:
    powerless = []
    if os.getuid() == 0:  # who may read everything
        if not shutil.which("setpriv"):
            pytest.skip("the tests run as root, and there is no setpriv that takes its powers away")
        powerless = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    roots = []
    for index, (base, names, _) in enumerate(FORBIDDEN):
        root = tmp_path / str(index)
        root.mkdir()
        base(root)
        for name in names:
            (root / name).chmod(0)
        roots.append(str(root / "table.csv" if base is with_table else root))
    code = "import sys; from dinounet.cli.main import main; print([main(['plan', data]) for data in sys.argv[1:]])"
    words = [*powerless, sys.executable, "-c", code, *roots]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == str([2] * len(FORBIDDEN)), done.stderr
    for line, (_, _, message) in zip(done.stderr.splitlines(), FORBIDDEN, strict=True):
        assert re.match(f"dinounet: .*{message}", line)
    (tmp_path / "1" / "images").chmod(0o755)  # so that it can be removed


def wrong_output(root: Path, what: str) -> tuple[list[str], str]:
    """The words of a command whose output can't be made, beside a sound dataset; and what it must be answered with."""
    train, plan = ["train", "data", "--weights", "random"], ["plan", "data"]
    if what == "a run that exists":
        (root / "run").mkdir()
        (root / "run" / "notes.txt").touch()
        return [*train, "-o", "run"], "run exists already; give the run another name with -o, or remove it"
    if what == "a file of that name":
        (root / "run").touch()
        return [*train, "-o", "run"], "run exists already; give the run another name with -o, or remove it"
    if what == "a run below a file":
        (root / "run").touch()
        return [*train, "-o", "run/run"], "is not a writable directory; choose another with -o"
    if what == "a run in the dataset":
        return [*train, "-o", "data/run"], "data/run lies in the dataset data; give the run a place outside of it"
    if what == "a run among the images":
        return [*train, "-o", "data/images/../images/run"], "lies in the dataset data; give the run a place outside"
    if what == "a folder of the plan's name":
        (root / "plan.json").mkdir()
        return [*plan, "-o", "plan.json"], "plan.json is a folder; name a file with -o"
    if what == "a plan below a file":
        (root / "plan").touch()
        return [*plan, "-o", "plan/plan.json"], "is not a writable directory; choose another with -o"
    if what == "a plan that does not exist":
        return [*train, "-o", "run", "--plan", "p.json"], "p.json does not exist; it should be the plan of a run"
    if what == "a plan that is none":
        (root / "p.json").write_text('{"dta": 1}')
        return [*train, "-o", "run", "--plan", "p.json"], "p.json has the unknown key 'dta'; did you mean 'data'?"
    if what == "a fold that there is not":
        return [*train, "-o", "run", "--fold", "7"], "data has 3 folds, numbered from 0, and no fold 7; choose another"
    assert what == "a fold of one case"
    for path in (*(root / "data").rglob("b.png"), *(root / "data").rglob("c.png")):
        path.unlink()
    return [*train, "-o", "run", "--fold", "0"], "data has one case, or one group of cases, which can't be split; train"


@pytest.mark.parametrize(
    "what",
    [
        "a run that exists",
        "a file of that name",
        "a run below a file",
        "a run in the dataset",
        "a run among the images",
        "a folder of the plan's name",
        "a plan below a file",
        "a plan that does not exist",
        "a plan that is none",
        "a fold that there is not",
        "a fold of one case",
    ],
)
def test_an_output_or_choice_that_can_not_be_is_answered(
    what: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "data").mkdir()
    pairs(place / "data")
    words, message = wrong_output(place, what)
    before = content_of(place)
    code = main(words)
    told = capfd.readouterr().err
    assert code == 2, told
    assert told.startswith("dinounet: ")
    assert message in told
    assert told.count("\n") == 1
    assert content_of(place) == before


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_plan_that_the_disk_has_no_room_for_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "data").mkdir()
    pairs(place / "data")
    plan = tiny_plan(place / "data")
    monkeypatch.setattr("dinounet.planning.planner.plan_dataset", lambda *_, **__: plan)
    monkeypatch.setattr("dinounet.training.memory.fit_plan", lambda plan, *_, **__: (plan, None))
    monkeypatch.setattr("os.fsync", full_disk)
    before = content_of(place)
    assert main(["plan", "data", "-o", "plan.json"]) == 2
    assert "No space left on device; check the path, its permissions and the space" in capfd.readouterr().err
    assert content_of(place) == before


def tiny_plan(data: Path) -> Plan:
    """A plan for a network that is small enough for tests."""
    found = make_plan(plan_data(read_dataset(data)), Recipe(steps=1, batch_size=1, warmup=0), network_config())
    network = planned(in_channels=found.network.in_channels, num_classes=found.network.num_classes)
    memory = StepMemory(device="cpu", free=10**10, fixed=10**6, a_pixel=1000.0)
    return replace(found, network=network, memory=memory)


def write_tiny_plan(data: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Write a plan for a network that needs no trial; returns the words that train by it."""
    plan = tiny_plan(data)
    write_json(path, plan)
    monkeypatch.setattr("dinounet.training.memory.measure_step", lambda *_: plan.memory)
    return ["--plan", str(path), "--weights", "random", "--precision", "fp32", "--no-report"]


@pytest.mark.parametrize("fsyncs", [0, 1, 2, 4, 7])
def test_a_run_that_the_disk_has_no_room_for_leaves_nothing(
    fsyncs: int, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "data").mkdir()
    pairs(place / "data")
    words = write_tiny_plan(place / "data", place / "plan.json", monkeypatch)
    before, written = content_of(place), iter(range(fsyncs))  # two a file: run.json, the hashes, plan.json, the cache's
    monkeypatch.setattr("os.fsync", lambda _: full_disk() if next(written, None) is None else None)
    assert main(["train", "data", "-o", "run", *words]) == 2
    told = capfd.readouterr().err
    assert "No space left on device" in told
    assert ("the space that is left" if fsyncs < 6 else "make room, or choose another folder with --cache") in told
    assert told.count("\n") == 1
    assert content_of(place) == before


def test_what_is_wrong_with_a_dataset_that_is_already_planned_is_answered_so_too(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "data").mkdir()
    pairs(place / "data")
    words = write_tiny_plan(place / "data", place / "plan.json", monkeypatch)
    for name in ("images/a.png", "images/b.png", "masks/b.png"):
        cut(place / "data" / name)
    before = content_of(place)
    assert main(["train", "data", "-o", "run", *words]) == 2
    told = capfd.readouterr().err
    assert all(f"{name} can't be read" in told for name in ("images/a.png", "images/b.png", "masks/b.png"))
    assert told.count("\n") == 1
    assert content_of(place) == before


@pytest.mark.parametrize("name", ODD)
@pytest.mark.slow
def test_an_odd_dataset_is_trained_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "the data", tmp_path / "a run"
    data.mkdir()
    given = ODD[name](data) or data
    before = content_of(data)
    words = write_tiny_plan(given, tmp_path / "plan.json", monkeypatch)
    assert main(["train", str(given), "-o", str(run), *words]) == 0, capfd.readouterr().err
    assert read_run(run).status == "finished"
    assert content_of(data) == before
