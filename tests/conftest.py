"""The environment that tests run in, files shared between checkouts, and the closing line of the parity tests."""

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KEPT = re.compile(
    r"PATH|HOME|USER|TMPDIR|TEMP|TMP|SYSTEMROOT|LD_LIBRARY_PATH|VIRTUAL_ENV|CI|CUDA_VISIBLE_DEVICES"
    r"|DINOUNET_(SHARED|CHROMIUM)|(PYTEST|PIP)_.*|PYTHON(PATH|UNBUFFERED|DONTWRITEBYTECODE)"
)
"""Environment variables that stay as the shell has set them: where things lie, what of the machine may be used."""


def clean_environment() -> None:
    """Removes all other variables: of the Hub's client, OpenMP, nnU-Net, launchers, proxies and our own.

    Runs before anything is imported that reads them.
    """
    for name in os.environ.keys() - set(filter(KEPT.fullmatch, os.environ)):
        del os.environ[name]
    os.environ |= {
        "HF_HOME": str(Path(__file__).parents[1] / ".pytest_cache/huggingface"),  # without token and downloads
        "OMP_NUM_THREADS": "1",  # pytest-xdist keeps the cores busy
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
    }
    if hasattr(time, "tzset"):  # not on Windows
        time.tzset()


clean_environment()

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from datasets import write_png_dataset

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # else importing openvino tells its makers so

settings.register_profile(
    "laws",  # of tests/laws: what holds for all inputs is tried on the same ones in every run
    derandomize=True,
    database=None,
    deadline=None,  # of a busy machine nothing follows
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,  # of the folder that examples write to, each over the last one's files
    ],
)
settings.load_profile("laws")
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))  # what JSON holds
st.register_type_strategy(int, st.integers(-(10**12), 10**12))

SHARED = Path(os.environ.get("DINOUNET_SHARED", Path(__file__).parents[2] / "shared"))


def shared(relative: str) -> Path:
    """A shared file or folder; absent, it is a failure in CI and elsewhere a skip that says why."""
    path = SHARED / relative
    if not path.exists():
        message = f"{relative} is not in {SHARED} (set DINOUNET_SHARED)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture
def png(tmp_path: Path) -> Path:
    """A small dataset of pictures and masks."""
    return write_png_dataset(tmp_path / "pictures")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in one order, so that equal runs are equal to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


compared: list[str] = []
"""Names of the tensors that were compared with the published network's."""


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # one of several processes of tests
        session.config.workeroutput["compared"] = compared


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    compared.extend(node.workeroutput["compared"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if compared:
        terminalreporter.write_line(f"parity: {len(compared)} tensors compared with the published network")
