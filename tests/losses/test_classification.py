"""Losses of image classifiers: cross-entropies as printed, unknown labels, logits of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import losses as oracle
from wsod_jax.losses.image_labels import class_scores, classification_loss, top1_hits

ACTIVATIONS = ("softmax", "sigmoid")
value = jax.jit(classification_loss, static_argnames="activation")
gradient = jax.jit(
    jax.grad(lambda y, t, activation: classification_loss(y, t, activation).sum()),
    static_argnames="activation",
)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_loss_is_the_printed_one(activation, scale):
    rng = np.random.default_rng(0)
    logits = (scale * rng.normal(size=(40, 5))).astype(np.float32)
    if activation == "softmax":
        labels = np.eye(5, dtype=np.int32)[rng.integers(0, 5, 40)]
        labels[:5, 4] = -1  # as little there as a 0
    else:
        labels = rng.integers(-1, 2, (40, 5), dtype=np.int32)
    found = value(logits, labels, activation=activation)
    expected = [oracle.classification(*row, activation) for row in zip(logits, labels, strict=True)]
    assert found.shape == (40,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_numbers_worked_out_by_hand():
    logits = np.log(np.array([[1.0, 3.0, 4.0]], np.float32))  # softmax 1/8, 3/8, 1/2
    labels = np.array([[0, 1, 0]], np.int32)
    np.testing.assert_allclose(
        value(logits, labels, activation="softmax"), [np.log(8 / 3)], rtol=1e-6
    )
    labels = np.array([[0, 1, -1]], np.int32)  # sigmoid 1/2, 3/4, unknown
    expected = (np.log(2) + np.log(4 / 3)) / 2
    np.testing.assert_allclose(value(logits, labels, activation="sigmoid"), [expected], rtol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_images_without_a_known_label_have_neither_loss_nor_gradient(activation):
    logits = np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32)
    labels = np.array([[-1, -1, -1], [0, 0, 1]], np.int32)
    loss, slope = (f(logits, labels, activation=activation) for f in (value, gradient))
    assert loss[0] == 0 and not np.any(slope[0])
    assert loss[1] > 0 and np.all(slope[1])


def test_unknown_classes_have_no_sigmoid_gradient_and_do_not_dilute_the_others():
    logits = np.random.default_rng(2).normal(size=(1, 4)).astype(np.float32)
    labels = np.array([[1, -1, 0, -1]], np.int32)
    slope = np.asarray(gradient(logits, labels, activation="sigmoid"))[0]
    assert slope[1] == 0 and slope[3] == 0
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)[0]))
    np.testing.assert_allclose(slope[[0, 2]], (p - [1, 0, 0, 0])[[0, 2]] / 2, rtol=1e-5)


@pytest.mark.parametrize("size", [50.0, 1e4, 1e30])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_wrong_by_far_is_finite_and_still_learns(activation, size):
    logits = np.array([[size, -size], [-size, size], [size, size]], np.float32)
    labels = np.array([[0, 1], [0, 1], [1, 0]], np.int32)
    loss, slope = (f(logits, labels, activation=activation) for f in (value, gradient))
    assert np.isfinite(loss).all() and np.isfinite(slope).all()
    share = 1.0 if activation == "softmax" else 0.5
    np.testing.assert_allclose(slope[0], [share, -share], rtol=1e-6)
    np.testing.assert_allclose(slope[1], [0, 0], atol=1e-6)
    np.testing.assert_allclose(loss[0] / size, 2 * share, rtol=1e-5)


def test_scores_are_probabilities():
    logits = jnp.array([[0.0, np.log(3.0)], [1e4, -1e4]], jnp.float32)
    np.testing.assert_allclose(class_scores(logits, "softmax"), [[0.25, 0.75], [1, 0]], rtol=1e-6)
    np.testing.assert_allclose(class_scores(logits, "sigmoid"), [[0.5, 0.75], [1, 0]], rtol=1e-6)


def test_top1_hits_where_the_best_class_is_present_the_first_on_ties():
    logits = jnp.array([[1, 3, 2], [1, 3, 2], [1, 3, 2], [2, 2, 1], [2, 2, 1]], jnp.float32)
    labels = jnp.array([[0, 1, 0], [1, 0, 1], [0, -1, 1], [1, 0, 0], [0, 1, 0]], jnp.int32)
    np.testing.assert_array_equal(top1_hits(logits, labels), [1, 0, 0, 1, 0])
