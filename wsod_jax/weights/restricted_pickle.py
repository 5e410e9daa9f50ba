"""Unpickling that can build arrays and containers and nothing else.

A pickle may call any function it names. Files from elsewhere are read with a list of the few names they need; any
other name is an error, raised before anything of it is imported or called.
"""

from __future__ import annotations

import collections
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from wsod_jax.errors import DataError

Names = Mapping[tuple[str, str], Any]


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Stand in for `_codecs.encode`, by which old protocols spell bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


_array = np.zeros(0)
_rebuild_array = _array.__reduce__()[0]
_rebuild_scalar = np.float32(0).__reduce__()[0]
_rebuild_from_buffer = _array.__reduce_ex__(5)[0]

NUMPY_NAMES: Names = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _encode_latin1,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _rebuild_array),
            ("multiarray", "scalar", _rebuild_scalar),
            ("numeric", "_frombuffer", _rebuild_from_buffer),
        )
    },
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, names: Names, persistent_load: Callable[[Any], Any] | None):
        super().__init__(file, encoding="latin1")
        self._names = names
        self._persistent_load = persistent_load

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._names:
            raise _ForbiddenName(f"{module}.{name}")
        return self._names[module, name]

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent_load is None:
            raise pickle.UnpicklingError("persistent ids do not belong here")
        return self._persistent_load(pid)


class _ForbiddenName(Exception):
    """The pickle names something that is not on the list."""


def load_pickle(
    file: BinaryIO,
    *,
    names: Names,
    path: Path,
    persistent_load: Callable[[Any], Any] | None = None,
) -> Any:
    """Read one pickle from `file` with nothing but the given names.

    Args:
      file: open binary file; read up to the pickle's end.
      names: (module, name) -> what the pickle gets for it.
      path: for messages.
      persistent_load: resolves persistent ids, as in `pickle.Unpickler`.

    Returns:
      The object.

    Raises:
      DataError: the pickle names anything else, or is damaged.
    """
    try:
        return _Unpickler(file, names, persistent_load).load()
    except _ForbiddenName as error:
        raise DataError(
            f"{path} holds a pickle that names {error}, which a file of plain arrays does not need; nothing of it "
            "was run. Save a dict of arrays (in PyTorch: model.state_dict()) and convert that"
        ) from None
    except DataError:
        raise
    except (
        pickle.UnpicklingError,
        EOFError,
        AttributeError,
        IndexError,
        KeyError,
        MemoryError,
        OverflowError,
        TypeError,
        ValueError,
    ) as error:
        raise DataError(
            f"{path} is damaged or no pickle ({type(error).__name__}: {error})"
        ) from error
