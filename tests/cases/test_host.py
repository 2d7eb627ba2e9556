"""A library leaves its host alone, and the program says how threads wait before PyTorch is there."""

import os
import platform
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

import dinounet
from dinounet.data.images import read_image, write_mask
from dinounet.data.lazy_volume import probe

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")

THE_PROGRAM = """
import os, sys
from dinounet.cli.main import run
sys.argv = ["dinounet", "--version"]
try: run()
except SystemExit: pass
import torch
"""

A_LIBRARY = "import dinounet, dinounet.cli.main; dinounet.Predictor, dinounet.NetworkConfig, dinounet.train"


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, where nobody has said how threads shall wait but for what is given."""
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=True
    )


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="PyTorch has another OpenMP library there")
def test_threads_of_the_program_sleep_while_they_wait() -> None:
    told = run_python(THE_PROGRAM, OMP_DISPLAY_ENV="verbose").stderr  # by PyTorch's OpenMP library itself
    assert "GOMP_SPINCOUNT = '1000'" in told


@pytest.mark.parametrize("variable", VARIABLES)
def test_the_program_adds_nothing_to_what_the_user_has_said(variable: str) -> None:
    code = THE_PROGRAM.replace("import torch", f"print({{name: os.environ.get(name) for name in {VARIABLES}}})")
    told = run_python(code, **{variable: "1"}).stdout.splitlines()[-1]
    assert told == str({name: "1" if name == variable else None for name in VARIABLES})


@pytest.mark.slow
def test_importing_the_library_changes_nothing_of_the_process() -> None:
    run_python(f"""
import logging, os, signal, threading, warnings
import timm, torch, matplotlib
from PIL import Image

def state():
    return dict(
        filters=list(warnings.filters), pixels=Image.MAX_IMAGE_PIXELS, two=os.fstat(2).st_ino,
        backend=matplotlib.rcParams["backend"], umask=os.umask(0o27),
        loggers=(logging.root.level, logging.root.handlers[:], logging.root.manager.disable),
        signals=[signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        torch=(torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype(),
               torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark, torch.is_grad_enabled(),
               torch.initial_seed()),
        variables=dict(os.environ), threads=threading.active_count(),
    )

os.umask(0o27)
before = state()
{A_LIBRARY}
import dinounet.data.images, dinounet.inference.torch_backend, dinounet.network.dinounet
after = state()
assert before == after, [name for name in before if before[name] != after[name]]
""")


@contextmanager
def everything_watched() -> Iterator[list[str]]:
    """While the block runs, a thread looks again and again at what belongs to the process; gives what has changed.

    What is set and put back in an instant, which looking may miss, fails as it is set.
    """

    def state() -> dict[str, Any]:
        return {
            "Pillow's limit": Image.MAX_IMAGE_PIXELS,
            "file descriptor 2": os.fstat(2).st_ino,
            "filters of warnings": tuple(warnings.filters),
            "environment": tuple(os.environ.items()),
            "ITK's warnings": sitk.ProcessObject.GetGlobalWarningDisplay(),
            "main module": sys.modules["__main__"].__dict__.get("__file__"),
        }

    before, changed, over = state(), [], threading.Event()

    def watch() -> None:
        while not over.is_set():
            changed.extend(name for name, value in state().items() if value != before[name])
            time.sleep(0)

    watcher, interval = threading.Thread(target=watch), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    watcher.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("umask", "dup2", "putenv", "unsetenv", "chdir"):
                patch.setattr(os, name, forbidden(name))
            for name in ("simplefilter", "filterwarnings", "resetwarnings"):
                patch.setattr(warnings, name, forbidden(name))
            yield changed
    finally:
        over.set()
        watcher.join()
        sys.setswitchinterval(interval)
        changed.extend(name for name, value in state().items() if value != before[name])


def forbidden(name: str) -> Any:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError(f"{name} was called, which holds for the whole process")

    return refuse


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of every kind, some of them damaged."""
    root = tmp_path_factory.mktemp("files")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 50)).astype(np.uint8)
    for ending in (".png", ".jpg", ".bmp", ".tif"):
        Image.fromarray(pixels[0]).save(root / f"flat{ending}")
    Image.fromarray(pixels[0]).save(root / "lzw.tif", compression="tiff_lzw")
    for ending in (".nii.gz", ".nii", ".nrrd", ".mha"):
        sitk.WriteImage(sitk.GetImageFromArray(pixels), str(root / f"volume{ending}"))
        whole = (root / f"volume{ending}").read_bytes()
        (root / f"damaged{ending}").write_bytes(whole[: len(whole) * 2 // 3])
    return sorted(root.iterdir())


def test_reading_and_writing_in_threads_changes_nothing_of_the_process(files: list[Path], tmp_path: Path) -> None:
    def read_and_write(number: int) -> None:
        for path in files[number % 2 :: 2] * 3:
            with suppress(dinounet.UserError):
                image = read_image([path])
                probe([path])
                write_mask(tmp_path / f"{number}_{path.name}", image.array[0] % 2, image)

    with everything_watched() as changed, ThreadPoolExecutor(4) as threads:
        list(threads.map(read_and_write, range(4)))
    assert not changed, set(changed)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no modes")
def test_outputs_have_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    image = read_image([write_png(tmp_path / "image.png")])
    before = os.umask(0o027)
    try:
        write_mask(tmp_path / "mask.png", image.array[0] % 2, image)
    finally:
        os.umask(before)
    assert (tmp_path / "mask.png").stat().st_mode & 0o777 == 0o640


def write_png(path: Path) -> Path:
    Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)).save(path)
    return path


def test_what_is_no_picture_is_read_by_no_other_of_pillows_readers(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "image.gif")
    (tmp_path / "image.gif").rename(tmp_path / "image.png")
    with pytest.raises(
        dinounet.UserError, match=r"image\.png can't be read as an image \(it begins as no PNG, JPEG or BMP"
    ):
        read_image([tmp_path / "image.png"])


@pytest.mark.slow
def test_the_program_tells_of_a_damaged_file_in_one_line(tmp_path: Path, files: list[Path]) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    damaged = next(path for path in files if path.name == "damaged.mha")
    (tmp_path / "images" / "a.mha").write_bytes(damaged.read_bytes())
    (tmp_path / "masks" / "a.mha").write_bytes(damaged.with_name("volume.mha").read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "dinounet", "plan", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "a.mha can't be read as an image" in done.stderr
