"""Import Caffe's VGG16, VGG-CNN-S and GoogLeNet: blue, green, red, 0..255 minus the mean, no scaling.

Reading a .caffemodel needs Caffe, but exports of it do not. Supported are

- .npz, .npy and .pkl files with a dict of arrays, flat or nested, by Caffe's layer names: conv1_1_w and conv1_1_b
  (Detectron, also under "blobs"), conv1_1/weights and conv1_1/biases, conv1_1.weight and conv1_1.bias, or a list
  [weights, bias] per layer as in net.params;
- .pth files with the same names or, VGG16 only, with torchvision's (features.0.weight), as in several PyTorch
  detectors.

Kernels may be [out, in, rows, columns], as in Caffe, or [rows, columns, in, out], as in TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsod_jax.convert.conversion import (
    conv_kernel,
    dense_kernel,
    dense_kernel_from_map,
    for_backbone,
    open_source,
)
from wsod_jax.convert.restricted_pickle import load_pickle
from wsod_jax.convert.torch_file import read_torch_file
from wsod_jax.convert.torchvision import vgg16_from_torch_names
from wsod_jax.errors import DataError
from wsod_jax.files import read_npz
from wsod_jax.nn.cnn_s import CnnS
from wsod_jax.nn.googlenet import INCEPTIONS, GoogLeNet
from wsod_jax.nn.vgg import Vgg16
from wsod_jax.types import Params

# Blue, green, red.
VGG16_MEAN = (102.9801, 115.9465, 122.7717)  # as in Fast R-CNN and its descendants
CNN_S_MEAN = (103.939, 116.779, 123.68)  # average of the mean image that comes with the weights
GOOGLENET_MEAN = (104.0, 117.0, 123.0)
GOOGLENET_STEM = {"conv1": "conv1/7x7_s2", "conv2": "conv2/3x3_reduce", "conv3": "conv2/3x3"}
GOOGLENET_BRANCHES = {  # layer of an inception module: Caffe's name for it
    "branch1": "1x1",
    "branch2_reduce": "3x3_reduce",
    "branch2": "3x3",
    "branch3_reduce": "5x5_reduce",
    "branch3": "5x5",
    "branch4": "pool_proj",
}
KERNEL_ENDINGS = ("_w", "/weights", "/weight", "/kernel", ".weight", "/0")
BIAS_ENDINGS = ("_b", "/biases", "/bias", ".bias", "/1")


def convert_vgg16(path: str | Path, *, with_fc: bool = True) -> tuple[Params, dict[str, Any]]:
    """Read an export of Caffe's VGG16, fc6 and fc7 included.

    Args:
      path: .npz, .npy, .pkl or .pth; pickles are read without executing code in them.
      with_fc: False omits fc6 and fc7, for networks with another box head.

    Returns:
      params: conv1_1 to conv5_3, fc6, fc7; fc6 takes maps flattened by row, column, channel.
      meta: description for `save_weights`.

    Raises:
      DataError: the file is missing, damaged, of another network, or of another channel order.
    """
    source = open_source(path, importer="caffe_vgg16")
    blobs = _read_blobs(source.path)
    if "features.0.weight" in blobs:
        arrays = vgg16_from_torch_names(blobs)
    else:
        names = {layer: layer for layer in (*Vgg16.layers, "fc6", "fc7")}
        arrays = _from_caffe_names(blobs, names, first_kernel=(3, 3, 3, 64))
    return for_backbone(arrays, Vgg16(mean=VGG16_MEAN), source, with_fc=with_fc)


def convert_cnn_s(path: str | Path) -> tuple[Params, dict[str, Any]]:
    """Read the convolutions of an export of VGG_CNN_S.

    VGG_CNN_M, another network, has kernels of the same shapes: its files cannot be distinguished.

    Args:
      path: .npz, .npy, .pkl or .pth; pickles are read without executing code in them.

    Returns:
      params: conv1 to conv5.
      meta: description for `save_weights`.

    Raises:
      DataError: the file is missing, damaged, or of another network.
    """
    source = open_source(path, importer="caffe_cnn_s")
    names = {layer: layer for layer in CnnS.layers}
    arrays = _from_caffe_names(_read_blobs(source.path), names, first_kernel=(7, 7, 3, 96))
    return for_backbone(arrays, CnnS(mean=CNN_S_MEAN), source)


def convert_googlenet(path: str | Path) -> tuple[Params, dict[str, Any]]:
    """Read the convolutions of an export of BVLC's GoogLeNet, without its classifiers.

    Args:
      path: .npz, .npy, .pkl or .pth; pickles are read without executing code in them.

    Returns:
      params: conv1 to conv3 and inception3a to inception5b; third branches have 5x5 kernels.
      meta: description for `save_weights`.

    Raises:
      DataError: the file is missing, damaged, or of another network.
    """
    source = open_source(path, importer="caffe_googlenet")
    names = dict(GOOGLENET_STEM)
    for module in INCEPTIONS:
        for layer, name in GOOGLENET_BRANCHES.items():
            names[f"{module}/{layer}"] = f"{module.replace('inception', 'inception_')}/{name}"
    arrays = _from_caffe_names(_read_blobs(source.path), names, first_kernel=(7, 7, 3, 64))
    backbone = GoogLeNet(
        preprocessing="caffe",
        mean=GOOGLENET_MEAN,
        ends_at="inception5b",
        branch3_kernel=5,
        pool4_window=3,
        lrn=True,
    )
    return for_backbone(arrays, backbone, source)


def _read_blobs(path: Path) -> dict[str, np.ndarray]:
    """Read any of the formats into name -> array, nested names joined by "/"."""
    if path.suffix in (".pth", ".safetensors"):
        return read_torch_file(path)
    if path.suffix == ".npz":
        return read_npz(path, advice="Export it again.")
    if path.suffix not in (".npy", ".pkl"):
        raise DataError(
            f"{path} ends in {path.suffix!r}; allowed are .npz, .npy, .pkl, .pth and .safetensors (see "
            "wsod-jax convert_weights --help for how to export a .caffemodel)"
        )
    with path.open("rb") as file:
        if path.suffix == ".npy":
            _skip_npy_header(file, path)
        content = load_pickle(file, path=path)
    if path.suffix == ".npy" and isinstance(content, list) and len(content) == 1:
        content = content[0]  # the dict in an array of objects
    if not isinstance(content, dict):
        raise DataError(f"{path} contains {type(content).__name__}; expected a dict of arrays")
    if isinstance(content.get("blobs"), dict):
        content = content["blobs"]
    return dict(_flatten(content))


def _skip_npy_header(file: Any, path: Path) -> None:
    """Advance to the pickle behind the header of an object array."""
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        _, _, dtype = read_header(file)
    except (ValueError, KeyError) as error:
        raise DataError(f"{path} is not a .npy file ({error})") from error
    if not dtype.hasobject:
        raise DataError(f"{path} contains a plain array of {dtype}; expected a dict of arrays")


def _flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays of nested dicts and lists with their joined names."""
    if isinstance(tree, np.ndarray) and tree.dtype != object:
        yield prefix, tree
    elif isinstance(tree, (list, tuple)):
        yield from _flatten(dict(enumerate(tree)), prefix)
    elif isinstance(tree, dict):
        for name, branch in tree.items():
            yield from _flatten(branch, f"{prefix}/{name}" if prefix else str(name))


