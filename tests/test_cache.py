"""The cache: never stale, shared by processes that start and die as they like, and built slice by slice."""

import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import nibabel
import numpy as np
import psutil
import pytest
import SimpleITK as sitk
from PIL import Image

import dinounet
from datasets import describe, picture, volume, write_nifti_dataset, write_png_dataset
from dinounet.data import cache, processes
from dinounet.data.arrays import Reservoir
from dinounet.data.cache import NOT_OF_THE_PIXELS, PLACES_A_CLASS, build_cache
from dinounet.data.dataset import read_dataset
from dinounet.data.geometry import Geometry, Volume
from dinounet.data.lazy_volume import LazyVolume, open_image, open_truth
from dinounet.data.patches import cut_patch
from dinounet.data.preprocessing import measure_channels
from dinounet.errors import DataError, UserError
from dinounet.planning.data_plan import plan_data
from dinounet.schema.labels import Labels, Region
from dinounet.schema.plan import ChannelPlan, DataPlan, Fingerprint, Intensities, PlannedGroups


@pytest.fixture
def in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, however small the data."""
    monkeypatch.setattr(processes, "WORTH_PROCESSES", 0)
    monkeypatch.setattr(processes, "_cores", lambda: 2)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.glob("*/*"))}


def test_a_cache_is_used_again_and_never_when_it_is_stale(png: Path, tmp_path: Path) -> None:
    dataset = read_dataset(png)
    plan = plan_data(dataset)
    first = build_cache(dataset.cases, plan, tmp_path / "cache")
    folders = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    build_cache(dataset.cases, plan, tmp_path / "cache")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()} == folders

    np.testing.assert_array_equal(first[0].mask[0], np.asarray(Image.open(png / "labelsTr" / "case_0.png")))
    rows, columns = first[0].places[1][:, 1], first[0].places[1][:, 2]
    assert (first[0].mask[0][rows, columns] == 1).all()

    Image.fromarray(picture((72, 80), 50)[1]).save(png / "labelsTr" / "case_0.png")
    changed = build_cache(read_dataset(png).cases, plan, tmp_path / "cache")
    np.testing.assert_array_equal(changed[0].mask[0], picture((72, 80), 50)[1])


def test_each_decision_about_the_pixels_makes_another_cache_and_no_other_does(png: Path, tmp_path: Path) -> None:
    case = read_dataset(png).cases[0]
    plan = plan_data(read_dataset(png))
    others = {
        "channels": (ChannelPlan("MR", "zscore", Intensities(1.0, 2.0, 3.0, 4.0)),),
        "labels": replace(plan.labels, ignore=3),
        "slice_axis": 1,
        "spacing": (1.0, 2.0),
        "unknown_spacing": 1.0,
        "dataset": "other",
        "file_ending": ".bmp",
        "patch": (32, 32),
        "fingerprint": replace(plan.fingerprint, cases=9),
        "test_cases": ("case_9",),
        "readers": 7,
        "groups": PlannedGroups("folder"),
        "channel_projection": ((1.0,), (1.0,), (1.0,)),
    }
    for field in fields(DataPlan):
        changed = replace(plan, **{field.name: others[field.name]})
        is_same = cache._key(case, plan) == cache._key(case, changed)
        assert is_same == (field.name in NOT_OF_THE_PIXELS), field.name
    of_regions = replace(plan, labels=replace(plan.labels, regions=(Region("all", (1, 2), 1),)))
    assert cache._key(case, plan) == cache._key(case, of_regions)

    elsewhere = write_png_dataset(tmp_path / "elsewhere" / "pictures")
    for twin, original in ((p, png / p.relative_to(elsewhere)) for p in elsewhere.rglob("*.png")):
        os.utime(twin, ns=(original.stat().st_mtime_ns,) * 2)  # the same names, sizes and times
    assert cache._key(read_dataset(elsewhere).cases[0], plan) != cache._key(case, plan)


def test_a_folder_of_files_counts_by_its_files(png: Path, tmp_path: Path) -> None:
    plan = plan_data(read_dataset(png))
    series = tmp_path / "series"
    series.mkdir()
    (series / "1.dcm").write_bytes(bytes(128) + b"DICM")
    case = replace(read_dataset(png).cases[0], images=(series,))
    before = cache._key(case, plan)
    (series / "1.dcm").write_bytes(bytes(128) + b"DICMa")
    assert cache._key(case, plan) != before


def test_a_worker_gets_a_cached_cases_place_and_not_its_pixels(png: Path, tmp_path: Path) -> None:
    dataset = read_dataset(png)
    case = build_cache(dataset.cases, plan_data(dataset), tmp_path / "cache")[0]
    image = np.array(case.image)
    sent = pickle.dumps(case)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent).image, image)


def test_more_cases_than_a_process_may_have_open_files(png: Path, tmp_path: Path) -> None:
    dataset = read_dataset(png)
    case = build_cache(dataset.cases, plan_data(dataset), tmp_path / "cache")[0]
    for index in range(300):
        (tmp_path / str(index)).symlink_to(case.folder)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, before[1]))
    try:
        for index in range(300):
            one = replace(case, folder=tmp_path / str(index))
            assert one.image.shape[0] == one.mask.shape[0] == 1
            assert set(one.places) == {1, 2}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# processes


@pytest.mark.slow
def test_processes_make_the_same_cache(
    png: Path, tmp_path: Path, in_processes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = read_dataset(png)
    plan, done = plan_data(dataset), []
    many = build_cache(dataset.cases, plan, tmp_path / "many", lambda: done.append(1))
    assert [case.name for case in many] == [case.name for case in dataset.cases]
    assert len(done) == 6
    monkeypatch.setattr(processes, "_cores", lambda: 1)
    build_cache(dataset.cases, plan, tmp_path / "one")
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


@pytest.mark.slow
def test_what_is_wrong_comes_together_and_in_order_from_processes_too(
    png: Path, tmp_path: Path, in_processes: None
) -> None:
    dataset = read_dataset(png)
    plan = plan_data(dataset)
    (png / "imagesTr" / "case_4_0000.png").write_text("hello")
    Image.fromarray(np.full((72, 80), 9, np.uint8)).save(png / "labelsTr" / "case_1.png")
    with pytest.raises(DataError, match=r"case_1\.png holds 9, but the labels .*; .*case_4_0000\.png can't be read"):
        build_cache(dataset.cases, plan, tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("case_*"))) == 4
    assert not list((tmp_path / "cache").glob(".partial-*"))


SCRIPT = """
import sys
from pathlib import Path
from dinounet.data import cache
from dinounet.data import processes
from dinounet.data.dataset import read_dataset
from dinounet.schema.plan import DataPlan
from dinounet.schema.base import read_record

