"""Where tests find the files that are shared between checkouts, and what happens when they are absent."""

import os
from pathlib import Path

import pytest

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
