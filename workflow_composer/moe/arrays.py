"""Arrays of numpy and tensors of torch alike, without importing torch: whoever brings a tensor has it loaded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

PIECE = 65_536
"""Tokens that are worked on at a time, so that what is looked up stays in the processor's caches and memory is bounded."""


def pieces(size: int) -> list[slice]:
    """The parts of so many tokens, `PIECE` each."""
    return [slice(start, min(start + PIECE, size)) for start in range(0, size, PIECE)]


def is_tensor(array: Any) -> bool:
    """Whether this is a tensor of torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def numbers(array: Any) -> NDArray[Any]:
    """As an array of numpy, in main memory; no copy where none is needed. bfloat16 becomes float32."""
    if not is_tensor(array):
        return np.asarray(array)
    found = array.detach()
    if str(found.dtype) == "torch.bfloat16":
        found = found.float()
    result: NDArray[Any] = found.cpu().numpy()
    return result


def like(array: NDArray[Any], model: Any) -> Any:
    """``array`` as it is; or, where ``model`` is a tensor, as a tensor on its device (whole numbers of 16 bits as 64)."""
    if not is_tensor(model):
        return array
    found = sys.modules["torch"].from_numpy(array).to(model.device)
    return found.long() if array.dtype == np.int16 else found


def joined(arrays: Sequence[Any]) -> Any:
    """One behind the other, in main memory as numpy where they are numpy, else a tensor."""
    return sys.modules["torch"].cat(list(arrays)) if is_tensor(arrays[0]) else np.concatenate(arrays)


def taken(array: Any, at: NDArray[np.int64]) -> Any:
    """Rows ``at`` of an array or a tensor, where that lies; of a tensor several times as fast as by ``array[at]``."""
    return array.index_select(0, like(at, array)) if is_tensor(array) else array.take(at, 0)


def rows_of(hidden: Any) -> Any:
    """[..., d] -> [n, d], the same memory where that can be."""
    return hidden.reshape(-1, hidden.shape[-1])
