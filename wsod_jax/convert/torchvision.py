"""Import torchvision's ImageNet weights: RGB / 255, ImageNet mean and standard deviation; GoogLeNet RGB in -1..1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from wsod_jax.convert.conversion import (
    conv_kernel,
    dense_kernel,
    dense_kernel_from_map,
    fold_batch_norm,
    for_backbone,
    open_source,
)
from wsod_jax.convert.torch_file import read_torch_file
from wsod_jax.nn.googlenet import INCEPTIONS, GoogLeNet
from wsod_jax.nn.squeezenet import FIRES, SqueezeNet
from wsod_jax.nn.vgg import Vgg16
from wsod_jax.types import Params

# Positions of the convolutions in torchvision's `features`.
VGG16_FEATURES = dict(
    zip(Vgg16.layers, (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), strict=True)
)
SQUEEZENET_FEATURES = dict(zip(FIRES, (3, 4, 6, 7, 9, 10, 11, 12), strict=True))
GOOGLENET_BRANCHES = {  # layer of an inception module: torchvision's name in the module
    "branch1": "branch1",
    "branch2_reduce": "branch2.0",
    "branch2": "branch2.1",
    "branch3_reduce": "branch3.0",
    "branch3": "branch3.1",
    "branch4": "branch4.1",
}


def convert_vgg16(path: str | Path, *, with_fc: bool = True) -> tuple[Params, dict[str, Any]]:
    """Read torchvision's VGG16, fc6 and fc7 (its classifier.0 and classifier.3) included.

    Args:
      path: vgg16-397923af.pth, or a similar file.
      with_fc: False omits fc6 and fc7, for networks with another box head.

    Returns:
      params: conv1_1 to conv5_3, fc6, fc7; fc6 takes maps flattened by row, column, channel.
      meta: description for `save_weights`.

    Raises:
      DataError: the file is missing, damaged, of another network, or of another channel order.
    """
    source = open_source(path, importer="torchvision_vgg16")
    arrays = vgg16_from_torch_names(read_torch_file(source.path, "features.0.weight"))
    return for_backbone(arrays, Vgg16(preprocessing="torch"), source, with_fc=with_fc)


def convert_squeezenet(path: str | Path) -> tuple[Params, dict[str, Any]]:
    """Read torchvision's SqueezeNet 1.1 up to fire9; its pooling rounds up.

    Args:
      path: squeezenet1_1-b8a52dc0.pth, or a similar file.

    Returns:
      params: conv1 and fire2 to fire9.
      meta: description for `save_weights`.

    Raises:
      DataError: the file is missing, damaged, or of another network.
    """
    source = open_source(path, importer="torchvision_squeezenet1_1")
    state = read_torch_file(source.path, "features.0.weight")
    positions = {"conv1": "features.0"}
    for fire, position in SQUEEZENET_FEATURES.items():
        for layer in ("squeeze", "expand1x1", "expand3x3"):
            name = "squeeze1x1" if layer == "squeeze" else layer
            positions[f"{fire}/{name}"] = f"features.{position}.{layer}"
    arrays = {}
    for name, place in positions.items():
        if f"{place}.weight" in state:
            arrays[f"{name}/kernel"] = conv_kernel(state[f"{place}.weight"])
        if f"{place}.bias" in state:
            arrays[f"{name}/bias"] = state[f"{place}.bias"]
    return for_backbone(arrays, SqueezeNet(preprocessing="torch", ceil_mode=True), source)


def convert_googlenet(path: str | Path) -> tuple[Params, dict[str, Any]]:
    """Read torchvision's GoogLeNet up to inception5b and fold its batch normalization into kernels and biases.

    The pretrained network converts torchvision's usual pixels to RGB / 127.5 − 1 first (`transform_input`), so its
    preprocessing here is "tf". Auxiliary classifiers and the last layer are omitted.

    Args:
      path: googlenet-1378be20.pth, or a similar file.

    Returns:
      params: conv1 to conv3 and inception3a to inception5b.
      meta: description for `save_weights`.

    Raises:
      DataError: the file is missing, damaged, or of another network.
    """
    source = open_source(path, importer="torchvision_googlenet")
    state = read_torch_file(source.path, "conv1.conv.weight")
    places = {name: name for name in ("conv1", "conv2", "conv3")}
    for module in INCEPTIONS:
        for layer, place in GOOGLENET_BRANCHES.items():
            places[f"{module}/{layer}"] = f"{module}.{place}"
    arrays = {}
    for name, place in places.items():
        if f"{place}.conv.weight" in state:
            kernel, bias = fold_batch_norm(state, f"{place}.conv", f"{place}.bn", source.path)
            arrays[f"{name}/kernel"], arrays[f"{name}/bias"] = conv_kernel(kernel), bias
    return for_backbone(arrays, GoogLeNet(ends_at="inception5b"), source)


def vgg16_from_torch_names(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Convert VGG16's tensors from torchvision's module positions to this library's names and layout."""
    arrays = {}
    for name, position in VGG16_FEATURES.items():
        if f"features.{position}.weight" in state:
            arrays[f"{name}/kernel"] = conv_kernel(state[f"features.{position}.weight"])
        if f"features.{position}.bias" in state:
            arrays[f"{name}/bias"] = state[f"features.{position}.bias"]
    if "classifier.0.weight" in state:
        arrays["fc6/kernel"] = dense_kernel_from_map(state["classifier.0.weight"], 512, 7)
    if "classifier.3.weight" in state:
        arrays["fc7/kernel"] = dense_kernel(state["classifier.3.weight"])
    for name, position in (("fc6", 0), ("fc7", 3)):
        if f"classifier.{position}.bias" in state:
            arrays[f"{name}/bias"] = state[f"classifier.{position}.bias"]
    return arrays
