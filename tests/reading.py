"""Reads files in a process of its own, which may die of them or want too much memory, and says what came of it."""

import resource
from pathlib import Path

import numpy as np

from dinounet.data.images import read_image
from dinounet.data.masks import read_mask
from dinounet.errors import UserError

MOST_MEMORY = 3 << 30


def limit_memory() -> None:
    """Let this process ask for no more address space than that."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))


def read(path: Path, as_mask: bool) -> tuple[str, str, bytes]:
    """What comes of an image or mask: "read", its type, shape and bytes; "refused" and why; or "failed" and why."""
    try:
        array = (read_mask(path) if as_mask else read_image([path])).array
    except (UserError, MemoryError) as error:  # what a header may ask for is not bounded yet
        return "refused", str(error), b""
    except BaseException as error:
        return "failed", repr(error), b""
    if array.dtype.kind not in "biuf" or array.ndim != (3 if as_mask else 4) or not np.isfinite(array).all():
        return "failed", f"{array.dtype} {array.shape}", b""
    return "read", f"{array.dtype} {array.shape}", array.tobytes()
