"""Mean IoU against the literal loops and by hand."""

import numpy as np
import pytest

from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.semantic import MeanIou


def iou_in_loops(pairs, label):
    both = either = 0
    for predicted, truth in pairs:
        for p, t in zip(predicted.ravel().tolist(), truth.ravel().tolist(), strict=True):
            if t != 255:
                both += p == label and t == label
                either += p == label or t == label
    return both / either if either else np.nan


def test_images_of_different_sizes_add_up_as_in_the_loops():
    rng = np.random.default_rng(0)
    pairs = [
        (rng.integers(0, 5, size, np.uint8), rng.choice([0, 1, 2, 4, 255], size).astype(np.uint8))
        for size in ((3, 7), (6, 2), (0, 4), (1, 1))
    ]
    metric = MeanIou(6)
    for predicted, truth in pairs:
        metric.add(predicted, truth)
    expected = [iou_in_loops(pairs, label) for label in range(7)]
    np.testing.assert_allclose(metric.iou, expected)
    assert metric.mean == pytest.approx(np.nanmean(expected))


def test_by_hand():
    metric = MeanIou(2)
    assert np.isnan(metric.mean) and np.isnan(metric.iou).all()
    metric.add(np.array([[0, 1, 1, 9]], np.uint8), np.array([[0, 0, 1, 255]], np.uint8))
    np.testing.assert_allclose(metric.iou, [1 / 2, 1 / 2, np.nan])  # the void pixel's 9 is not read
    assert metric.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("predicted", "truth", "words"),
    [
        ([[0, 1]], [[0], [1]], r"\(1, 2\).*\(2, 1\)"),
        ([[0, 3]], [[0, 1]], "predicted .* 3.* 2"),
        ([[0, 255]], [[0, 1]], "predicted .* 255"),
        ([[0, 1]], [[0, 3]], "true .* 3"),
    ],
)
def test_maps_that_do_not_fit_are_named(predicted, truth, words):
    metric = MeanIou(2)
    with pytest.raises(DataError, match=words):
        metric.add(np.array(predicted, np.uint8), np.array(truth, np.uint8))
    assert not metric.confusion.any()
