"""Opens `.npy` files from strangers: mapped, never unpickled, and refused by one error whatever is wrong with them."""

from __future__ import annotations

import tokenize
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    OverflowError,
    SyntaxError,
    TypeError,
    tokenize.TokenError,
    RecursionError,
    MemoryError,
)
"""What numpy raises for damaged headers, which are Python literals (found by changing bytes of a small file; the last
two are Python's answers to deep nesting)."""


class NpyFileError(ValueError):
    """A file is no readable `.npy` file; the text says why, without the path."""


def open_npy(path: Path) -> npt.NDArray[Any]:
    """Map an `.npy` file of numbers read-only.

    Raises:
        FileNotFoundError: there is no such file.
        NpyFileError: it is damaged, another format, or holds objects.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    try:
        return np.lib.format.open_memmap(path, mode="r")  # refuses object arrays, as it cannot map them
    except _UNREADABLE as error:
        raise NpyFileError(f"{type(error).__name__}: {error}") from None
