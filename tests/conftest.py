"""Files that are shared between checkouts, and what the parity tests tell at the end."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from datasets import write_png_dataset

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # else importing openvino tells its makers so

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
