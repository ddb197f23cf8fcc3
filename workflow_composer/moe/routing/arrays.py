"""Uniform functions for numpy arrays and torch tensors; torch is not imported, since a caller with tensors has loaded it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

PIECE = 65_536
"""Tokens per piece, so that lookups stay in the processor's caches and memory is bounded."""


def pieces(size: int) -> list[slice]:
    """Return slices of `PIECE` tokens each that cover ``size`` tokens."""
    return [slice(start, min(start + PIECE, size)) for start in range(0, size, PIECE)]


def is_tensor(array: Any) -> bool:
    """Whether this is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def numbers(array: Any) -> NDArray[Any]:
    """Convert to a numpy array in main memory, without a copy if possible. bfloat16 becomes float32."""
    if not is_tensor(array):
        return np.asarray(array)
    found = array.detach()
    if str(found.dtype) == "torch.bfloat16":
        found = found.float()
    result: NDArray[Any] = found.cpu().numpy()
    return result


def like(array: NDArray[Any], model: Any) -> Any:
    """Return ``array``, or if ``model`` is a tensor, a tensor on its device (int16 becomes int64)."""
    if not is_tensor(model):
        return array
    found = sys.modules["torch"].from_numpy(array).to(model.device)
    return found.long() if array.dtype == np.int16 else found


def joined(arrays: Sequence[Any]) -> Any:
    """Concatenate numpy arrays or tensors."""
    return sys.modules["torch"].cat(list(arrays)) if is_tensor(arrays[0]) else np.concatenate(arrays)


def taken(array: Any, at: NDArray[np.int64]) -> Any:
    """Take rows ``at`` of an array or a tensor on its device; for tensors several times faster than ``array[at]``."""
    return array.index_select(0, like(at, array)) if is_tensor(array) else array.take(at, 0)


def rows_of(hidden: Any) -> Any:
    """Reshape [..., d] to [n, d], without a copy if possible."""
    return hidden.reshape(-1, hidden.shape[-1])
