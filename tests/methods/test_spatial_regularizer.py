"""WSDDN's spatial regularizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods.mining_cases import pad, random_image, to_jax
from tests.oracles import losses as oracle
from tests.oracles.mining import iou
from wsod_jax.methods.wsddn import spatial_regularizer
from wsod_jax.types import Source


def of_arrays(scores, features, boxes, mask, labels, *, max_classes=5, iou_thr=0.3):
    source = Source.of(scores, boxes, mask, labels)
    return spatial_regularizer(source, features, iou_thr=iou_thr, max_classes=max_classes)


regularizer = jax.jit(of_arrays, static_argnames="max_classes")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("count", "num_positive"), [(40, 2), (40, 5), (40, 0), (4, 2), (1, 1)])
def test_regularizer_agrees_with_the_loops(seed, count, num_positive):
    scores, boxes, labels, features = random_image(seed, count, num_positive=num_positive)
    boxes = boxes / [4, 4, 4, 4] + np.tile(boxes.mean(0), (count, 1))  # crowded: large overlaps
    boxes = boxes.astype(np.float32)
    mask = np.arange(count + 3) < count
    padded = pad([scores, boxes, features], 3)
    found = regularizer(*to_jax(padded[0], padded[2], padded[1], mask, labels))
    expected = oracle.spatial(scores, boxes, labels, features, iou, iou_thr=0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    if count == 40 and num_positive == 5:
        assert expected > 0


def test_regularizer_pulls_features_together():
    """Two identical boxes: the gradient is p^2 times their difference, with opposite signs."""
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]], np.float32)
    scores = np.array([[0.9], [0.5], [0.4]], np.float32)
    features = np.array([[1.0, 2.0], [0.0, 4.0], [9.0, 9.0]], np.float32)
    mask, labels = np.ones(3, bool), np.array([1], np.int32)

    def loss(scores, features):
        return regularizer(
            scores, features, *to_jax(boxes, mask, labels), max_classes=1, iou_thr=0.6
        )

    find = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    value, (to_scores, to_features) = find(*to_jax(scores, features))
    np.testing.assert_allclose(value, 0.5 * 0.25 * 5.0)
    np.testing.assert_allclose(to_features, 0.25 * np.array([[1, -2], [-1, 2], [0, 0]]))
    assert not to_scores.any()


def test_regularizer_counts_overlap_above_the_threshold_only():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 5, 10]], np.float32)
    arrays = (
        np.ones((2, 1), np.float32),
        np.eye(2, dtype=np.float32),
        boxes,
        np.ones(2, bool),
        np.array([1], np.int32),
    )
    assert regularizer(*to_jax(*arrays), iou_thr=0.5) == 0
    assert regularizer(*to_jax(*arrays), iou_thr=0.499) == 1


def test_regularizer_of_an_empty_image():
    scores, boxes, labels, features = random_image(1)
    boxes, nan = np.zeros_like(boxes), np.full_like(features, np.nan)
    arrays = to_jax(scores, nan, boxes, np.zeros(40, bool), labels)
    loss, gradient = jax.jit(jax.value_and_grad(regularizer, argnums=1))(*arrays)
    assert loss == 0 and not gradient.any()


def test_regularizer_leaves_out_classes_beyond_the_maximum():
    scores, boxes, labels, features = random_image(0, num_positive=5)
    boxes[:] = boxes[0]
    arrays = to_jax(scores, features, boxes, np.ones(40, bool))
    first = regularizer(*arrays, jnp.asarray(np.array([1, 1, 0, 0, 0], np.int32)))
    short = regularizer(*arrays, jnp.asarray(labels), max_classes=2)
    np.testing.assert_allclose(short, first, rtol=1e-6)
    assert first > 0