processes.WORTH_PROCESSES, processes._cores = 0, lambda: int(sys.argv[4])
prepare_cases = cache.prepare_cases
cache.prepare_cases = lambda cases, *others: print("prepares", len(cases), flush=True) or prepare_cases(cases, *others)
plan = read_record(DataPlan, Path(sys.argv[2]), what="a plan")
cache.build_cache(read_dataset(Path(sys.argv[1])).cases, plan, Path(sys.argv[3]), tell=print)
print("done")
"""


def start(data: Path, root: Path, tmp_path: Path, cores: int) -> "subprocess.Popen[str]":
    """Build a cache from a script that anybody might write, without a guard for multiprocessing."""
    from dinounet.io import write_json

    if not (tmp_path / "script.py").exists():
        (tmp_path / "script.py").write_text(SCRIPT)
        write_json(tmp_path / "data.json", plan_data(read_dataset(data)))
    words = [sys.executable, tmp_path / "script.py", data, tmp_path / "data.json", root, str(cores)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_that_start_together_share_one_cache_and_each_case_is_prepared_once(tmp_path: Path) -> None:
    data = write_nifti_dataset(tmp_path / "volumes", cases=8, slices=10)
    both = [start(data, tmp_path / "cache", tmp_path, cores=2) for _ in range(2)]
    told = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    prepared = sorted(int(line.split()[1]) for out, _ in told for line in out.splitlines() if "prepares" in line)
    assert prepared == [0, 8]
    assert [errors for _, errors in told] == ["", ""]
    assert len(list((tmp_path / "cache").glob("case_*"))) == 8


@pytest.fixture
def long_work(tmp_path: Path) -> Path:
    """Volumes that take long to resample."""
    data = write_nifti_dataset(tmp_path / "volumes", cases=4, slices=10, size=(192, 192))
    write_nifti_dataset(tmp_path / "fine", cases=8, slices=3, spacing=(0.2, 0.2, 3.0))
    for path in (tmp_path / "fine" / "imagesTr").iterdir():  # the more of them, whose spacing the others get
        path.rename(data / "imagesTr" / path.name.replace("case", "fine"))
    for path in (tmp_path / "fine" / "labelsTr").iterdir():
        path.rename(data / "labelsTr" / path.name.replace("case", "fine"))
    return data


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_who_is_stopped_or_killed_leaves_no_process_no_lock_and_nothing_half_done(
    how: signal.Signals, long_work: Path, tmp_path: Path
) -> None:
    root = tmp_path / "cache"
    process = start(long_work, root, tmp_path, cores=2)
    deadline = time.monotonic() + 60
    while not list(root.glob(".partial-*")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (-how, 1)
    assert "spawn_main" not in errors  # a worker's own traceback
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    if how == signal.SIGINT:
        assert [path.name for path in root.iterdir()] == [".lock"]  # no case is half done, nor was one finished yet
    again = start(long_work, root, tmp_path, cores=2)
    told, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert "waiting" not in told
    assert not list(root.glob(".partial-*"))
    assert len(list(root.glob("*-*/mask.npy"))) == 12


def test_what_a_killed_process_left_is_removed(png: Path, tmp_path: Path) -> None:
    dataset = read_dataset(png)
    (tmp_path / ".partial-abc").mkdir()
    build_cache(dataset.cases, plan_data(dataset), tmp_path)
    assert len(list(tmp_path.glob("case_*"))) == 6
    assert not list(tmp_path.glob(".partial-*"))


# the disk


def train_with_small_files(data: Path, run: Path, most: int, *words: str) -> "subprocess.CompletedProcess[str]":
    """Train where no file may be larger than so many bytes, which is how a full disk looks from inside."""
    return subprocess.run(
        [sys.executable, "-m", "dinounet", "train", data, "-o", run, "--weights", "random", *words],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("where", ["in the run", "elsewhere"])
def test_a_full_disk_is_one_sentence_and_nothing_is_left(where: str, tmp_path: Path) -> None:
    data, run, shared = write_png_dataset(tmp_path / "pictures"), tmp_path / "run", tmp_path / "shared"
    Image.fromarray(picture((40, 40), 0)[0]).save(data / "imagesTr" / "case_0_0000.png")  # one that has room enough
    Image.fromarray(picture((40, 40), 0)[1]).save(data / "labelsTr" / "case_0.png")
    words = ["--cache", str(shared)] if where == "elsewhere" else []
    done = train_with_small_files(data, run, 20_000, *words)
    assert done.returncode == 2, done.stderr
    root = shared if words else run / "cache"
    assert done.stderr == (
        f"dinounet: {root} can't hold the cache (File too large); make room, or choose another folder with --cache\n"
    )
    assert not run.exists()
    # of the slices nothing; the digest of the dataset's files is right whatever becomes of them
    assert not words or {path.name for path in shared.iterdir()} == {".lock", "digests.json"}


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_worker_is_full_for_all(png: Path, tmp_path: Path, in_processes: None) -> None:
    dataset = read_dataset(png)
    plan = plan_data(dataset)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cache can't hold the cache \(File too large\); make room"):
            build_cache(dataset.cases, plan, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_large_cache_is_told_of_and_one_that_is_too_large_is_not_begun(
    png: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = read_dataset(png)
    plan, told = plan_data(dataset), []
    size = 6 * 72 * 80 * (4 + 1)  # float32 and a byte
    monkeypatch.setattr(cache, "WORTH_TELLING", size)
    build_cache(dataset.cases, plan, tmp_path / "a", tell=told.append)
    assert not told
    monkeypatch.setattr(cache, "WORTH_TELLING", size - 1)
    build_cache(dataset.cases, plan, tmp_path / "b", tell=told.append)
    assert told == [f"the cache takes 0.0 GB in {tmp_path / 'b'}"]
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": size - 1}))
    with pytest.raises(UserError, match=r"the cache needs 0\.0 GB but .* has 0\.0 GB left; make room"):
        build_cache(dataset.cases, plan, tmp_path / "c")
    build_cache(dataset.cases, plan, tmp_path / "b")  # nothing is missing there


@pytest.mark.slow
def test_a_folder_that_cannot_be_is_answered_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, message in (("file", "is a file; name a folder with --cache"), ("file/x", "choose another with --cache")):
        with pytest.raises(UserError, match=message):
            dinounet.train(tmp_path / "nowhere", tmp_path / "run", cache=tmp_path / name)


@pytest.mark.parametrize("ending", [".nii.gz", ".png"])
def test_the_size_is_known_before(ending: str, tmp_path: Path) -> None:
    write = write_png_dataset if ending == ".png" else write_nifti_dataset
    dataset = read_dataset(write(tmp_path / "data"))
    plan = replace(plan_data(dataset), spacing=(0.5, 0.5))
    root = tmp_path / "cache"
    build_cache(dataset.cases, plan, root)
    arrays = sum(np.load(path).nbytes for path in root.glob("*/*.npy") if not path.name.startswith("places"))
    assert sum(cache.estimate(case, plan).on_disk for case in dataset.cases) == arrays


def test_a_window_costs_its_rows_of_reading(tmp_path: Path) -> None:
    counter = Path("/proc/self/io")
    if not counter.exists() or not hasattr(os, "posix_fadvise"):
        pytest.skip("only Linux counts what a process reads")
    data = write_nifti_dataset(tmp_path / "data", cases=1, slices=12, size=(512, 512))
    dataset = read_dataset(data)
    (case,) = build_cache(dataset.cases, plan_data(dataset), tmp_path / "cache")
    files = [case.folder / "image.npy", case.folder / "mask.npy"]

    def bytes_from_disk(work: Callable[[], object]) -> int:
        for path in files:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before, after = (
            int(dict(line.split(": ") for line in text.splitlines())["read_bytes"])
            for text in (counter.read_text(), work() and counter.read_text())
        )
        return after - before

    if bytes_from_disk(lambda: [path.read_bytes() for path in files]) < 12 * 2**20:
        pytest.skip("this file system doesn't count what is read, or keeps it all in memory")
    slice_bytes, few_pages = 512 * 512 * (4 + 1), 2**16
    read = bytes_from_disk(lambda: cut_patch(case, (5, 256, 256), (512, 512)))
    assert slice_bytes <= read <= slice_bytes + few_pages
    read = bytes_from_disk(lambda: cut_patch(case, (7, 256, 256), (128, 128)))
    assert slice_bytes / 4 <= read <= slice_bytes / 4 + few_pages


# slice by slice


@pytest.fixture(params=[".nii", ".nii.gz", ".mha"])
def scans(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Volumes of two channels of different types in a format that is read plane by plane."""
    random, root = np.random.RandomState(0), tmp_path / "scans"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for case in ("a", "b"):
        arrays = {
            f"imagesTr/{case}_0000": random.randint(-1000, 1000, (7, 40, 50)).astype(np.int16),
            f"imagesTr/{case}_0001": random.normal(7, 3, (7, 40, 50)).astype(np.float32),
            f"labelsTr/{case}": random.randint(0, 3, (7, 40, 50)).astype(np.uint8 if case == "a" else np.float64),
        }
        for name, array in arrays.items():
            sitk.WriteImage(volume(array, (0.7, 0.8 if case == "a" else 1.1, 3.0)), str(root / (name + request.param)))
    describe(root, request.param, ("MR", "CT"))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 2])
