"""Files that are torn or spoiled: never anything but a UserError or an array, and of a torn one never another."""

import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets import picture, write_png_dataset
from dinounet.data.dataset import read_dataset
from dinounet.errors import UserError
from dinounet.evaluation.evaluate import evaluate_folders
from dinounet.evaluation.means import read_metrics
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data
from dinounet.schema.network import plan_unet
from dinounet.schema.plan import Plan, read_plan
from dinounet.schema.recipe import Recipe
from reading import limit_memory, read

ENDINGS = (".png", ".jpg", ".bmp", ".tif", ".deflate.tif", ".nii", ".nii.gz", ".nrrd", ".gz.nrrd", ".mha", ".dcm")

BMP_SIZE = range(18, 26)
"""Bytes with rows and columns, which as yet may ask for gigabytes, and for half a minute."""


@pytest.fixture(scope="module")
def reader() -> Iterator[Callable[[Path, bool], tuple[str, str, bytes]]]:
    context = multiprocessing.get_context("spawn")  # without this process's memory
    with ProcessPoolExecutor(1, mp_context=context, initializer=limit_memory) as pool:
        yield lambda path, as_mask: pool.submit(read, path, as_mask).result(60)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small file of each format."""
    home = tmp_path_factory.mktemp("whole")
    pixels, mask = picture((17, 23), seed=0)
    volume = np.stack([mask, mask[::-1], mask[:, ::-1]])
    for ending in ENDINGS:
        path = home / f"file{ending}"
        if ending in (".png", ".jpg", ".bmp"):
            Image.fromarray(pixels if ending == ".jpg" else mask).save(path)
        elif ending == ".tif":
            tifffile.imwrite(path, mask)
        elif ending == ".deflate.tif":
            Image.fromarray(mask).save(path, compression="tiff_adobe_deflate")
        elif ending.startswith(".nii"):
            nibabel.save(nibabel.Nifti1Image(volume.T, np.diag([1.0, 2, 3, 1])), path)
        elif ending != ".dcm":
            sitk.WriteImage(sitk.GetImageFromArray(volume), str(path), ending == ".gz.nrrd")
        else:
            sitk.WriteImage(sitk.GetImageFromArray(mask.astype(np.uint16)), str(path))
    return {ending: (home / f"file{ending}").read_bytes() for ending in ENDINGS}


def place(home: Path, ending: str, content: bytes) -> Path:
    """Write what is to be read: a file, or a folder of one DICOM file."""
    path = home / f"spoiled{ending}"
    if ending != ".dcm":
        path.write_bytes(content)
        return path
    (home / "series").mkdir(exist_ok=True)
    (home / "series" / "slice.dcm").write_bytes(content)
    return home / "series"


@pytest.mark.slow
@settings(max_examples=120)
@given(ending=st.sampled_from(ENDINGS), share=st.floats(0, 1, exclude_max=True), as_mask=st.booleans())
def test_a_torn_file_is_refused_or_the_same(
    ending: str, share: float, as_mask: bool, whole: dict[str, bytes], reader: Any, tmp_path: Path
) -> None:
    content = whole[ending]
    known = reader(place(tmp_path, ending, content), as_mask)
    found = reader(place(tmp_path, ending, content[: int(share * len(content))]), as_mask)
    assert found[0] == "refused" or found == known, found[:2]


@pytest.mark.slow
@settings(max_examples=250)
@given(
    ending=st.sampled_from(ENDINGS),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=3),
    early=st.booleans(),
    as_mask=st.booleans(),
)
def test_a_spoiled_file_is_refused_or_read(
    ending: str,
    flips: list[tuple[float, int]],
    early: bool,
    as_mask: bool,
    whole: dict[str, bytes],
    reader: Any,
    tmp_path: Path,
) -> None:
    content = bytearray(whole[ending])
    for share, change in flips:  # headers are short, so that every second file is spoiled there
        at = int(share * (min(120, len(content)) if early else len(content)))
        if ending != ".bmp" or at not in BMP_SIZE:
            content[at] ^= change
    found = reader(place(tmp_path, ending, bytes(content)), as_mask)
    assert found[0] != "failed", found[1]
    if ending in (".png", ".nii.gz"):  # which hold checksums
        known = reader(place(tmp_path, ending, whole[ending]), as_mask)
        assert found[0] == "refused" or found == known, found[:2]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A dataset's folder, and what its dataset.json, a table of it, a plan and metrics hold."""
    home = write_png_dataset(tmp_path_factory.mktemp("texts") / "pictures")
    rows = [f"imagesTr/case_{index}_0000.png,labelsTr/case_{index}.png,p{index}" for index in range(6)]
    (home / "table.csv").write_text("\n".join(["image,mask,group", *rows]) + "\n")
    data = plan_data(read_dataset(home), (32, 32))
    write_json(home / "plan.json", Plan(data, plan_unet((32, 32), in_channels=1, num_classes=3), Recipe()))
    labels = {"background": 0, "disc": 1, "square": 2}
    evaluate_folders(home / "labelsTr", home / "labelsTr", labels, home / "metrics.json")
    names = ("dataset.json", "table.csv", "plan.json", "metrics.json")
    return home, {name: (home / name).read_bytes() for name in names}


READ: dict[str, Callable[[Path], object]] = {
    "dataset.json": lambda path: read_dataset(path.parent),
    "table.csv": read_dataset,
    "plan.json": read_plan,
    "metrics.json": read_metrics,
}


@pytest.mark.slow
@settings(max_examples=200)
@given(
    name=st.sampled_from(sorted(READ)),
    start=st.floats(0, 1, exclude_max=True),
    length=st.integers(0, 30),
    new=st.one_of(st.binary(max_size=8), st.text('{}[]",:0123456789.eE-+ \n\\\0ab', max_size=8).map(str.encode)),
)
def test_a_spoiled_text_is_refused_or_read(
    name: str, start: float, length: int, new: bytes, texts: tuple[Path, dict[str, bytes]]
) -> None:
    home, contents = texts
    content = contents[name]
    place = int(start * len(content))
    (home / name).write_bytes(content[:place] + new + content[place + length :])
    try:
        READ[name](home / name)
    except UserError as error:
        assert str(error).strip()
    finally:
        (home / name).write_bytes(content)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


@pytest.mark.slow
@settings(max_examples=150)
@given(
    name=st.sampled_from([name for name in sorted(READ) if name.endswith(".json")]),
    value=json_values,
    pick=st.randoms(use_true_random=False),
)
def test_any_value_in_a_record_is_refused_or_read(
    name: str, value: Any, pick: Any, texts: tuple[Path, dict[str, bytes]]
) -> None:
    home, contents = texts
    content = json.loads(contents[name])
    inner = content
    while True:
        key = pick.choice(list(inner) if isinstance(inner, dict) else list(range(len(inner))))
        if isinstance(inner[key], dict | list) and inner[key] and pick.random() < 0.8:
            inner = inner[key]
            continue
        inner[key] = value
        break
    (home / name).write_text(json.dumps(content))
    try:
        READ[name](home / name)
    except UserError as error:
        assert str(error).strip()
    finally:
        (home / name).write_bytes(contents[name])
