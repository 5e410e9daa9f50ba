"""Losses of the refinement heads."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from tests.methods import mining_cases
from tests.methods.mining_cases import pad, random_image, to_jax
from tests.oracles import losses as oracle
from wsod_jax.methods.oicr import Oicr, weighted_cross_entropy
from wsod_jax.methods.pcl import cluster_loss
from wsod_jax.types import PseudoBoxes, RefineTargets

mine = partial(mining_cases.mine, Oicr)
REFINEMENT = {
    n: jax.jit(jax.value_and_grad(partial(weighted_cross_entropy, normalizer=n)))
    for n in ("weighted", "real")
}
CLUSTER = jax.jit(jax.value_and_grad(cluster_loss))
FIVE_SLOTS = PseudoBoxes(*(jnp.zeros((5, *tail)) for tail in ((4,), (), (), (), (), ())))


def mined_case(seed, count=30, num_positive=2, ignore_iou_thr=0.0, extra=0):
    """Logits, OICR targets, multiplier and mask of an image with `extra` padded rows."""
    scores, boxes, labels, _ = random_image(seed, count, num_positive=num_positive)
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, 6)).astype(np.float32)
    multiplier = rng.uniform(0.1, 1.2, (count, 1)).astype(np.float32)
    scores, boxes, logits, multiplier = pad([scores, boxes, logits, multiplier], extra)
    mask = np.arange(count + extra) < count
    arrays = to_jax(scores, boxes, mask, labels)
    targets = mine(*arrays, ignore_iou_thr=ignore_iou_thr).targets
    return jnp.asarray(logits), targets, jnp.asarray(multiplier[:, 0]), jnp.asarray(mask)


def make_targets(labels, weights, assigned):
    labels, assigned = np.array(labels, np.int32), np.array(assigned, np.int32)
    weights = np.array(weights, np.float32)
    return RefineTargets(*to_jax(labels, weights, assigned, labels < 0, weights))


@pytest.mark.parametrize("normalizer", ["weighted", "real"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_positive", [0, 2, 5])
def test_refinement_agrees_with_the_sum(seed, num_positive, normalizer):
    logits, targets, multiplier, mask = mined_case(
        seed, num_positive=num_positive, ignore_iou_thr=0.1, extra=6
    )
    found, gradient = REFINEMENT[normalizer](logits, targets, multiplier, mask)
    parts = [np.asarray(x)[:30] for x in (logits, targets.labels, targets.weights, multiplier)]
    np.testing.assert_allclose(found, oracle.refinement(*parts, normalizer), rtol=1e-5, atol=1e-8)
    assert np.isfinite(gradient).all() and not gradient[30:].any()


def test_normalizers_differ_by_ignored_proposals():
    logits, targets, multiplier, mask = mined_case(0, ignore_iou_thr=0.1)
    ignored = int(np.sum(np.asarray(targets.weights) == 0))
    assert 0 < ignored < 30
    weighted, real = (
        REFINEMENT[n](logits, targets, multiplier, mask)[0] for n in ("weighted", "real")
    )
    np.testing.assert_allclose(weighted * (30 - ignored), real * 30, rtol=1e-5)


def test_multiplier_scales_gradients_row_by_row():
    logits, targets, multiplier, mask = mined_case(1)
    ones = jnp.ones_like(multiplier)
    plain, scaled = (
        REFINEMENT["weighted"](logits, targets, m, mask)[1] for m in (ones, multiplier)
    )
    np.testing.assert_allclose(scaled, plain * multiplier[:, None], rtol=1e-5, atol=1e-9)


def test_refinement_survives_extreme_logits():
    logits, targets, multiplier, mask = mined_case(2)
    loss, gradient = REFINEMENT["weighted"](logits * 1e4, targets, multiplier, mask)
    assert np.isfinite(loss) and np.isfinite(gradient).all()


def test_refinement_rejects_an_unknown_normalizer():
    with pytest.raises((ValueError, TypeCheckError), match="normalizer"):
        weighted_cross_entropy(*mined_case(0), normalizer="batch")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_positive", [0, 2, 5])
def test_cluster_loss_agrees_with_the_sum(seed, num_positive):
    logits, targets, _, mask = mined_case(seed, num_positive=num_positive, extra=4)
    found, gradient = CLUSTER(logits, targets, FIVE_SLOTS, mask)
    parts = [
        np.asarray(x)[:30] for x in (logits, targets.labels, targets.weights, targets.matched_idx)
    ]
    expected = oracle.cluster(*parts)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)
    assert np.isfinite(gradient).all() and not gradient[30:].any()


def test_cluster_gradient_row():
    """A member's gradient is -S / (|M| mean p) per probability, divided by R."""
    targets = make_targets([2, 2, 0, 2], [0.5, 0.4, 0.3, 0.6], [1, 1, 0, 1])
    logits = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    _, gradient = CLUSTER(jnp.asarray(logits), targets, FIVE_SLOTS, jnp.ones(4, bool))
    probs = oracle.softmax(logits)
    mean = probs[[0, 1, 3], 2].mean()
    for j in (0, 1, 3):
        to_probs = np.zeros(4)
        to_probs[2] = -1.5 / (3 * mean) / 4
        through_softmax = probs[j] * (to_probs - np.sum(to_probs * probs[j]))
        np.testing.assert_allclose(gradient[j], through_softmax, rtol=1e-5, atol=1e-7)
    background = 0.3 / 4 * (probs[2] - np.eye(4)[0])  # its own cross entropy, not averaged
    np.testing.assert_allclose(gradient[2], background, rtol=1e-5, atol=1e-7)


def test_singleton_clusters_are_oicr():
    targets = make_targets([1, 0, 3, 0, 2], [0.5, 0.4, 0.3, 0.2, 0.9], [0, 0, 1, 1, 2])
    rng = np.random.default_rng(1)
    logits, mask = jnp.asarray(rng.normal(size=(5, 4)).astype(np.float32)), jnp.ones(5, bool)

    cluster, cluster_gradient = CLUSTER(logits, targets, FIVE_SLOTS, mask)
    plain, plain_gradient = REFINEMENT["weighted"](logits, targets, jnp.ones(5), mask)
    np.testing.assert_allclose(cluster, plain, rtol=1e-6)
    np.testing.assert_allclose(cluster_gradient, plain_gradient, rtol=1e-5, atol=1e-8)


def test_hopeless_clusters_still_learn():
    """Probabilities that underflow neither break the loss nor end the gradient."""
    targets = make_targets([1, 1, 0], [0.9, 0.9, 0.9], [0, 0, 0])
    logits = jnp.array([[500.0, 0.0], [400.0, 0.0], [0.0, 500.0]])
    loss, gradient = CLUSTER(logits, targets, FIVE_SLOTS, jnp.ones(3, bool))
    assert np.isfinite(loss) and np.isfinite(gradient).all()
    assert gradient[1, 1] < -0.1 and gradient[2, 0] < -0.1