def test_a_volume_that_stays_in_its_file_gives_the_same_cache(
    axis: int, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = read_dataset(scans)
    plan = replace(plan_data(dataset), slice_axis=axis)
    build_cache(dataset.cases, plan, tmp_path / "whole")
    read = []
    monkeypatch.setattr(cache, "open_image", lambda paths, _, axis: read.append(open_image(paths, 0, axis)) or read[-1])
    monkeypatch.setattr(
        cache, "open_truth", lambda case, known, _, axis: read.append(open_truth(case, known, 0, axis)) or read[-1]
    )
    build_cache(dataset.cases, plan, tmp_path / "planes")
    assert [isinstance(volume.array, LazyVolume) for volume in read] == [axis == 0] * 4
    assert contents(tmp_path / "whole") == contents(tmp_path / "planes")


def test_a_scaled_nifti_has_the_values_that_nibabel_reads(tmp_path: Path) -> None:
    stored = np.random.RandomState(0).randint(0, 100, (8, 9, 5)).astype(np.int16)
    image = nibabel.Nifti1Image(stored, np.diag([-1, -1, 3, 1]))
    image.header.set_slope_inter(0.37, -11)
    nibabel.save(image, tmp_path / "a.nii.gz")
    found = open_image([tmp_path / "a.nii.gz"], 0)
    expected = nibabel.load(tmp_path / "a.nii.gz").get_fdata().T
    for z in (3, 0, 4):
        np.testing.assert_allclose(found.array[..., z, :, :][0], expected[z], rtol=1e-6)
    assert found.spacing == (3, 1, 1)


def test_what_itk_repairs_in_silence_is_refused_in_volumes_left_in_their_files_too(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(np.ones((8, 9, 5), np.int16), np.diag([-1, -1, 3, 1])), path)
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"a\.nii can't be read as an image \(it ends after \d+ of \d+ bytes\)"):
        open_image([path], 0)
    content[80:84] = bytes(4)  # pixdim[1], which is x
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.nii has the spacing \[0\.0, 1\.0, 3\.0\]; correct its header"):
        open_image([path], 0)


