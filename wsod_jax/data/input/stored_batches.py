"""Batches stored in a file, for machines without TensorFlow.

A file of batches is an .npz with one array per leaf of a `Batch`, named "<number>/<path>", such as
"00000003/views/scale". Cues are not stored: they belong to one update of one run.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wsod_jax.errors import DataError
from wsod_jax.files import BAD_NPZ, atomic_write
from wsod_jax.types import Batch, FeatureMap, Photometric, Targets, Views

_REQUIRED = {"image_size", "image_mask", "image_index", "views/scale"}


def save_batches(batches: Iterable[Batch], path: str | Path) -> int:
    """Write batches to an .npz file, one at a time, atomically.

    Args:
      batches: finite; only one is in memory at a time.
      path: the file to write.

    Returns:
      The number of batches.
    """
    number = -1
    with atomic_write(path, "wb") as whole, zipfile.ZipFile(whole, "w") as archive:
        for number, batch in enumerate(batches):  # noqa: B007
            for name, value in _flat(batch.replace(cues=None)).items():
                with archive.open(f"{number:08d}/{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asarray(value), allow_pickle=False)
    return number + 1


def play_batches(path: str | Path) -> Iterator[Batch]:
    """Yield the batches of a file in order, once.

    Raises:
      DataError: if the file is missing, or does not contain batches.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file of batches; write one with save_batches.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            grouped: dict[str, list[str]] = {}
            for key in arrays.files:
                grouped.setdefault(key.partition("/")[0], []).append(key)
            for number in sorted(grouped):
                values = {key.partition("/")[2]: arrays[key] for key in grouped[number]}
                if not _REQUIRED <= values.keys():
                    raise DataError(
                        f"{path}: {number!r} is not a batch; it contains {sorted(values)}."
                    )
                yield _batch(values, path)
    except DataError:
        raise
    except BAD_NPZ as error:
        raise DataError(f"{path}: not a readable file of batches ({error}).") from error


def _flat(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Return the arrays of a batch by path, including static fields; `None` is omitted."""
    fields = tree if isinstance(tree, dict) else vars(tree)
    flat: dict[str, np.ndarray] = {}
    for name, value in fields.items():
        if isinstance(value, dict) or dataclasses.is_dataclass(value):
            flat |= _flat(value, f"{prefix}{name}/")
        elif value is not None:
            flat[f"{prefix}{name}"] = value
    return flat


def _batch(values: dict[str, np.ndarray], path: Path) -> Batch:
    """Return the batch from its arrays by path: the inverse of `_flat`."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *parents, leaf = name.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    try:
        jitter = nested["views"].pop("photometric", None)
        if jitter is not None:
            jitter = Photometric(jitter["factors"], str(jitter["space"]))
        nested["views"] = Views(**nested["views"], photometric=jitter)
        if "targets" in nested:
            nested["targets"] = Targets(**nested["targets"])
        if "features" in nested:
            nested["features"] = {
                name: FeatureMap(fields["features"], fields["size"], float(fields["stride"]))
                for name, fields in nested["features"].items()
            }
        return Batch(**{"image": None, **nested})
    except (TypeError, KeyError) as error:
        raise DataError(f"{path}: not a file of batches of this version ({error}).") from error
