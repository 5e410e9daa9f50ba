"""Losses of the segmentation branch, against their equations term by term."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsod_jax.losses.segmentation import (
    balanced_boundary_loss,
    boundary_loss,
    label_probabilities,
    seed_loss,
    seeds_of_map,
)

RNG = np.random.default_rng(0)
SIGMOID = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731


def test_seed_loss_balanced_and_plain():
    logits = RNG.normal(size=(4, 5)).astype(np.float32)
    seeds = RNG.integers(-1, 2, (4, 5))
    s = SIGMOID(logits.astype(np.float64))
    positive = [-np.log(p) for p, m in zip(s.flat, seeds.flat, strict=True) if m == 1]
    negative = [-np.log(1 - p) for p, m in zip(s.flat, seeds.flat, strict=True) if m == 0]
    balanced = seed_loss(jnp.asarray(logits), jnp.asarray(seeds))
    np.testing.assert_allclose(balanced, np.mean(positive) + np.mean(negative), rtol=1e-5)
    plain = seed_loss(jnp.asarray(logits), jnp.asarray(seeds), "plain")
    np.testing.assert_allclose(plain, np.mean(positive + negative), rtol=1e-5)


@pytest.mark.parametrize("seed", [-1, 0, 1])
def test_seed_loss_of_one_kind_of_pixel(seed):
    logits = jnp.full((2, 3), 0.7)
    found = seed_loss(logits, jnp.full((2, 3), seed))
    s = SIGMOID(0.7)
    np.testing.assert_allclose(found, {-1: 0.0, 0: -np.log(1 - s), 1: -np.log(s)}[seed], rtol=1e-5)


def test_seed_loss_is_finite_at_extremes():
    logits = jnp.asarray([[1e4, -1e4], [1e4, -1e4]])
    seeds = jnp.asarray([[0, 1], [1, 0]])
    value, gradient = jax.value_and_grad(seed_loss)(logits, seeds)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_seeds_at_the_thresholds():
    limits = jnp.asarray([[0.0, 0.005, 0.0051, 0.0999, 0.1, 1.0]], jnp.float32)
    valid = jnp.ones((1, 6), bool)
    thrs = dict(fg_thr=0.1, bg_thr=0.005)
    found = seeds_of_map(limits, True, True, valid, **thrs)
    np.testing.assert_array_equal(found, [[0, 0, -1, -1, 1, 1]])
    np.testing.assert_array_equal(seeds_of_map(limits, False, True, valid, **thrs), -1)
    np.testing.assert_array_equal(seeds_of_map(limits, False, False, valid, **thrs), 0)
    margin = valid.at[0, 4:].set(False)
    np.testing.assert_array_equal(
        seeds_of_map(limits, True, True, margin, **thrs), [[0, 0, -1, -1, -1, -1]]
    )


def test_label_probabilities():
    s = np.array([[[0.6, 0.9, 0.3]]], np.float32)
    present = jnp.asarray([True, False, True])
    found = label_probabilities(jnp.asarray(s), present)[0, 0]
    expected = np.array([0.4, 0.6, 0.0, 0.3]) / 1.3
    np.testing.assert_allclose(found, expected, atol=1e-6)
    nothing = label_probabilities(jnp.asarray(s), jnp.zeros(3, bool))[0, 0]
    np.testing.assert_allclose(nothing, [1, 0, 0, 0])


def test_boundary_loss_is_the_divergence():
    p = RNG.dirichlet(np.ones(3), (2, 4)).astype(np.float32)
    q = RNG.dirichlet(np.ones(3), (2, 4)).astype(np.float32)
    mask = np.array([[True] * 4, [True, True, False, False]])
    total = sum((q[i] * np.log(q[i] / p[i])).sum() for i in zip(*np.nonzero(mask), strict=True))
    found = boundary_loss(jnp.asarray(p), jnp.asarray(q), jnp.asarray(mask))
    np.testing.assert_allclose(found, total / 6, rtol=1e-4)
    assert boundary_loss(jnp.asarray(p), jnp.asarray(p), jnp.asarray(mask)) == pytest.approx(0.0)
    assert boundary_loss(jnp.asarray(p), jnp.asarray(q), jnp.zeros((2, 4), bool)) == 0


def test_boundary_loss_with_zeros_is_finite():
    p, q = jnp.asarray([[[1.0, 0.0]]]), jnp.asarray([[[0.0, 1.0]]])
    value, gradient = jax.value_and_grad(boundary_loss)(p, q, jnp.ones((1, 1), bool))
    assert np.isfinite(value) and np.isfinite(gradient).all()
    no_gradient = jax.grad(lambda q: boundary_loss(p, q, jnp.ones((1, 1), bool)))(q)
    np.testing.assert_array_equal(no_gradient, 0)


def test_released_boundary_loss():
    s = RNG.uniform(0.1, 0.9, (3, 4, 2)).astype(np.float32)
    q = RNG.uniform(0.0, 1.0, (3, 4, 2)).astype(np.float32)
    mask = RNG.random((3, 4)) < 0.8
    total = 0.0
    for c in range(2):
        values = {True: [], False: []}
        for i in zip(*np.nonzero(mask), strict=True):
            values[bool(q[i][c] > 0.5)].append(q[i][c] * np.log(q[i][c] / s[i][c]))
        total += sum(np.mean(v) for v in values.values() if v)
    found = balanced_boundary_loss(jnp.asarray(s), jnp.asarray(q), jnp.asarray(mask))
    np.testing.assert_allclose(found, total, rtol=1e-4)
