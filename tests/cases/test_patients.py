"""No patient is on both sides of a fold: what the files show is grouped, what they may mean is a sentence."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset as DicomDataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

import dinounet
from datasets import describe
from dinounet.data.dataset import Dataset, read_dataset
from dinounet.errors import ConfigError
from dinounet.io import write_json
from dinounet.schema.run import read_run

MASK = np.zeros((32, 32), np.uint8)
MASK[8:20, 8:24] = 1


def write(root: Path, names: Sequence[str]) -> Path:
    """Noise with a mask for each name, which may have folders before it; `images/` and `masks/`."""
    random = np.random.default_rng(0)
    for name in names:
        for kind in ("images", "masks"):
            (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, MASK.shape, np.uint8)).save(root / "images" / f"{name}.png")
        Image.fromarray(MASK).save(root / "masks" / f"{name}.png")
    return root


def folders(count: int, cases: int = 4) -> list[str]:
    return [f"p{folder}/c{case}" for folder in range(1, count + 1) for case in range(cases)]


def owners_on_both_sides(dataset: Dataset, letters: int = 2) -> set[str]:
    """Whose cases, by the first letters of their names, some fold both learns from and watches."""
    return {
        owner
        for training, watched in dataset.splits
        for owner in {name[:letters] for name in training} & {name[:letters] for name in watched}
    }


@pytest.mark.slow
def test_five_folders_are_groups_and_that_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "data", folders(5))
    dataset = read_dataset(data)
    assert len(dataset.splits) == 5
    assert not owners_on_both_sides(dataset)
    dinounet.plan(data, network="unet", patch=(32, 32), output=tmp_path / "plan.json")
    told = capsys.readouterr().out
    assert "5, by folder" in told
    assert "The images lie in 5 folders (p1, p2, p3 …): a folder is a group, and no group is on both sides" in told
    groups = json.loads((tmp_path / "plan.json").read_text())["data"]["groups"]
    assert groups["by"] == "folder"
    assert "give --group none" in groups["remarks_on_files"][0]


def test_three_folders_are_a_sentence_and_groups_when_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data", folders(3))
    plan = dinounet.plan(data, network="unet", patch=(32, 32))
    sentence = "The images lie in 3 folders (p1, p2, p3): if a folder is one patient's, give --group folder, so that no"
    assert sentence in capsys.readouterr().out
    assert plan.data.groups.remarks_on_files[0].startswith(sentence)
    assert len(read_dataset(data).splits) == 5
    asked = read_dataset(data, group="folder")
    assert len(asked.splits) == 3
    assert not owners_on_both_sides(asked)


@pytest.mark.slow
def test_a_run_keeps_patients_apart_and_its_report_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "data", folders(5, 2))
    changes = dict(network="unet", patch=(32, 32), changes={"steps": 1, "eval_interval": 1}, device="cpu")
    run = dinounet.train(data, tmp_path / "run", **changes)
    record = read_run(run)
    learned, watched = (
        {name[:2] for name in names} for names in (record.data.training_cases, record.data.validation_cases)
    )
    assert len(watched) == 1
    assert not learned & watched
    assert "a folder is a group" in capsys.readouterr().out
    assert "a folder is a group" in (run / "report.html").read_text()
    (tmp_path / "stopped").mkdir()
    write_json(tmp_path / "stopped" / "run.json", replace(record, status="interrupted"))
    with pytest.raises(ConfigError, match="was started with another group"):
        dinounet.train(data, tmp_path / "stopped", resume=True, group="none")
    dinounet.train(data, tmp_path / "stopped", resume=True, group="auto", report=False)
    assert read_run(tmp_path / "stopped").data == record.data
    content = json.loads((run / "plan.json").read_text())
    with pytest.raises(ConfigError, match=r"plan\.json groups cases by folder, not by none; change data\.groups\.by"):
        dinounet.train(data, tmp_path / "other", plan=run / "plan.json", group="none")
    content["data"]["groups"]["by"] = "none"
    (tmp_path / "edited.json").write_text(json.dumps(content))
    other = dinounet.train(data, tmp_path / "other", plan=tmp_path / "edited.json", fold="all", report=False)
    with pytest.raises(ConfigError, match=r"edited\.json groups cases by none, not by auto; change data\.groups\.by"):
        dinounet.train(data, tmp_path / "third", plan=tmp_path / "edited.json", group="auto")
    groups = read_run(other).plan.data.groups
    assert (groups.by, groups.remarks_on_files) == ("none", ())


@pytest.mark.parametrize(
    ("names", "by", "units"),
    [
        (folders(5), "folder", 5),
        ([f"hospital{i % 2}/{name}" for i in range(2) for name in folders(5, 2)], "folder", 10),
        ([f"{name[:2]}/visit{i}/{name[3:]}" for i in range(2) for name in folders(6, 1)], "folder", 6),
        ([f"video{i}_frame_{z:03d}" for i in range(5) for z in range(3)], "name", 5),
        ([f"v{i}-Slice{z}" for i in range(6) for z in range(2)] + ["alone"], "name", 7),
        ([f"site{i % 2}/v{i}_z{z}" for i in range(5) for z in range(2)], "name", 5),
        ([f"sub-{i}/ses-{s}/sub-{i}_ses-{s}_T1w" for i in range(3) for s in range(2)], "patient", 3),
        ([f"sub-{i}_run-{s}_bold" for i in range(3) for s in range(2)], "patient", 3),
        ([f"{'pP'[i % 2]}{i // 2}/c{i}_{case}" for i in range(10) for case in (0, 1)], "folder", 5),
        ([f"p{i}/image" for i in range(8)], "none", 8),
        (folders(4), "none", 16),
        ([f"video{i}_frame_{z}" for i in range(4) for z in range(3)], "none", 12),
        ([f"a{i}" for i in range(8)], "none", 8),
        ([f"sub-{i}" for i in range(8)], "none", 8),
    ],
)
def test_what_is_grouped_without_being_asked_for(names: list[str], by: str, units: int, tmp_path: Path) -> None:
    dataset = read_dataset(write(tmp_path, names))
    assert len({case.group or case.name for case in dataset.cases}) == units
    assert dataset.group == by
    assert read_dataset(tmp_path, group="none").group == "none"


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            [f"v{i}_frame_{z}" for i in range(4) for z in range(3)],
            "The cases have 4 names .* before .*--group name, so that",
        ),
        (
            [f"scan_slice{z}" for z in range(6)],
            r"1 name \(scan\) before _slice, .*: validation cases are not indep",
        ),
        ([f"sub-1_run-{s}" for s in range(6)], r"1 patient \(sub-1\) by BIDS's labels: validation cases are not"),
        ([f"p{p}/v{v}_frame{z}" for p in (1, 2) for v in range(3) for z in (0, 1)], "2 folders .* give --group folder"),
        (folders(4), r"4 folders \(p1, p2, p3 …\): if a folder is one patient's, give --group folder"),
    ],
)
def test_what_may_belong_together_is_a_sentence(names: list[str], sentence: str, tmp_path: Path) -> None:
    remarks = read_dataset(write(tmp_path, names)).remarks
    assert len([remark for remark in remarks if re.search(sentence, remark)]) == 1


def test_nnunets_layout_keeps_nnunets_folds_and_offers(tmp_path: Path) -> None:
    names = [f"v{i}_frame_{z}" for i in range(6) for z in range(2)]
    for name in names:
        for folder, path, pixels in (
            ("imagesTr", f"{name}_0000.png", MASK * 100),
            ("labelsTr", f"{name}.png", MASK),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / path)
    describe(tmp_path, ".png", labels={"background": 0, "a": 1})
    dataset = read_dataset(tmp_path)
    assert {case.group for case in dataset.cases} == {None}
    assert "if such a name is one patient's, give --group name" in dataset.remarks[0]
    assert not owners_on_both_sides(read_dataset(tmp_path, group="name"))
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": names[1:], "val": names[:1]}]))
    assert read_dataset(tmp_path).splits == ((tuple(names[1:]), tuple(names[:1])),)
    with pytest.raises(
        ConfigError, match=r"splits_final\.json decides on the folds; remove it, or leave --group name out"
    ):
        read_dataset(tmp_path, group="name")


@pytest.mark.parametrize("by", ["folder", "name", "patient"])
def test_a_group_that_nothing_shows_is_refused(by: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--group {by} puts no cases together: .*; leave it out, or choose another"):
        read_dataset(write(tmp_path, ["a", "b", "c"]), group=by)


def test_groups_of_folders_are_held_out_whole(tmp_path: Path) -> None:
    dataset = read_dataset(write(tmp_path, folders(5, 2)), test=["p2"])
    assert dataset.test_cases == ("p2_c0", "p2_c1")
    with pytest.raises(ConfigError, match="it tears the group p3 apart"):
        read_dataset(tmp_path, test=["p3_c0"])


def write_series(folder: Path, patient: str | None) -> None:
    """One slice of MR, with as little in its header as a file may have."""
    folder.mkdir(parents=True)
    header = DicomDataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = MRImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = generate_uid()
    if patient is not None:
        header.PatientID = patient
    header.save_as(folder / "0.dcm", enforce_file_format=True)


@pytest.mark.parametrize(
    ("patients", "units"),
    [
        (["MRN 17", "MRN 17", "MRN 18", "MRN 18 "], 2),
        (["MRN 1", "mrn  1", "MRN 2", None], 3),
        (["anon1", "anon1", "anon2", "anon2"], 2),
        (["", "", "", ""], 4),
        (["ANONYMOUS"] * 4, 4),
        (["0000"] * 4, 4),
        ([None] * 4, 4),
        (["MRN 1"] * 4, 4),
        (["MRN 1", "MRN 2", "MRN 3", "MRN 4"], 4),
    ],
)
def test_dicoms_patient_decides(patients: list[str | None], units: int, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for index, patient in enumerate(patients):
        write_series(tmp_path / "images" / f"s{index}", patient)
        Image.fromarray(MASK).save(tmp_path / "masks" / f"s{index}.png")
    dataset = read_dataset(tmp_path)
    assert len({case.group or case.name for case in dataset.cases}) == units
    for patient in filter(None, patients):
        assert not any(patient in text for text in (*dataset.remarks, *(case.group or "" for case in dataset.cases)))
