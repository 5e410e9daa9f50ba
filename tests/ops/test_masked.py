"""Masked reductions: what is masked is not there, and nothing being there is finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsod_jax.ops.masked import masked_argmax, masked_mean, masked_softmax, masked_top_k


@pytest.fixture
def values():
    return np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


@pytest.mark.parametrize("filler", [0.0, 1e30, np.inf, np.nan])
def test_softmax_equals_the_softmax_without_masked_rows(values, filler):
    mask = np.array([True, False, True, True, False, True])
    values[~mask] = filler
    result = masked_softmax(jnp.asarray(values), jnp.asarray(mask)[:, None], axis=0)
    exponential = np.exp(values[mask])
    np.testing.assert_allclose(result[mask], exponential / exponential.sum(0), rtol=1e-5)
    np.testing.assert_array_equal(result[~mask], 0)


def test_softmax_survives_large_logits_and_sums_to_one():
    logits = jnp.array([[1e30, -1e30, 5.0], [88.0, 1e4, -1e4]])
    total = masked_softmax(logits, jnp.ones_like(logits, bool), axis=1).sum(1)
    np.testing.assert_allclose(total, 1, rtol=1e-6)


@pytest.mark.parametrize("real", [0, 1, 4])
def test_softmax_gradient_is_finite_and_skips_masked_entries(real):
    logits = jnp.array([1.0, -2, 3, np.nan])
    mask = jnp.arange(4) < real
    logits = jnp.where(mask, jnp.array([1.0, -2, 3, 4]), logits)
    weights = jnp.array([1.0, 2, 3, 4])
    grad = jax.grad(lambda x: (masked_softmax(x, mask, axis=0) * weights).sum())(logits)
    assert np.isfinite(grad).all()
    np.testing.assert_array_equal(grad[~mask], 0)
    if real == 4:
        p = jax.nn.softmax(logits)
        np.testing.assert_allclose(grad, p * (weights - (p * weights).sum()), rtol=1e-5)


def test_softmax_of_nothing_is_zero_in_float32():
    result = masked_softmax(jnp.ones((3, 2), jnp.bfloat16), jnp.zeros((3, 1), bool), axis=0)
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(result, 0)


def test_mean_counts_real_entries_of_a_broadcast_mask(values):
    mask = np.array([True, False, True, False, False, False])
    values[1] = np.nan
    x, m = jnp.asarray(values), jnp.asarray(mask)[:, None]
    np.testing.assert_allclose(masked_mean(x, m), values[mask].mean(), rtol=1e-5)
    np.testing.assert_allclose(masked_mean(x, m, axis=0), values[mask].mean(0), rtol=1e-5)
    np.testing.assert_array_equal(masked_mean(x, m, axis=1)[~mask], 0)
    assert masked_mean(x, jnp.zeros((6, 1), bool)) == 0
    assert np.isfinite(jax.grad(lambda x: masked_mean(x, m))(x)).all()


def test_argmax_takes_the_lowest_index_among_real_ties():
    x = jnp.array([[9.0, 2, 7, 7], [-5, -3, -4, -3], [1, 2, 3, 4]])
    mask = jnp.array([[False, True, True, True], [True, False, True, True], [False] * 4])
    index, value = masked_argmax(x, mask)
    np.testing.assert_array_equal(index, [2, 3, 0])
    np.testing.assert_array_equal(value, [7, -3, 0])
    assert index.dtype == jnp.int32


def test_top_k_orders_ties_by_index_and_marks_empty_slots():
    x = jnp.array([0.0, 3, -0.0, 3, 9, -1])
    mask = jnp.array([True, True, True, True, False, True])
    values, indices, valid = masked_top_k(x, mask, 7)
    np.testing.assert_array_equal(indices, [1, 3, 0, 2, 5, 0, 0])
    np.testing.assert_array_equal(values, [3, 3, 0, 0, -1, 0, 0])
    np.testing.assert_array_equal(valid, [True] * 5 + [False] * 2)
    np.testing.assert_array_equal(masked_top_k(-x, mask, 3)[1], [5, 0, 2])


@pytest.mark.parametrize("num", [0, 3])
def test_top_k_of_nothing_is_empty(num):
    values, indices, valid = masked_top_k(jnp.ones(num), jnp.zeros(num, bool), 4)
    np.testing.assert_array_equal(values, np.zeros(4))
    np.testing.assert_array_equal(indices, np.zeros(4))
    assert not valid.any()
