"""Import keras-squeezenet's SqueezeNet 1.1: blue, green, red, 0..255 minus the mean, pooling rounds down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wsod_jax.convert.conversion import for_backbone, open_source
from wsod_jax.errors import DataError
from wsod_jax.files import read_npz
from wsod_jax.nn.squeezenet import SqueezeNet
from wsod_jax.train.weights import META_KEY
from wsod_jax.types import Params

MEAN = (103.939, 116.779, 123.68)  # blue, green, red


def convert_squeezenet(path: str | Path) -> tuple[Params, dict[str, Any]]:
    """Read an npz with keys "<layer>/kernel" and "<layer>/bias", kernels [rows, columns, in, out].

    Args:
      path: npz made from keras-squeezenet's HDF5 file.

    Returns:
      params: conv1 and fire2 to fire9.
      meta: description for `save_weights`.

    Raises:
      DataError: the file is missing, damaged, already converted, or of another network.
    """
    source = open_source(path, importer="keras_squeezenet_npz")
    arrays = read_npz(source.path, advice="Make it again from the HDF5 file.")
    if META_KEY in arrays:
        raise DataError(f"{path} is already converted; use it as it is")
    return for_backbone(arrays, SqueezeNet(mean=MEAN), source)
