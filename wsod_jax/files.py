"""Atomic writes, checksums of arrays, and reading .npz files that may be damaged."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from wsod_jax.errors import DataError

# Exceptions when reading arrays of a file that is damaged or not an .npz file.
BAD_NPZ = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    AttributeError,
    TypeError,
    zipfile.BadZipFile,
    zlib.error,
)


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """Open a file to write so that readers see either the old file or the whole new one.

    The data goes to a hidden file next to `path`, which is renamed when the block ends. If the block fails (full disk,
    Ctrl-C) the hidden file is removed and `path` is unchanged. Of several writers the last one to finish wins.

    Args:
      path: the file; its folder is made.
      mode: "w" for text, UTF-8 with newlines as written; "wb" for bytes.

    Yields:
      The open file.

    Raises:
      OSError: the disk is full, or the folder cannot be made or written to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    text = {} if mode == "wb" else {"encoding": "utf-8", "newline": ""}
    try:
        with open(partial, mode, **text) as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_npz(path: str | Path, *, advice: str) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz file.

    Args:
      path: the file.
      advice: sentence for the error: what to do.

    Raises:
      DataError: the file is missing, damaged, or contains anything but plain arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except BAD_NPZ as error:
        raise DataError(
            f"{path} cannot be read as an .npz file of plain arrays ({error}). {advice}"
        ) from error


def array_checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """Return "sha256:..." over the names, types, shapes and bytes of `arrays`, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return f"sha256:{digest.hexdigest()}"
