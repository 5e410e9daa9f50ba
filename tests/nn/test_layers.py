"""Pooling against an oracle, convolution against a loop over its kernel, pixel conventions by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles.pooling import max_pool as oracle_pool
from wsod_jax.errors import ConfigError
from wsod_jax.nn.backbone import normalize_pixels
from wsod_jax.nn.layers import (
    ConvRelu,
    clear_margin,
    local_response_norm,
    max_pool,
    same_conv,
    valid_mask,
)
from wsod_jax.types import FeatureMap


@pytest.mark.parametrize(
    "window, stride, ceil_mode, pad",
    [
        (2, 2, True, 0),
        (2, 2, False, 0),
        (3, 2, True, 0),
        (3, 2, False, 0),
        (3, 3, True, 0),
        (3, 1, False, 1),
        (3, 2, False, 1),
    ],
)
def test_max_pool_equals_oracle_at_every_size(window, stride, ceil_mode, pad):
    rng = np.random.default_rng(0)
    sizes = np.array([(h, w) for h in range(0, 8) for w in (0, 1, 2, 5, 6, 7)], np.int32)
    x = -1 - rng.random((len(sizes), 7, 7, 2), np.float32)  # negative: a margin of zeros would win
    pool = functools.partial(max_pool, window=window, stride=stride, ceil_mode=ceil_mode, pad=pad)
    maps = jax.jit(pool)(FeatureMap(jnp.asarray(x), jnp.asarray(sizes), 8.0))
    for i, size in enumerate(sizes):
        expected = oracle_pool(x[i], size, window, stride, ceil_mode, pad)
        rows, columns, _ = expected.shape
        np.testing.assert_array_equal(maps.size[i], (rows, columns))
        np.testing.assert_array_equal(maps.features[i, :rows, :columns], expected)
        assert not np.any(maps.features[i, rows:]) and not np.any(maps.features[i, :, columns:])


def test_max_pool_gradient_goes_to_the_first_of_equals():
    x = jnp.array([[1.0, 2.0, 5.0], [2.0, 2.0, 5.0], [0.0, 0.0, 9.0]])[None, :, :, None]

    def total(x):
        maps = max_pool(FeatureMap(x, jnp.array([[3, 3]]), 8.0), window=2, stride=2, ceil_mode=True)
        return jnp.sum(maps.features * jnp.array([[1.0, 10.0], [100.0, 1000.0]])[None, :, :, None])

    expected = [[0, 1, 10], [0, 0, 0], [100, 0, 1000]]
    np.testing.assert_array_equal(jax.jit(jax.grad(total))(x)[0, :, :, 0], expected)


@pytest.mark.parametrize(
    "stride, dilation, pad, groups",
    [(1, 1, None, 1), (1, 2, None, 1), (2, 1, 0, 1), (2, 1, 1, 1), (1, 1, None, 2), (2, 2, 1, 3)],
)
def test_conv_equals_a_loop_over_the_kernel(stride, dilation, pad, groups):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 9, 8, 6), np.float32)
    size = np.array([[9, 8], [6, 5]], np.int32)
    layer = ConvRelu(12, stride=stride, dilation=dilation, pad=pad, groups=groups)
    kernel = rng.standard_normal((3, 3, 6 // groups, 12), np.float32)
    bias = rng.standard_normal(12, np.float32)
    maps = FeatureMap(clear_margin(jnp.asarray(x), jnp.asarray(size)), jnp.asarray(size), 8.0)
    out = layer.apply({"params": {"kernel": kernel, "bias": bias}}, maps)
    p = dilation if pad is None else pad
    for i, (h, w) in enumerate(size):
        padded = np.pad(x[i, :h, :w], ((p, p), (p, p), (0, 0)))
        rows = (h + 2 * p - 2 * dilation - 1) // stride + 1
        columns = (w + 2 * p - 2 * dilation - 1) // stride + 1
        expected = np.zeros((rows, columns, 12)) + bias
        for a, b, out_channel in np.ndindex(3, 3, 12):
            cells = padded[a * dilation :: stride, b * dilation :: stride][:rows, :columns]
            first = out_channel // (12 // groups) * (6 // groups)  # of the input group
            weights = kernel[a, b, :, out_channel]
            expected[..., out_channel] += cells[..., first : first + 6 // groups] @ weights
        np.testing.assert_array_equal(out.size[i], (rows, columns))
        np.testing.assert_allclose(
            out.features[i, :rows, :columns], np.maximum(expected, 0), atol=1e-4
        )
        assert not np.any(out.features[i, rows:]) and not np.any(out.features[i, :, columns:])


@pytest.mark.parametrize("window, depth", [(5, 7), (5, 2), (3, 4), (1, 3)])
def test_local_response_norm_equals_a_loop_over_channels(window, depth):
    rng = np.random.default_rng(3)
    x = rng.uniform(0, 30, (2, 3, 4, depth)).astype(np.float32)
    size = jnp.array([[3, 4], [2, 1]])
    maps = FeatureMap(clear_margin(jnp.asarray(x), size), size, 8.0)
    out = local_response_norm(maps, window=window, alpha=0.4, beta=0.75, k=2.0)
    expected = np.zeros(x.shape)
    for i, y, z, c in np.ndindex(x.shape):
        near = range(max(c - window // 2, 0), min(c + window // 2 + 1, depth))
        norm = 2 + 0.4 / window * sum(float(maps.features[i, y, z, n]) ** 2 for n in near)
        expected[i, y, z, c] = maps.features[i, y, z, c] / norm**0.75
    np.testing.assert_allclose(out.features, expected, rtol=1e-5)
    assert not np.any(out.features[1, 2:]) and not np.any(out.features[1, :, 1:])
    np.testing.assert_array_equal(out.size, size)


def test_local_response_norm_sums_squares_in_float32():
    """Squares of values below 256, and the differences of their sums, are lost in bfloat16."""
    values = np.array([255.0, 1.0, 3.0, 0.5, 254.0])
    x = jnp.asarray(values, jnp.bfloat16).reshape(1, 1, 1, 5)
    maps = FeatureMap(x, jnp.array([[1, 1]]), 8.0)
    out = local_response_norm(maps, window=3, alpha=3.0, beta=0.5, k=0.25)
    assert out.features.dtype == jnp.bfloat16
    total = np.convolve(values**2, np.ones(3), "same")
    exact = jnp.asarray(values / np.sqrt(0.25 + total), jnp.bfloat16)
    np.testing.assert_array_equal(out.features[0, 0, 0], exact)


def init_conv(depth=8, **options):
    maps = FeatureMap(jnp.zeros((1, 4, 4, depth)), jnp.array([[4, 4]]), 8.0)
    return ConvRelu(64, **options).init(jax.random.key(0), maps)["params"]


@pytest.mark.parametrize("groups", [1, 2])
def test_uniform_initializer_draws_kernel_and_bias_within_the_same_bound(groups):
    params = init_conv(groups=groups, initializer="uniform")
    bound = (3 * 3 * 8 / groups) ** -0.5
    assert params["kernel"].shape == (3, 3, 8 // groups, 64)
    for leaf, closeness in ((params["kernel"], 0.02), (params["bias"], 0.1)):
        assert np.abs(leaf).max() == pytest.approx(bound, rel=closeness)
        assert np.abs(leaf).max() <= bound
        assert np.std(leaf) == pytest.approx(bound / 3**0.5, rel=3 * closeness)


def test_he_initializer_is_normal_with_zero_bias():
    params = init_conv()
    assert not np.any(params["bias"])
    assert np.std(params["kernel"]) == pytest.approx((2 / 72) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"groups": 3}, "8 .*64 .*3 "),
        ({"groups": 5, "depth": 5}, "5 .*64 .*5 "),
        ({"groups": 0}, "0 groups"),
        ({"initializer": "xavier"}, "xavier.*he, uniform"),
    ],
)
def test_impossible_convolutions_are_config_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        init_conv(**options)


def test_valid_mask():
    mask = valid_mask(jnp.array([[2, 1], [0, 3]]), 3, 3)[..., 0]
    expected = [[[1, 0, 0], [1, 0, 0], [0, 0, 0]], np.zeros((3, 3))]
    np.testing.assert_array_equal(mask, np.array(expected, bool))


def test_caffe_pixels_are_blue_first_minus_mean():
    image = np.array([[[10, 20, 30], [9, 9, 9]]], np.uint8)[None]
    x = normalize_pixels(image, jnp.array([[1, 1]]), preprocessing="caffe", mean=(1.0, 2.0, 3.5))
    np.testing.assert_array_equal(x[0, 0], [[29, 18, 6.5], [0, 0, 0]])
    assert x.dtype == jnp.float32


def test_torchvision_pixels_are_standardized():
    image = np.array([[[255, 0, 51]]], np.float32)[None]
    x = normalize_pixels(image, jnp.array([[1, 1]]), preprocessing="torch")
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(x[0, 0, 0], expected, rtol=1e-6)


def test_inception_pixels_reach_from_minus_one_to_one():
    image = np.array([[[255, 0, 51], [127.5, 127.5, 127.5], [7, 7, 7]]], np.float32)[None]
    x = normalize_pixels(image, jnp.array([[1, 2]]), preprocessing="tf")
    np.testing.assert_allclose(x[0, 0], [[1, -1, -0.6], [0, 0, 0], [0, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize("kernel, dilation", [(1, 1), (3, 1), (3, 2), (5, 1)])
def test_gradient_of_a_convolution_is_that_of_the_plain_one(kernel, dilation):
    rng = np.random.default_rng(kernel + dilation)
    x, grad = (jnp.asarray(rng.normal(size=(2, 7, 9, d)), jnp.float32) for d in (4, 6))
    weights = jnp.asarray(rng.normal(size=(kernel, kernel, 4, 6)), jnp.float32)
    ours = jax.vjp(lambda x, w: same_conv(x, w, dilation), x, weights)[1](grad)
    plain = jax.vjp(lambda x, w: same_conv.fun(x, w, dilation), x, weights)[1](grad)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
