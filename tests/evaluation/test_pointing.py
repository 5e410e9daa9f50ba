"""Pointing metrics against literal loops, and by hand at the edges of boxes and of sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.test_average_precision import BOX, random_tables, truth_of
from tests.oracles import localization as oracle
from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.classification import classification_ap
from wsod_jax.evaluation.metrics.pointing import (
    class_area_ratios,
    difficult_subset,
    pointing_accuracy,
    pointing_with_prediction,
)

MODES = ["11point", "11point_devkit", "area", "ranking"]


def listed(truth):
    """Return the rows of a table as (image, class, box, difficult)."""
    columns = (truth.image_index, truth.classes, truth.boxes, truth.difficult)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def random_truth(seed, num_objects):
    rng = np.random.default_rng(seed)
    return rng, random_tables(rng, num_objects=num_objects)[1]


def points_at(x, y):
    return np.array([[[x, y]]], float)


@given(st.integers(0, 10**6), st.integers(0, 14), st.sampled_from([0.0, 1.0, 2.5]), st.booleans())
def test_accuracy_agrees_with_the_loops(seed, num_objects, tolerance, narrowed):
    rng, truth = random_truth(seed, num_objects)
    points = rng.integers(-4, 24, (4, 3, 2)) / 2  # often on an enlarged edge
    subset = rng.random((4, 3)) < 0.6 if narrowed else None
    metrics = pointing_accuracy(points, truth, tolerance_px=tolerance, subset=subset)
    expected = oracle.pointing_accuracy(points.tolist(), listed(truth), 4, 3, tolerance, subset)
    for found, wanted in zip(
        (metrics.accuracy, metrics.hits, metrics.num_images), expected, strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


@given(
    st.integers(0, 10**6),
    st.integers(0, 14),
    st.sampled_from(MODES),
    st.sampled_from([0.0, 2.0]),
    st.booleans(),
)
def test_prediction_agrees_with_the_loops(seed, num_objects, mode, tolerance, include_difficult):
    rng, truth = random_truth(seed, num_objects)
    points, scores = rng.integers(-4, 24, (4, 3, 2)) / 2, rng.integers(0, 4, (4, 3)) / 2
    ap = pointing_with_prediction(
        points,
        scores,
        truth,
        tolerance_px=tolerance,
        ap_mode=mode,
        include_difficult=include_difficult,
    )
    expected = oracle.pointing_with_prediction(
        points.tolist(), scores.tolist(), listed(truth), (4, 3), tolerance, mode, include_difficult
    )
    np.testing.assert_allclose(ap, expected)


@pytest.mark.parametrize("x, y", [(-15, 5), (25, 5), (5, -15), (5, 25), (25, 25)])
def test_enlarged_edges_are_closed(x, y):
    truth = truth_of([(0, 0, [0, 0, 10, 10], False)])
    assert pointing_accuracy(points_at(x, y), truth).mean == 1.0
    outward = [np.nextafter(v, 2 * v - 10) if v in (-15, 25) else v for v in (x, y)]
    assert pointing_accuracy(points_at(*outward), truth).mean == 0.0
    assert pointing_with_prediction(points_at(*outward), np.ones((1, 1)), truth)[0] == 1.0


@pytest.mark.parametrize("x, expected", [(28, 1.0), (28.001, 0.0)])
def test_prediction_has_a_tolerance_of_its_own(x, expected):
    truth = truth_of([(0, 0, [0, 0, 10, 10], False)])
    assert pointing_with_prediction(points_at(x, 5), np.ones((1, 1)), truth).tolist() == [expected]


def test_any_object_of_the_class_may_be_hit_difficult_ones_too():
    rows = [(0, 0, [0, 0, 9, 9], False), (0, 0, [80, 80, 90, 90], True), (0, 1, BOX, False)]
    truth = truth_of([*rows, (1, 0, [0, 0, 9, 9], True)], num_images=3, num_classes=3)
    points = np.full((3, 3, 2), np.nan)
    points[0, 0], points[0, 1], points[1, 0] = (85, 85), (300, 300), (4, 4)
    metrics = pointing_accuracy(points, truth)
    assert metrics.hits.tolist() == [2, 0, 0] and metrics.num_images.tolist() == [2, 1, 0]
    np.testing.assert_array_equal(metrics.accuracy, [1, 0, np.nan])
    assert metrics.mean == 0.5
    assert metrics.hit[:, 0].tolist() == [True, True, False]


def test_labels_say_which_pairs_count():
    truth = truth_of([(0, 0, BOX, False), (1, 0, BOX, True)], num_images=3)
    points = np.zeros((3, 1, 2))
    points[1] = 500
    assert pointing_accuracy(points, truth).mean == 0.5
    for label in (0, -1):
        metrics = pointing_accuracy(points, truth, labels=np.array([[1], [label], [1]]))
        assert metrics.mean == 1.0 and metrics.num_images.tolist() == [1]  # no object in the third
    assert np.isnan(pointing_accuracy(points, truth, labels=np.zeros((3, 1))).mean)


def test_a_wrongly_pointed_image_is_a_false_positive_and_lowers_recall():
    truth = truth_of([(i, 0, [0, 0, 10, 10], False) for i in range(2)], num_images=3)
    points, scores = np.full((3, 1, 2), 5.0), np.array([[0.2], [0.9], [0.5]])
    points[1] = 100  # the best image points beside its object, the second has none
    ap = pointing_with_prediction(points, scores, truth, ap_mode="area")
    assert ap.tolist() == [pytest.approx(1 / 3 * 1 / 2)]
    points[1] = 5
    assert pointing_with_prediction(points, scores, truth, ap_mode="area")[0] == pytest.approx(
        0.5 + 0.5 * 2 / 3
    )


@given(st.integers(0, 10**6), st.sampled_from(MODES))
def test_pointing_everywhere_right_is_classification(seed, mode):
    rng, truth = random_truth(seed, 10)
    scores = rng.integers(0, 4, (4, 3)) / 2
    easy, present = truth.present(include_difficult=False), truth.present()
    ap = pointing_with_prediction(
        np.zeros((4, 3, 2)), scores, truth, tolerance_px=1e6, ap_mode=mode
    )
    labels = np.where(easy, 1, np.where(present, -1, 0))
    np.testing.assert_array_equal(ap, classification_ap(scores, labels, ap_mode=mode))


def test_images_of_difficult_objects_alone_are_an_option():
    truth = truth_of([(0, 0, BOX, True), (1, 0, BOX, False)], num_images=2)
    points, scores = np.full((2, 1, 2), 500.0), np.array([[np.nan], [0.5]])
    points[1] = 2
    assert pointing_with_prediction(points, scores, truth).tolist() == [1.0]
    scores[0] = 0.9
    ap = pointing_with_prediction(points, scores, truth, ap_mode="area", include_difficult=True)
    assert ap.tolist() == [0.25]


@given(st.integers(0, 10**6), st.integers(0, 14))
def test_difficult_subset_agrees_with_the_loops(seed, num_objects):
    rng, truth = random_truth(seed, num_objects)
    sizes = rng.integers(4, 16, (4, 2))
    subset = difficult_subset(truth, sizes)
    assert subset.tolist() == oracle.difficult_subset(listed(truth), sizes.tolist(), 3)


def test_a_quarter_is_not_small_and_overlaps_count_once():
    other = (0, 1, [15, 15, 16, 16], True)
    quarter = truth_of([(0, 0, [0, 0, 10, 10], False), other], num_classes=2)
    size = np.array([[20, 20]])
    assert difficult_subset(quarter, size).tolist() == [[False, True]]
    twice = truth_of(
        [(0, 0, [0, 0, 10, 9], False), (0, 0, [0, 0, 10, 9], True), other], num_classes=2
    )
    assert difficult_subset(twice, size).tolist() == [[True, True]]
    assert class_area_ratios(twice, size).tolist() == [[90 / 400, 1 / 400]]
    alone = truth_of([(0, 0, [0, 0, 10, 9], False)], num_classes=2)
    assert not difficult_subset(alone, size).any()


def test_empty_sets_and_wrong_arrays():
    empty = truth_of([], num_images=0)
    assert np.isnan(pointing_accuracy(np.zeros((0, 1, 2)), empty).mean)
    assert difficult_subset(empty, np.zeros((0, 2))).shape == (0, 1)
    truth = truth_of([(0, 0, BOX, False)])
    assert np.isnan(pointing_with_prediction(np.zeros((1, 1, 2)), np.zeros((1, 1)), truth_of([])))
    with pytest.raises(DataError, match="image set"):
        pointing_accuracy(np.zeros((2, 1, 2)), truth)
    with pytest.raises(DataError, match="image 0, class 0"):
        pointing_accuracy(points_at(np.nan, 3), truth)
    with pytest.raises(DataError, match="labels"):
        pointing_accuracy(points_at(1, 1), truth, labels=np.ones(1))
    with pytest.raises(DataError, match="not finite"):
        pointing_with_prediction(points_at(1, 1), np.array([[np.inf]]), truth)
    with pytest.raises(DataError, match="height, width"):
        difficult_subset(truth, np.array([[0, 5]]))
