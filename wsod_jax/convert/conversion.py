"""Checks shared by all importers: files, hashes, names, shapes, values."""

from __future__ import annotations

import functools
import hashlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from wsod_jax.errors import DataError
from wsod_jax.nn.backbone import Backbone
from wsod_jax.types import Params

# First eight hex digits of the SHA-256 of published files -> (description, importer).
KNOWN_FILES = {
    "397923af": ("torchvision's VGG16 (RGB, mean and std)", "torchvision_vgg16"),
    "b8a52dc0": ("torchvision's SqueezeNet 1.1 (RGB, mean and std)", "torchvision_squeezenet1_1"),
    "f364aa15": ("torchvision's SqueezeNet 1.1 (RGB, mean and std)", "torchvision_squeezenet1_1"),
    "1378be20": ("torchvision's GoogLeNet (RGB, -1 to 1)", "torchvision_googlenet"),
    "57934424": ("EfficientNet-Lite0 (RGB, -1 to 1)", "efficientnet_lite0"),
    "00b39a1b": ("Caffe's VGG16 in PyTorch's names (BGR, mean only)", "caffe_vgg16"),
    "88682ab5": ("VGG16 features trained on RGB 0..255 minus the mean, a third convention", None),
}


VGG16_DENSE = {
    "fc6/kernel": (7 * 7 * 512, 4096),
    "fc6/bias": (4096,),
    "fc7/kernel": (4096, 4096),
    "fc7/bias": (4096,),
}


class SourceFile(NamedTuple):
    """An existing file to convert and its SHA-256 (hex)."""

    path: Path
    sha256: str

    def __str__(self) -> str:
        return f"{self.path.name} (sha256:{self.sha256})"


def open_source(path: str | Path, *, importer: str) -> SourceFile:
    """Check that a file exists, has the hash in its name, and belongs to `importer`.

    Names like "vgg16-397923af.pth" contain the first digits of the file's SHA-256; a name without them warns that
    the file cannot be checked.

    Raises:
      DataError: missing file, wrong hash, or a file known to belong to another importer, which would silently give
        wrong features.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"No file at {path} to convert. Download the weights first (wsod-jax convert_weights --help says where)"
        )
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    named = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", path.name)
    if named and not sha256.startswith(named[1]):
        raise DataError(
            f"{path} is damaged or renamed: its name says sha256 {named[1]}..., its content has {sha256[:8]}...; "
            "download it again, or remove the hash from its name if you changed it on purpose"
        )
    what, belongs_to = KNOWN_FILES.get(sha256[:8], (None, importer))
    if belongs_to != importer:
        advice = f"convert it with --from {belongs_to}" if belongs_to else "it cannot be imported"
        raise DataError(f"{path} is {what}; {advice}, not with --from {importer}")
    if not named and what is None:
        warnings.warn(
            f"{path.name} has no hash in its name, so its content could not be checked; it is read as {importer}",
            stacklevel=3,
        )
    return SourceFile(path, sha256)


def for_backbone(
    arrays: Mapping[str, np.ndarray],
    backbone: Backbone,
    source: SourceFile,
    *,
    with_fc: bool = False,
) -> tuple[Params, dict[str, Any]]:
    """Return a backbone's parameters, checked as by `as_params`, and their description for `save_weights`.

    Args:
      arrays: parameter path -> array; others than the backbone's parameters are ignored.
      backbone: the network.
      source: the file that they come from.
      with_fc: include VGG16's fc6 and fc7.
    """

    def last_map(module: Backbone, image: jax.Array) -> jax.Array:
        size = jnp.full((1, 2), image.shape[1])
        return module.last_map(module.network_input(image, size))

    image = jnp.zeros((1, 224, 224, 3))
    init = functools.partial(backbone.init, method=last_map)
    layout = jax.eval_shape(init, jax.random.key(0), image)["params"]
    shapes = {name: leaf.shape for name, leaf in flatten_dict(layout, sep="/").items()}
    params = as_params(arrays, shapes | VGG16_DENSE if with_fc else shapes, source)
    return params, {**backbone.description, "source": str(source)}


def as_params(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], source: SourceFile
) -> Params:
    """Check all arrays and nest them by parameter path as float32.

    Args:
      arrays: "fire2/squeeze1x1/kernel" -> array, in this library's layout.
      shapes: the same paths -> expected shapes.
      source: for messages.

    Raises:
      DataError: names missing, a shape differs, or a value is not finite.
    """
    missing = [name for name in shapes if name not in arrays]
    if missing:
        raise DataError(
            f"{source.path} lacks {len(missing)} of {len(shapes)} arrays, first {missing[0]}; is it another network, "
            "or a file for another importer?"
        )
    flat = {}
    for name, shape in shapes.items():
        array = np.asarray(arrays[name])
        if array.shape != shape:
            raise DataError(
                f"{source.path}: {name} has shape {array.shape}, expected {shape} ([rows, columns, in, out] or "
                "[in, out] after conversion); is it another network?"
            )
        flat[name] = array.astype(np.float32)
        if not np.all(np.isfinite(flat[name])):
            raise DataError(f"{source.path}: {name} has values that are not finite")
    return unflatten_dict(flat, sep="/")


def fold_batch_norm(
    state: Mapping[str, np.ndarray], conv: str, norm: str, path: Path, epsilon: float = 1e-3
) -> tuple[np.ndarray, np.ndarray]:
    """Return the kernel [out, in, rows, columns] and bias [out] that equal a convolution and batch normalization.

        γ·(w∗x − μ) / √(σ² + ε) + β = (γ/√(σ² + ε))·w ∗ x + (β − γμ/√(σ² + ε))

    Args:
      state: PyTorch's names -> arrays.
      conv: name of the convolution, which has no bias.
      norm: name of the batch normalization.
      path: for messages.
      epsilon: ε.

    Raises:
      DataError: a statistic is missing, of another length than the kernel, or invalid.
    """
    kernel = state[f"{conv}.weight"].astype(np.float64)
    statistics = []
    for part in ("weight", "bias", "running_mean", "running_var"):
        values = state.get(f"{norm}.{part}")
        if values is None or values.shape != kernel.shape[:1]:
            what = "is missing" if values is None else f"has shape {values.shape}"
            raise DataError(
                f"{path}: {norm}.{part} {what}, expected {kernel.shape[:1]}; is it another network?"
            )
        statistics.append(values.astype(np.float64))
    gamma, beta, mean, variance = statistics
    if not np.all(variance >= 0):
        raise DataError(f"{path}: {norm}.running_var has values below 0 or not finite")
    scale = gamma / np.sqrt(variance + epsilon)
    return kernel * scale.reshape(-1, *[1] * (kernel.ndim - 1)), beta - mean * scale


def conv_kernel(array: np.ndarray) -> np.ndarray:
    """Convert a kernel [out, in, rows, columns] (Caffe, PyTorch) to [rows, columns, in, out]."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def dense_kernel(array: np.ndarray) -> np.ndarray:
    """Convert a matrix [out, in] (Caffe, PyTorch) to [in, out]."""
    return array.T


def dense_kernel_from_map(array: np.ndarray, channels: int, side: int) -> np.ndarray:
    """Convert a matrix [out, in] over (channel, row, column) of a map to [in, out] over (row, column, channel).

    Args:
      array: [out, channels * side * side].
      channels: of the map.
      side: rows and columns of the map.
    """
    if array.ndim != 2 or array.shape[1] != channels * side * side:
        return array.T  # as_params reports the shape
    maps = array.reshape(-1, channels, side, side)
    return maps.transpose(2, 3, 1, 0).reshape(side * side * channels, -1)