def _from_caffe_names(
    blobs: dict[str, np.ndarray], names: Mapping[str, str], *, first_kernel: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Find each layer's blobs under any of the spellings and convert them to this library's layout.

    Args:
      blobs: name in the file -> array.
      names: this library's name of a layer -> Caffe's, the network's first layer first.
      first_kernel: shape of the first layer's kernel as [rows, columns, in, out]; if the file's has this shape, no
        kernel of it is transposed.
    """
    arrays = {}
    channels_last = None
    for layer, name in names.items():
        kernel = next((blobs[name + end] for end in KERNEL_ENDINGS if name + end in blobs), None)
        bias = next((blobs[name + end] for end in BIAS_ENDINGS if name + end in blobs), None)
        if channels_last is None and kernel is not None:
            channels_last = kernel.shape == first_kernel
        if kernel is not None:
            arrays[f"{layer}/kernel"] = kernel if channels_last else _to_last(layer, kernel)
        if bias is not None:
            arrays[f"{layer}/bias"] = bias.reshape(-1)
    return arrays


def _to_last(layer: str, kernel: np.ndarray) -> np.ndarray:
    """Convert a kernel from Caffe's order of axes to this library's."""
    if layer not in ("fc6", "fc7"):
        return conv_kernel(kernel)
    kernel = kernel.reshape(kernel.shape[-2:])  # old Caffe: [1, 1, out, in]
    return dense_kernel_from_map(kernel, 512, 7) if layer == "fc6" else dense_kernel(kernel)
