"""Read arrays from a pickle without executing code in it.

A pickle is a program that may call any function by name. Here the only names are small stand-ins for those in NumPy's
pickles; everything else is refused before it is imported. NumPy's reconstruction code is not used either: arrays are
rebuilt from their bytes.
"""

from __future__ import annotations

import collections
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from wsod_jax.errors import DataError

Names = Mapping[tuple[str, str], object]

_NUMBER_KINDS = "?biuf"


class _ArrayType:
    """Stands for the class `numpy.ndarray`; only passed around."""

    __slots__ = ()


class _Dtype:
    """Stands for `numpy.dtype`: a number type by its code, or an array of objects."""

    __slots__ = ("dtype",)

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        text = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(text, str) or len(text) > 4 or text[:1] not in ("O", *_NUMBER_KINDS):
            raise pickle.UnpicklingError(f"an array of type {code!r}; only numbers are allowed")
        self.dtype = np.dtype(object) if text[0] == "O" else np.dtype(text)

    def __setstate__(self, state: tuple) -> None:
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order in ("<", ">") and self.dtype != object:
            self.dtype = self.dtype.newbyteorder(order)


def _rebuild(data: bytes | str, kind: object, shape: tuple, order: str) -> np.ndarray:
    if not isinstance(kind, _Dtype) or kind.dtype == object:
        raise pickle.UnpicklingError("an array whose bytes are not numbers")
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, kind.dtype).reshape(shape, order=order)


class _Array:
    """Stands for an array under construction; `value` is an array of numbers or a list."""

    __slots__ = ("value",)

    def __init__(self):
        self.value = np.zeros(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran_order, data = state
        if not isinstance(kind, _Dtype):
            raise pickle.UnpicklingError("an array without a type")
        if kind.dtype == object:
            if not isinstance(data, list):
                raise pickle.UnpicklingError("an array of objects that is not a list")
            self.value = data
            return
        order = "F" if fortran_order else "C"
        self.value = _rebuild(data, kind, shape, order)


class _Functions:
    """Stand-ins for functions. A pickle can set no attribute of a bound method, as it could of a function."""

    __slots__ = ()

    def reconstruct(self, kind: object, shape: object, typecode: object) -> _Array:
        """Stand for NumPy's `_reconstruct`: start an array."""
        return _Array()

    def from_buffer(self, data: bytes, kind: object, shape: tuple, order: str) -> np.ndarray:
        """Stand for NumPy's `_frombuffer`, which protocol 5 uses."""
        return _rebuild(data, kind, shape, order)

    def scalar(self, kind: object, data: bytes | str) -> int | float | bool:
        """Stand for NumPy's `scalar`: one number from its bytes."""
        return _rebuild(data, kind, (), "C").item()

    def encode(self, text: str, encoding: str) -> bytes:
        """Stand for `_codecs.encode`, which old protocols use to store bytes as text."""
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError(f"an encoding {encoding!r}; only latin1 is allowed")
        return text.encode("latin1")


_FUNCTIONS = _Functions()
NUMPY_NAMES: Names = {
    ("numpy", "ndarray"): _ArrayType(),
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _FUNCTIONS.encode,
    ("collections", "OrderedDict"): collections.OrderedDict,
}
for _core in ("numpy.core", "numpy._core"):
    NUMPY_NAMES |= {
        (f"{_core}.multiarray", "_reconstruct"): _FUNCTIONS.reconstruct,
        (f"{_core}.numeric", "_frombuffer"): _FUNCTIONS.from_buffer,
        (f"{_core}.multiarray", "scalar"): _FUNCTIONS.scalar,
    }


class _RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that resolves the given names and no others."""

    def __init__(
        self, file: BinaryIO, names: Names, persistent_load: Callable[[object], object] | None
    ):
        super().__init__(file, encoding="latin1")
        self._names = names
        self._persistent_load = persistent_load

    def find_class(self, module: str, name: str) -> object:
        """Return the object for a name; raise `UnpicklingError` if it is not one of those given."""
        if (module, name) not in self._names:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which arrays do not need; nothing was executed. "
                "Save a dict of arrays (in PyTorch: model.state_dict())"
            )
        return self._names[module, name]

    def persistent_load(self, pid: object) -> object:
        """Resolve a reference outside the pickle; raise `UnpicklingError` without a resolver."""
        if self._persistent_load is None:
            raise pickle.UnpicklingError("it refers to another file")
        return self._persistent_load(pid)


def load_pickle(
    file: BinaryIO,
    *,
    path: Path,
    names: Names = NUMPY_NAMES,
    persistent_load: Callable[[object], object] | None = None,
) -> object:
    """Read one pickle with only the given names.

    Nothing is imported, and only values of `names` are called, so a malicious file can at worst waste memory. Python 2
    pickles are supported.

    Args:
      file: open binary file; read up to the pickle's end.
      path: for messages.
      names: (module, name) -> object.
      persistent_load: resolves persistent ids, as in `pickle.Unpickler`.

    Returns:
      The object; arrays of numbers as `numpy.ndarray` (read-only), arrays of objects as lists of their items. Stand-ins
      are replaced up to 8 levels deep.

    Raises:
      DataError: the pickle is broken, names anything else, or is nested deeper.
    """
    try:
        return _plain(_RestrictedUnpickler(file, names, persistent_load).load())
    except DataError:
        raise
    except Exception as error:  # a broken pickle can raise anything
        raise DataError(f"{path}: refused to unpickle, {error or type(error).__name__}.") from error


def load_arrays(path: str | Path) -> dict:
    """Read a file with one pickled dict of arrays, numbers, texts, lists and tuples; see `load_pickle`.

    Raises:
      DataError: if the file is missing, broken, names anything else, or is not a dict.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = load_pickle(file, path=path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: contains a {type(content).__name__}; needed a dict of arrays.")
    return content


def _plain(value: object, depth: int = 0) -> object:
    """Replace stand-ins by their values, in lists, tuples and dicts."""
    if depth > 8:
        raise pickle.UnpicklingError("it is nested more than 8 deep")
    if isinstance(value, _Array):
        value = value.value
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item, depth + 1) for key, item in value.items()}
    return value
