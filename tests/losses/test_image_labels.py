"""The image-level loss."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from tests.methods.mining_cases import to_jax
from tests.oracles import losses as oracle
from wsod_jax.losses.image_labels import mil_loss, score_entropy

LOSSES = {n: jax.jit(partial(mil_loss, reduction=n, scale=4.0)) for n in ("mean", "sum")}
value_and_gradient = jax.jit(jax.value_and_grad(mil_loss))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    "labels", [[1, 0, 0, 1], [1, -1, 0, -1], [0, 0, 0, 0], [1, 1, 1, 1], [-1, -1, -1, -1]]
)
def test_mil_agrees_with_the_sum(labels, reduction):
    phi = np.array([0.7, 0.2, 0.05, 0.999], np.float32)
    found = LOSSES[reduction](*to_jax(phi, np.array(labels, np.int32)))
    np.testing.assert_allclose(found, oracle.mil(phi, labels, reduction, 4.0), rtol=1e-5)


def test_mil_gradient_is_the_textbook_one():
    phi, labels = np.array([0.7, 0.2, 0.4], np.float32), np.array([1, 0, -1], np.int32)
    _, gradient = value_and_gradient(*to_jax(phi, labels))
    np.testing.assert_allclose(gradient, [-1 / (2 * 0.7), 1 / (2 * 0.8), 0.0], rtol=1e-5)


@pytest.mark.parametrize("phi", [0.0, 1.0, 1.0000002, -1e-9])
@pytest.mark.parametrize("label", [0, 1])
def test_mil_at_the_ends_is_finite_and_still_learns(phi, label):
    loss, gradient = value_and_gradient(
        jnp.array([phi], jnp.float32), jnp.array([label], jnp.int32)
    )
    np.testing.assert_allclose(loss, oracle.mil([phi], [label]), rtol=2e-2)
    assert np.isfinite(gradient).all() and np.sign(gradient[0]) == (-1 if label else 1)


def test_mil_rejects_an_unknown_reduction():
    with pytest.raises((ValueError, TypeCheckError), match="reduction"):
        mil_loss(jnp.zeros(2), jnp.zeros(2, jnp.int32), reduction="max")


def test_score_entropy_counts_real_proposals_and_present_classes():
    x = np.random.default_rng(0).random((5, 3)).astype(np.float32)
    x[0, 0] = 0.0
    mask, labels = np.array([True, True, False, True, True]), np.array([1, 0, -1])
    values = [-x[r, 0] * np.log(x[r, 0]) if x[r, 0] > 0 else 0.0 for r in (0, 1, 3, 4)]
    found, gradient = jax.value_and_grad(score_entropy)(
        jnp.asarray(x), jnp.asarray(mask), jnp.asarray(labels)
    )
    np.testing.assert_allclose(found, np.mean(values), rtol=1e-5)
    assert np.isfinite(gradient).all()
    assert score_entropy(jnp.asarray(x), jnp.asarray(mask), jnp.asarray([0, 0, -1])) == 0
