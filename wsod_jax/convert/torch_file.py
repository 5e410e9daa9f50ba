"""Read PyTorch's .pth files into NumPy arrays, without PyTorch and without executing code in them.

There are two formats: a zip archive (PyTorch 1.6 and later) with one pickle and one raw file per storage; and before
that a sequence of pickles followed by the raw storages, still used by some of torchvision's oldest weights.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors.numpy

from wsod_jax.convert.restricted_pickle import load_pickle
from wsod_jax.errors import DataError

STORAGE_TYPES = {
    "DoubleStorage": np.dtype("float64"),
    "FloatStorage": np.dtype("float32"),
    "HalfStorage": np.dtype("float16"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("int64"),
    "IntStorage": np.dtype("int32"),
    "ShortStorage": np.dtype("int16"),
    "CharStorage": np.dtype("int8"),
    "ByteStorage": np.dtype("uint8"),
    "BoolStorage": np.dtype("bool"),
}
OLD_MAGIC = 0x1950A86A20F9469CFC6C
RESAVE = (
    "Re-save it with PyTorch: torch.save(torch.load(OLD, map_location='cpu'), NEW); "
    "then convert NEW"
)


@dataclasses.dataclass
class _Storage:
    """The values that tensors are views of; in the old format its bytes come last."""

    dtype: np.dtype
    length: int
    values: np.ndarray | None = None


@dataclasses.dataclass
class _Tensor:
    """A strided view of a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """Stand in for torch._utils._rebuild_tensor and _rebuild_tensor_v2."""
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


TORCH_NAMES = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    **{("torch", name): name for name in STORAGE_TYPES},
}


def read_torch_file(path: str | Path, anchor: str | None = None) -> dict[str, np.ndarray]:
    """Read a state dict.

    Args:
      path: a .pth file of `model.state_dict()`, or of a training checkpoint with it; or a .safetensors file.
      anchor: a required name. If it has a prefix, such as "module.", the prefix is removed from all names, and names
        without it are omitted.

    Returns:
      Parameter name -> array, of the type stored.

    Raises:
      DataError: another format, damaged, not a state dict, without the anchor or with several, or a pickle that names
        anything but tensors.
    """
    path = Path(path)
    arrays = _read_arrays(path)
    if anchor is None or anchor in arrays:
        return arrays
    prefixes = [name.removesuffix(anchor) for name in arrays if name.endswith(f".{anchor}")]
    if len(prefixes) > 1:
        raise DataError(
            f"{path} has {anchor!r} with the prefixes {' and '.join(map(repr, sorted(prefixes)))}; save one of these "
            "networks in a separate file"
        )
    if not prefixes:
        names = ", ".join(map(repr, list(arrays)[:3]))
        raise DataError(
            f"{path} has no tensor {anchor!r}; its first names are {names}; is it another network, or a file for "
            "another importer?"
        )
    prefix = prefixes[0]
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read a state dict, with names unchanged."""
    if path.suffix == ".safetensors":
        try:
            return safetensors.numpy.load_file(path)
        except safetensors.SafetensorError as error:
            raise DataError(f"{path} is damaged, or not a safetensors file ({error})") from error
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        content = _read_zip(path) if start == b"PK\x03\x04" else _read_old(file, path)
    for key in ("state_dict", "model_state_dict", "model", "net", "network"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = content.items() if isinstance(content, dict) else ()
    arrays = {
        name: _materialize(tensor, f"{path}: {name}")
        for name, tensor in tensors
        if isinstance(name, str) and isinstance(tensor, _Tensor)
    }
    if not arrays:
        raise DataError(
            f"{path} contains {type(content).__name__} without tensors; expected a state dict "
            "(torch.save(model.state_dict(), PATH))"
        )
    return arrays


def _storage(pid: Any, known: dict[str, _Storage]) -> _Storage:
    """Make or find the storage of a persistent id."""
    kind, type_name, key, _, length, *view = pid
    if kind != "storage" or type_name not in STORAGE_TYPES or any(view):
        raise ValueError(f"persistent id {pid!r}")
    storage = _Storage(STORAGE_TYPES[type_name], int(length))
    return known.setdefault(str(key), storage)


def _fill(storage: _Storage, raw: bytes, path: Path, byte_order: str = "little") -> None:
    """Set the values of a storage."""
    expected = storage.length * storage.dtype.itemsize
    if len(raw) != expected:
        raise DataError(f"{path} is damaged: a storage has {len(raw)} bytes instead of {expected}")
    values = np.frombuffer(raw, storage.dtype)
    storage.values = values.byteswap() if byte_order == "big" else values


def _read_zip(path: Path) -> Any:
    """Read the zip format."""
    known: dict[str, _Storage] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            pickles = [name for name in names if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise DataError(f"{path} is a zip archive, but not one that torch.save wrote")
            root = pickles[0].removesuffix("data.pkl")
            order = "little"
            if f"{root}byteorder" in names:
                order = archive.read(f"{root}byteorder").decode("latin1")
            with archive.open(pickles[0]) as file:
                content = load_pickle(
                    file,
                    names=TORCH_NAMES,
                    path=path,
                    persistent_load=lambda pid: _storage(pid, known),
                )
            for key, storage in known.items():
                _fill(storage, archive.read(f"{root}data/{key}"), path, order)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError) as error:
        raise DataError(f"{path} is damaged ({error}); download it again") from error
    return content


def _read_old(file: BinaryIO, path: Path) -> Any:
    """Read the format before PyTorch 1.6: magic, version, system, object, storage keys, then raw storages."""
    not_torch = f"{path} was not written by torch.save, or is in one of its first formats. {RESAVE}"
    try:
        magic = load_pickle(file, names={}, path=path)
    except DataError as error:
        raise DataError(not_torch) from error
    if magic != OLD_MAGIC:
        raise DataError(not_torch)
    known: dict[str, _Storage] = {}
    load_pickle(file, names={}, path=path)  # version of the format
    system = load_pickle(file, names={}, path=path)
    if not isinstance(system, dict) or not system.get("little_endian", False):
        raise DataError(f"{path} was written on a big-endian machine. {RESAVE}")
    content = load_pickle(
        file,
        names=TORCH_NAMES,
        path=path,
        persistent_load=lambda pid: _storage(pid, known),
    )
    keys = load_pickle(file, names={}, path=path)
    for key in keys if isinstance(keys, list) else ():
        if key not in known:
            raise DataError(f"{path} is damaged: it lists a storage that nothing uses. {RESAVE}")
        length = int.from_bytes(file.read(8), "little")
        if length != known[key].length:
            raise DataError(f"{path} is damaged: a storage's length is {length}; download it again")
        _fill(known[key], file.read(length * known[key].dtype.itemsize), path)
    return content


def _materialize(tensor: _Tensor, where: str) -> np.ndarray:
    """Copy a strided view of its storage, after a check of its bounds."""
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    sane = all(isinstance(n, int) and n >= 0 for n in numbers)
    if not sane or len(tensor.shape) != len(tensor.strides) or tensor.storage.values is None:
        raise DataError(f"{where}: damaged tensor")
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, tensor.storage.dtype)
    steps = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((n - 1) * step for n, step in steps)
    if max(last + 1, math.prod(tensor.shape)) > tensor.storage.length:
        raise DataError(f"{where}: the tensor exceeds its storage")
    view = np.lib.stride_tricks.as_strided(
        tensor.storage.values[tensor.offset :],
        tensor.shape,
        [step * tensor.storage.dtype.itemsize for step in tensor.strides],
    )
    return view.copy()
