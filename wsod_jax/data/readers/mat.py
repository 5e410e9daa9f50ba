"""MATLAB files, the format of some published proposals and annotations."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

from wsod_jax.errors import DataError

# Exceptions of SciPy's reader for broken files.
_BROKEN = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    struct.error,
    zlib.error,
)


def read_mat(path: Path) -> dict[str, Any]:
    """Return the variables of a .mat file of version 4 to 7.2.

    Raises:
      DataError: if it is missing, broken, or of version 7.3, which is HDF5.
    """
    from scipy.io.matlab import MatReadError, loadmat

    try:
        return loadmat(path)
    except (MatReadError, *_BROKEN) as error:
        hint = (
            " Re-save it in MATLAB with save -v7." if isinstance(error, NotImplementedError) else ""
        )
        raise DataError(f"{path}: not a readable .mat file ({error}).{hint}") from error
