"""Tiles cover, splits partition, and what is read in parts is what is read whole."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
import tifffile
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dinounet.data.arrays import tile_starts
from dinounet.data.formats.nifti import open_nifti
from dinounet.data.images import read_image
from dinounet.data.layouts import Case
from dinounet.data.lazy_volume import probe, probe_rows
from dinounet.data.patches import tile_centres
from dinounet.data.splits import hold_out, make_splits, split_cases
from dinounet.inference.tiling import GaussianTileMerger, StreamingResizer, make_grid

steps = st.floats(0.01, 1)
sizes = st.tuples(st.integers(1, 60), st.integers(1, 60))
names = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=1, max_size=8)


@given(length=st.integers(1, 5000), tile=st.integers(1, 600), step=steps)
def test_tiles_cover_a_side_and_lie_inside(length: int, tile: int, step: float) -> None:
    tile = min(tile, length)
    starts = tile_starts(length, tile, step)
    assert starts[0] == 0 and starts[-1] == length - tile
    gaps = np.diff(starts)
    assert (gaps >= 0).all() and (gaps <= max(1, np.ceil(tile * step))).all()
    assert len(starts) == 1 or max(gaps) - min(gaps) <= 1  # evenly


@given(length=st.integers(1, 3000), tile=st.integers(1, 600))
def test_tiles_of_cached_features_cover_a_side(length: int, tile: int) -> None:
    covered = np.zeros(length, bool)
    for centre in tile_centres(length, tile):
        first = centre - tile // 2
        assert length <= tile or 0 <= first <= length - tile
        covered[max(first, 0) : first + tile] = True
    assert covered.all()


@settings(max_examples=60)
@given(size=sizes, patch=st.tuples(st.integers(4, 40), st.integers(4, 40)), step=steps.filter(lambda step: step > 0.2))
def test_tiles_of_one_image_join_to_that_image(size: tuple[int, int], patch: tuple[int, int], step: float) -> None:
    image = np.random.default_rng(0).standard_normal((2, *size)).astype(np.float32)
    grid = make_grid(size, patch, step)
    canvas, joined, made = GaussianTileMerger(grid), np.zeros_like(image), np.zeros(size[0], int)
    for row in grid.rows:
        for column in grid.columns:
            tile = image[:, row : row + grid.tile[0], column : column + grid.tile[1]]
            assert tile.shape[1:] == grid.tile
            for first, rows in canvas.add(row, column, tile):
                joined[:, first : first + rows.shape[-2]] = rows
                made[first : first + rows.shape[-2]] += 1
    assert (made == 1).all()
    np.testing.assert_allclose(joined, image, atol=1e-4)


@settings(max_examples=60)
@given(size=sizes, wanted=sizes, cuts=st.sets(st.integers(1, 59), max_size=4))
def test_rows_that_come_one_after_another_are_enlarged_as_the_whole(
    size: tuple[int, int], wanted: tuple[int, int], cuts: set[int]
) -> None:
    image = np.random.default_rng(0).standard_normal((1, 2, *size)).astype(np.float32)
    enlarger, found = StreamingResizer(size, wanted), np.full((1, 2, *wanted), np.nan, np.float32)
    edges = [0, *sorted(cut for cut in cuts if cut < size[0]), size[0]]
    for first, last in pairwise(edges):
        for place, rows in enlarger.add(first, image[..., first:last, :]):
            assert np.isnan(found[..., place : place + rows.shape[-2], :]).all()
            found[..., place : place + rows.shape[-2], :] = rows
    whole = F.interpolate(torch.from_numpy(image), size=wanted, mode="bilinear").numpy()
    np.testing.assert_allclose(found, whole, atol=1e-4)


@given(st.sets(names, min_size=1, max_size=40))
def test_folds_partition_cases(cases: set[str]) -> None:
    splits = make_splits(sorted(cases))
    assert len(splits) == (min(5, len(cases)) if len(cases) > 1 else 0)
    for training, watched in splits:
        assert sorted((*training, *watched)) == sorted(cases) and training and watched
    if splits:
        assert Counter(name for _, watched in splits for name in watched) == Counter(cases)


@given(st.lists(st.one_of(st.none(), st.sampled_from("abcdefgh")), min_size=1, max_size=40), st.data())
def test_groups_are_on_one_side(groups: list[str | None], data: st.DataObject) -> None:
    cases = [Case(f"case {index}", (Path("image"),), None, group) for index, group in enumerate(groups)]
    group_of = {case.name: case.group or case.name for case in cases}
    for training, watched in split_cases(cases):
        assert sorted((*training, *watched)) == sorted(group_of)
        assert not {group_of[name] for name in training} & {group_of[name] for name in watched}
    chosen = data.draw(st.sets(st.sampled_from(sorted(set(group_of.values()))), max_size=5))
    if len(chosen) < len(set(group_of.values())):
        left_in, held_out = hold_out(cases, sorted(chosen))
        assert {group_of[case.name] for case in held_out} == chosen
        assert sorted(case.name for case in (*left_in, *held_out)) == sorted(group_of)


ranges = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), min_size=1, max_size=6)


@settings(max_examples=80)
@given(
    ending=st.sampled_from([".png", ".tif", ".jpg"]),
    dtype=st.sampled_from(["uint8", "uint16", "float32", "int16"]),
    colours=st.booleans(),
    size=sizes,
    wanted=ranges,
)
def test_rows_of_a_flat_file_are_those_of_the_whole(
    ending: str, dtype: str, colours: bool, size: tuple[int, int], wanted: list[tuple[int, int]], tmp_path: Path
) -> None:
    if ending == ".jpg" or (ending == ".png" and (colours or dtype not in ("uint8", "uint16"))):
        dtype = "uint8"
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3) if colours else size).astype(dtype)
    path = tmp_path / f"image{ending}"
    if ending == ".tif":
        tifffile.imwrite(path, pixels, photometric="rgb" if colours else "minisblack", rowsperstrip=7)
    else:
        Image.fromarray(pixels).save(path)
    rows, whole = probe_rows(path), read_image([path]).array
    if rows is None:
        return
    assert rows.shape == whole.shape and rows.dtype == whole.dtype
    for first, count in wanted:
        np.testing.assert_array_equal(rows[..., 0, first : first + count, :], whole[:, 0, first : first + count])


volumes = st.tuples(st.integers(1, 5), st.integers(1, 8), st.integers(1, 9))


@settings(max_examples=80)
@given(
    ending=st.sampled_from([".nii", ".nii.gz", ".mha"]),
    dtype=st.sampled_from(["uint8", "int16", "float32", "uint16"]),
    shape=volumes,
    scale=st.sampled_from([(1.0, 0.0), (0.5, -3.0), (0.0, 5.0)]),
    order=st.permutations(range(5)),
)
def test_planes_of_a_volume_are_those_of_the_whole(
    ending: str, dtype: str, shape: tuple[int, int, int], scale: tuple[float, float], order: list[int], tmp_path: Path
) -> None:
    array = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    path = tmp_path / f"volume{ending}"
    if ending == ".mha":
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    else:
        header = nibabel.Nifti1Header()
        header.set_data_dtype(dtype)
        image = nibabel.Nifti1Image(array.T, np.diag([2.0, 3, 4, 1]), header)
        nibabel.save(image, path)
        if ending == ".nii":  # bytes 112 to 119: slope and intercept, which nibabel would apply
            content = bytearray(path.read_bytes())
            content[112:120] = np.array(scale, "<f4").tobytes()
            path.write_bytes(content)
    whole, found = read_image([path]).array, probe([path])
    assert found is not None
    planes = found.array
    assert planes.shape == whole.shape and planes.dtype == whole.dtype
    if planes.read is None:
        return
    for z in [z for z in order if z < shape[0]]:
        np.testing.assert_array_equal(planes[..., z, :, :], whole[:, z])
    if ending != ".mha":
        assert open_nifti(path).shape == whole.shape
