"""What NumPy's arrays and PyTorch's tensors name differently, of the little that is done with them after a network.

So logits are joined and read on whatever device they are, and PyTorch is imported only by who has a tensor already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""Of NumPy or of PyTorch."""


def zeros(shape: tuple[int, ...], like: Array) -> Array:
    """Zeros of the same kind and type, in the same place."""
    return np.zeros(shape, like.dtype) if isinstance(like, np.ndarray) else like.new_zeros(shape)


def beside(values: np.ndarray, like: Array) -> Array:
    """NumPy's numbers as what can be computed with the other."""
    return values if isinstance(like, np.ndarray) else _torch().from_numpy(values).to(like.device)


def to_numpy(array: Array, dtype: type) -> np.ndarray:
    """The numbers as NumPy's, in memory."""
    if isinstance(array, np.ndarray):
        return array.astype(dtype, copy=False)
    found: np.ndarray = (array.half() if dtype is np.float16 else array).cpu().numpy()
    return found.astype(dtype, copy=False)


def concatenate(parts: Sequence[Array], axis: int) -> Array:
    """One after another."""
    return np.concatenate(parts, axis) if isinstance(parts[0], np.ndarray) else _torch().cat(list(parts), axis)


def stack(parts: Sequence[Array], axis: int) -> Array:
    """Along a new axis."""
    return np.stack(parts, axis) if isinstance(parts[0], np.ndarray) else _torch().stack(list(parts), axis)


def flip(array: Array, axes: tuple[int, ...]) -> Array:
    """Mirrored."""
    return np.flip(array, axes) if isinstance(array, np.ndarray) else array.flip(axes)


def softmax(array: Array, axis: int) -> Array:
    """Shares of one."""
    if isinstance(array, np.ndarray):
        from scipy import special  # takes a third of a second to import

        return special.softmax(array, axis)
    return array.softmax(axis)


def sigmoid(array: Array) -> Array:
    """From 0 to 1, each by itself."""
    if isinstance(array, np.ndarray):
        from scipy import special

        return special.expit(array)
    return array.sigmoid()


def entropy(array: Array) -> Array:
    """-p log p, each by itself."""
    if isinstance(array, np.ndarray):
        from scipy import special

        return special.entr(array)
    return _torch().special.entr(array)


def _torch() -> Any:
    import torch

    return torch
