"""The truth of a case, however people keep it."""

from __future__ import annotations

from dinounet.data.images import Volume, read_mask
from dinounet.data.pairs import Case


def read_truth(case: Case) -> Volume:
    """Read a case's mask.

    Raises:
        DataError: it can't be read, or doesn't hold whole numbers.
    """
    assert case.mask is not None
    return read_mask(case.mask)
