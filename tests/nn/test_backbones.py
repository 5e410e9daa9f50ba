"""Backbones: canvases are inert, sizes are exact, frozen layers stop gradients at the parameters only."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn.cases import apply, image_batch, init
from wsod_jax.errors import ConfigError
from wsod_jax.nn.cnn_s import CnnS
from wsod_jax.nn.efficientnet_lite import EfficientNetLite0
from wsod_jax.nn.googlenet import GoogLeNet
from wsod_jax.nn.squeezenet import SqueezeNet
from wsod_jax.nn.tiny import TinyNet
from wsod_jax.nn.vgg import Vgg16

BACKBONES = {
    "tiny8": TinyNet(widths=(4, 8, 8, 8)),
    "tiny4": TinyNet(widths=(4, 8, 8, 8), stride=4),
    "squeezenet16": SqueezeNet(),
    "squeezenet8": SqueezeNet(stride=8),
    "squeezenet_ceil": SqueezeNet(ceil_mode=True, preprocessing="torch"),
    "vgg8": Vgg16(),
    "vgg16": Vgg16(dilated=False, preprocessing="torch"),
    "cnn_s": CnnS(),
    "lite0": EfficientNetLite0(),
    "lite0_32": EfficientNetLite0(ends_at=12, preprocessing="torch"),
    "googlenet16": GoogLeNet(),
    "googlenet_caffe": GoogLeNet(
        preprocessing="caffe", ends_at="inception5b", branch3_kernel=5, pool4_window=3, lrn=True
    ),
}


def random_params(backbone, seed=0):
    """Give every parameter, biases too, a value that keeps activations alive."""
    shapes = jax.eval_shape(
        lambda: init(backbone, jax.random.key(0), jnp.zeros((1, 64, 64, 3)), jnp.array([[64, 64]]))
    )
    rng = np.random.default_rng(seed)

    def draw(leaf):
        scale = (2.0 / np.prod(leaf.shape[:-1])) ** 0.5 if leaf.ndim > 1 else 0.1
        return jnp.asarray(rng.normal(0, scale, leaf.shape), leaf.dtype)

    return jax.tree.map(draw, shapes)


def on_canvas(image, height, width):
    """Put `image` into the corner of a canvas filled with rubbish."""
    canvas = np.full((height, width, 3), 211, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


@pytest.mark.parametrize("name", BACKBONES)
def test_canvas_is_inert(name):
    backbone = BACKBONES[name]
    params = random_params(backbone)
    rng = np.random.default_rng(1)
    sizes = np.array([[37, 52], [40, 41], [57, 71]], np.int32)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    run = jax.jit(functools.partial(apply, backbone))
    padded = run(params, np.stack([on_canvas(image, 57, 71) for image in images]), sizes)
    np.testing.assert_array_equal(padded.size, backbone.output_size(sizes))
    assert tuple(padded.size[2]) == padded.features.shape[1:3]
    for i in (0, 1):
        exact = run(params, images[i][None], sizes[i : i + 1])
        rows, columns = map(int, exact.size[0])
        assert exact.features.shape[1:3] == (rows, columns) == tuple(padded.size[i])
        scale = float(jnp.abs(exact.features).max())
        assert scale > 0.1 and min(rows, columns) > 0
        np.testing.assert_allclose(
            padded.features[i, :rows, :columns], exact.features[0], atol=1e-5 * max(scale, 1.0)
        )
        assert not np.any(padded.features[i, rows:])
        assert not np.any(padded.features[i, :, columns:])


@pytest.mark.parametrize("name", BACKBONES)
def test_shapes_names_and_facts(name):
    backbone = BACKBONES[name]
    image = jnp.zeros((2, 64, 96, 3), jnp.uint8)
    size = jnp.array([[64, 96], [33, 47]])
    variables = jax.eval_shape(lambda: init(backbone, jax.random.key(0), image, size))
    maps = jax.eval_shape(functools.partial(apply, backbone), variables, image, size)
    assert maps.stride == backbone.stride
    assert set(variables["params"]) == set(backbone.layers)
    assert maps.features.shape[-1] == backbone.channels
    assert maps.features.dtype == jnp.float32
    assert maps.size.shape == (2, 2) and maps.size.dtype == jnp.int32
    assert maps.features.shape[1:3] == tuple(backbone.output_size(jnp.array([[64, 96]]))[0])
    assert backbone.description["preprocessing"] == backbone.preprocessing


@pytest.mark.parametrize(
    "backbone, frozen, free",
    [
        (
            TinyNet(widths=(4, 8, 8, 8), frozen=("conv1", "conv2_1")),
            {"conv1_1", "conv1_2", "conv2_1"},
            5,
        ),
        (SqueezeNet(frozen=("conv1", "fire2")), {"conv1", "fire2"}, 7),
        (
            EfficientNetLite0(ends_at=2, frozen=("stem", "block0", "standardize")),
            {"stem", "block0", "standardize2"},
            2,
        ),
        (CnnS(frozen=("conv1", "conv2")), {"conv1", "conv2"}, 3),
        (
            GoogLeNet(frozen=("conv", "inception3", "inception4a")),
            {"conv1", "conv2", "conv3", "inception3a", "inception3b", "inception4a"},
            4,
        ),
    ],
    ids=["tiny", "squeezenet", "lite0", "cnn_s", "googlenet"],
)
def test_frozen_layers_get_no_gradient_but_pass_it_on(backbone, frozen, free):
    """And a margin of NaN neither leaks into gradients nor gets one."""
    params = random_params(backbone)
    pixels = np.random.default_rng(2).uniform(0, 255, (1, 48, 48, 3))
    pixels[:, 41:], pixels[:, :, 46:] = np.nan, np.nan
    image, size = jnp.asarray(pixels, jnp.float32), jnp.array([[41, 46]])

    def total(params, image):
        return jnp.sum(apply(backbone, params, image, size).features)

    grads, image_grad = jax.jit(jax.grad(total, argnums=(0, 1)))(params, image)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((grads, image_grad)))
    assert np.any(image_grad[:, :41, :46])
    assert not np.any(image_grad[:, 41:]) and not np.any(image_grad[:, :, 46:])
    moved = {
        layer
        for layer, tree in grads["params"].items()
        if any(np.any(leaf) for leaf in jax.tree.leaves(tree))
    }
    assert moved == set(backbone.layers) - frozen
    assert len(moved) == free


def test_image_smaller_than_one_cell():
    for name in ("tiny8", "squeezenet16", "lite0", "cnn_s", "googlenet16"):
        backbone = BACKBONES[name]
        maps = jax.jit(functools.partial(apply, backbone))(
            random_params(backbone), jnp.full((1, 48, 48, 3), 9, jnp.uint8), jnp.array([[1, 1]])
        )
        rows = {"tiny8": 1, "lite0": 1}.get(name, 0)
        np.testing.assert_array_equal(maps.size, [[rows, rows]])
        assert np.all(np.isfinite(maps.features)) and not np.any(maps.features[:, rows:])


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    backbone = TinyNet(widths=(4, 8, 8, 8), dtype=jnp.bfloat16)
    image, size = jnp.zeros((1, 32, 32, 3), jnp.uint8), jnp.array([[32, 32]])
    variables = jax.eval_shape(lambda: init(backbone, jax.random.key(0), image, size))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    maps = jax.eval_shape(functools.partial(apply, backbone), variables, image, size)
    assert maps.features.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "backbone, found",
    [
        (TinyNet(frozen=("fire",)), "fire.*conv1_1"),
        (TinyNet(preprocessing="keras"), "keras.*torch"),
        (EfficientNetLite0(frozen=("block11",)), "block11.*standardize10"),
        (GoogLeNet(frozen=("inception5a",)), "inception5a.*inception4e"),
    ],
)
def test_impossible_fields_are_config_errors(backbone, found):
    with pytest.raises(ConfigError, match=found):
        init(backbone, jax.random.key(0), jnp.zeros((1, 16, 16, 3)), jnp.array([[16, 16]]))


def test_published_sizes_of_maps():
    for backbone, pixels, cells in (
        (CnnS(), 224, 17),
        (GoogLeNet(), 224, 14),
        (GoogLeNet(ends_at="inception5b"), 224, 7),
        (GoogLeNet(ends_at="inception5b", pool4_window=3), 224, 7),
        (Vgg16(dilated=False), 224, 14),
        (Vgg16(), 224, 28),
        (EfficientNetLite0(), 224, 14),
        (EfficientNetLite0(ends_at=15), 224, 7),
    ):
        found = backbone.output_size(np.array([[pixels, pixels]]))
        np.testing.assert_array_equal(found, [[cells, cells]])
    assert GoogLeNet().channels == 832 and GoogLeNet(ends_at="inception5b").channels == 1024


def test_features_that_a_batch_brings_are_returned_as_they_are():
    backbone = TinyNet(widths=(4, 8, 8, 8))
    batch = image_batch(jnp.zeros((1, 32, 32, 3)), [[32, 32]])
    maps = backbone.apply(backbone.init(jax.random.key(0), batch), batch)
    brought = {"c5": maps["c5"].replace(features=maps["c5"].features + 1)}
    assert backbone.apply({}, batch.replace(image=None, features=brought)) is brought