def test_what_can_only_be_read_whole_is(tmp_path: Path) -> None:
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    for name, compress in (("a.mha", True), ("a.nrrd", False)):
        sitk.WriteImage(volume(array), str(tmp_path / name), compress)
        np.testing.assert_array_equal(np.asarray(open_image([tmp_path / name], 0).array)[0], array)
    Image.fromarray(array[0].astype(np.uint8)).save(tmp_path / "a.bmp")
    np.testing.assert_array_equal(np.asarray(open_image([tmp_path / "a.bmp"], 0).array)[0, 0], array[0])
    colours = np.random.RandomState(0).randint(0, 256, (4, 5, 6, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / "rgb.mha"))
    found = open_image([tmp_path / "rgb.mha"], 0)
    np.testing.assert_array_equal(found.array[..., 2, :, :], np.moveaxis(colours[2], -1, 0))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nan", r"a\.nii\.gz holds NaN or infinity in plane 2; repair or exclude it"),
        ("cut", r"a\.nii\.gz can't be read as an image \(.*\); is it whole\?"),
        ("fraction", r"mask\.nii\.gz holds the value 0\.5; a mask must hold whole numbers, one per class"),
        ("grid", r"b\.nii\.gz and .*a\.nii\.gz differ in spacing"),
    ],
)
def test_what_is_wrong_in_a_volume_that_stays_in_its_file_is_answered(what: str, message: str, tmp_path: Path) -> None:
    array = np.random.RandomState(0).normal(size=(4, 60, 50)).astype(np.float32)
    if what == "nan":
        array[2, 5, 5] = np.nan
    paths = [tmp_path / "a.nii.gz"]
    sitk.WriteImage(volume(array), str(paths[0]))
    if what == "cut":
        paths[0].write_bytes(paths[0].read_bytes()[:20_000])
    if what == "grid":
        paths.append(tmp_path / "b.nii.gz")
        sitk.WriteImage(volume(array, (1, 1, 1)), str(paths[1]))
    mask = np.full(array.shape, 0.5 if what == "fraction" else 1, np.float32)
    sitk.WriteImage(volume(mask), str(tmp_path / "mask.nii.gz"))
    case = replace(read_dataset(write_png_dataset(tmp_path / "any")).cases[0], mask=tmp_path / "mask.nii.gz")
    with pytest.raises(DataError, match=message):
        for found in (open_image(paths, 0), open_truth(case, Labels({"background": 0, "x": 1}), 0)):
            assert isinstance(found.array, LazyVolume)
            for z in range(4):
                found.array[..., z, :, :]


