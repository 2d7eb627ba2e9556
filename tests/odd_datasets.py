"""Odd datasets that are right: names, sizes, channels and types that people have, and that must work."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wrong_datasets import nnunet, pairs, picture, save, save_volume, truth

ODD: dict[str, Callable[[Path], Path | None]] = {}
"""Each writes a dataset into a folder, and returns what the command is to be given if that isn't the folder."""


def odd(make: Callable[[Path], Path | None]) -> Callable[[Path], Path | None]:
    ODD[make.__name__] = make
    return make


def write(root: Path, size: tuple[int, int], names: Sequence[str] = "abc", types: Sequence[Any] = (np.uint8,)) -> None:
    """Pairs of this size, each in the next of the types."""
    for seed, name in enumerate(names):
        mask = np.zeros(size, np.uint8)
        mask[size[0] // 4 : size[0] // 2 + 1, size[1] // 4 : size[1] // 2 + 1] = 255
        ending = ".png" if len(types) == 1 else ".tif"
        save(root / "images" / f"{name}{ending}", picture(seed, size).astype(types[seed % len(types)]))
        save(root / "masks" / f"{name}.png", mask)


@odd
def spaces_accents_and_quotes(root: Path) -> Path:
    write(root / "Größe 1", (20, 22), ["a b", "é'\"x", "日本\nz"])
    return root / "Größe 1"


@odd
def names_that_mean_something_elsewhere(root: Path) -> None:
    write(root, (20, 22), ["-o", "[red]x[/red]", "a%s{x}$HOME`", "a.b.c", "x.nii"])


@odd
def two_pixels(root: Path) -> None:
    write(root, (1, 2))


@odd
def one_row_of_20000_pixels(root: Path) -> None:
    write(root, (1, 20000))


@odd
def four_columns_of_20000_pixels(root: Path) -> None:
    write(root, (20000, 4))


@odd
def types_of_all_kinds(root: Path) -> None:
    write(root, (20, 22), types=(np.uint8, np.uint16, np.float32))


@odd
def five_channels(root: Path) -> None:
    pairs(root)
    for seed, path in enumerate(sorted((root / "images").iterdir())):
        pixels = np.stack([picture(seed + channel) for channel in range(5)])
        path.unlink()
        save(path.with_suffix(".tif"), pixels, photometric="minisblack", metadata={"axes": "CYX"})


@odd
def sizes_of_all_kinds(root: Path) -> None:
    write(root, (64, 64), ["a"])
    write(root, (1, 1), ["b"])
    write(root, (31, 700), ["c"])


@odd
def one_case_of_a_single_value(root: Path) -> None:
    pairs(root)
    save(root / "images" / "b.png", np.full((16, 18), 7, np.uint8))


@odd
def one_case_without_foreground(root: Path) -> None:
    pairs(root)
    save(root / "masks" / "b.png", np.zeros((16, 18), np.uint8))


@odd
def a_flat_nifti_among_volumes(root: Path) -> None:
    for seed, size in enumerate([(16, 18), (1, 16, 18), (3, 16, 18)]):
        save_volume(root / "images" / f"{seed}.nii.gz", picture(seed, size))
        save_volume(root / "masks" / f"{seed}.nii.gz", truth(seed, size))


@odd
def endings_in_capitals(root: Path) -> None:
    pairs(root)
    for path in [*(root / "images").glob("*"), *(root / "masks").glob("*")]:
        path.rename(path.with_suffix(".PNG"))


@odd
def a_description_that_begins_with_a_mark(root: Path) -> Path:
    nnunet(root)
    text = (root / "dataset.json").read_text()
    (root / "dataset.json").write_text(json.dumps(json.loads(text)), encoding="utf-8-sig")
    return root


@odd
def a_table_of_absolute_and_relative_paths(root: Path) -> Path:
    pairs(root)
    rows = f"image;mask;group\n{root}/images/a.png;masks/a.png;1\nimages/../images/b.png;{root}/masks/b.png;2\n"
    (root / "table.csv").write_text(rows)
    return root / "table.csv"


@odd
def links_to_files_and_folders(root: Path) -> Path:
    pairs(root / "store")
    (root / "data").mkdir()
    (root / "data" / "images").symlink_to(root / "store" / "images")
    (root / "data" / "masks").mkdir()
    for name in "abc":
        (root / "data" / "masks" / f"{name}.png").symlink_to(root / "store" / "masks" / f"{name}.png")
    return root / "data"
