"""Files that are shared between checkouts, and what the parity tests tell at the end."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