def test_mean_and_deviation_are_those_of_the_whole_volume() -> None:
    random = np.random.RandomState(0)
    array = np.stack([random.normal(30_000, 2, (11, 30, 40)), random.gamma(1, 9, (11, 30, 40))]).astype(np.float32)
    array[:, 3] *= 1.001
    channels = (ChannelPlan("a", "zscore", Intensities(0, 1, 0, 1)),) * 2
    seen = Fingerprint(1, (11, 30, 40), (11, 30, 40), (11, 30, 40), None, {})
    plan = DataPlan("x", channels, Labels({"background": 0, "x": 1}), None, 0, None, (8, 8), seen)
    space = Geometry((1, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    for (mean, deviation), channel in zip(
        measure_channels(Volume(array, space, Path("x")), plan.channels), array.astype(np.float64), strict=True
    ):
        assert mean == pytest.approx(channel.mean(), rel=1e-9)
        assert deviation == pytest.approx(channel.std(), rel=1e-9)


def test_places_are_chosen_evenly_however_they_lie_among_the_slices() -> None:
    chosen = Reservoir(PLACES_A_CLASS, np.random.default_rng(1))
    counts = [30_000, 500, 20_000, 9_500]
    for index, count in enumerate(counts):
        places = np.stack([np.full(count, index), np.arange(count), np.zeros(count)], 1).astype(np.int32)
        chosen.add(places)
    (places,) = chosen.chosen()
    assert places.shape == (PLACES_A_CLASS, 3)
    assert len(np.unique(places, axis=0)) == PLACES_A_CLASS
    expected = np.array(counts) * PLACES_A_CLASS / sum(counts)
    assert np.abs(np.bincount(places[:, 0]) - expected).max() < 5 * np.sqrt(expected.max())
    assert np.mean(places[places[:, 0] == 0, 1]) == pytest.approx(15_000, rel=0.03)


MEASURED = """
import sys
from pathlib import Path
import psutil
from dinounet.data.cache import build_cache
from dinounet.data.dataset import read_dataset
from dinounet.planning.data_plan import plan_data

def peak():  # ru_maxrss would be the parent's, which outlives exec
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

psutil.virtual_memory = lambda: type("", (), {"available": 100_000_000})
root, cache = Path(sys.argv[1]), Path(sys.argv[2])
small = read_dataset(root, test=["case_1"])
build_cache(small.cases, plan_data(small), cache)  # whatever has to be imported
before = peak()
both = read_dataset(root)
build_cache(both.cases[1:], plan_data(both), cache)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_a_large_volume_is_planned_and_cached_in_little_memory(ending: str, tmp_path: Path) -> None:
    """Of a volume that takes 400 MB as float32."""
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells a process's largest memory so")
    root, shape = tmp_path / "data", (400, 512, 512)
    write_nifti_dataset(root, cases=1, slices=2)
    for path, ramp in ((root / "imagesTr" / "case_0_0000", np.int16), (root / "labelsTr" / "case_0", np.uint8)):
        path.with_name(path.name + ".nii.gz").unlink()
        for name, size in (("case_0", (2, 40, 40)), ("case_1", shape)):
            array = np.zeros(size, ramp)
            array[:, 5:20] = 1
            array[::2] *= 2
            sitk.WriteImage(volume(array), str(path.with_name(path.name.replace("case_0", name) + ending)))
    describe(root, ending)
    (tmp_path / "script.py").write_text(MEASURED)
    words = [sys.executable, tmp_path / "script.py", root, tmp_path / "cache"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100_000_000
    (image,) = (tmp_path / "cache").glob("case_1-*/image.npy")
    assert image.stat().st_size > 400_000_000
