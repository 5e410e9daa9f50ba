"""Localization error of ILSVRC against literal loops, and by hand at the threshold and on the blacklist."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.test_average_precision import BOX, random_tables, truth_of
from tests.oracles import localization as oracle
from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.ilsvrc import (
    known_class_error,
    localization_errors,
    ranked_classes,
)

HALF = [0, 0, 10, 5]  # IoU of exactly 0.5 with BOX
LESS = [0, 0, 10, 4.99]


@given(
    st.integers(0, 10**6),
    st.integers(0, 14),
    st.sets(st.integers(0, 3)),
    st.sampled_from([0.25, 0.5]),
)
def test_agrees_with_the_loops(seed, num_objects, blacklist, iou_thr):
    rng = np.random.default_rng(seed)
    truth = random_tables(rng, num_objects=num_objects)[1]
    scores, labels = rng.integers(0, 3, (4, 3)), rng.integers(0, 3, 4)
    corner = rng.integers(0, 6, (4, 3, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, 6, (4, 3, 2))], axis=-1)
    classes = ranked_classes(scores, 3)
    options = {"iou_thr": iou_thr, "blacklist": sorted(blacklist)}
    errors = localization_errors(classes, boxes, labels, truth, top=(1, 2, 3), **options)
    columns = (truth.image_index, truth.classes, truth.boxes.tolist())
    objects = list(zip(*columns, strict=True))
    for i, k in enumerate(errors.top):
        expected = oracle.localization_error(
            scores.tolist(), boxes.tolist(), labels, objects, k, iou_thr, blacklist
        )
        np.testing.assert_allclose((errors.classification[i], errors.localization[i]), expected)
    assert (errors.num_images, errors.num_left_out) == (4 - len(blacklist), len(blacklist))
    known = known_class_error(boxes[:, 0], labels, truth, **options)
    given_class = np.eye(3)[labels].tolist()  # the label ranks first
    expected = oracle.localization_error(
        given_class, boxes.tolist(), labels, objects, 1, iou_thr, blacklist
    )
    np.testing.assert_allclose(known, expected[1])


def test_exact_threshold_is_right_and_any_object_of_the_class_will_do():
    rows = [(0, 0, BOX, False), (0, 0, [50, 50, 60, 60], True), (0, 1, [20, 20, 30, 30], False)]
    truth = truth_of(rows, num_classes=2)
    for box, error in ((HALF, 0), (LESS, 1), ([50, 50, 60, 60], 0), ([20, 20, 30, 30], 1)):
        assert known_class_error(np.array([box]), np.array([0]), truth) == error
    assert known_class_error(np.array([LESS]), np.array([0]), truth, iou_thr=0.4) == 0


def test_class_and_box_must_be_right_in_one_guess():
    truth = truth_of([(0, 0, BOX, False), (0, 1, BOX, False)], num_classes=3)
    classes, labels = np.array([[1, 0, 2]]), np.array([0])
    boxes = np.array([[BOX, LESS, BOX]])  # the second guess names the class, the first has the box
    errors = localization_errors(classes, boxes, labels, truth, top=(3, 1, 2))
    assert errors.top == (1, 2, 3)
    assert errors.classification == (1, 0, 0) and errors.localization == (1, 1, 1)
    boxes[0, 1] = BOX
    assert localization_errors(classes, boxes, labels, truth, top=(1, 2)).localization == (1, 0)


def test_blacklist_leaves_images_out():
    truth = truth_of([(0, 0, BOX, False), (2, 0, BOX, False)], num_images=3)
    boxes, labels = np.array([BOX, BOX, LESS], float), np.zeros(3, int)
    assert known_class_error(boxes, labels, truth) == pytest.approx(
        2 / 3
    )  # no object in the second
    assert known_class_error(boxes, labels, truth, blacklist=[1]) == 0.5
    assert known_class_error(boxes, labels, truth, blacklist=[1, 2, 2]) == 0.0
    assert np.isnan(known_class_error(boxes, labels, truth, blacklist=range(3)))
    errors = localization_errors(
        labels[:, None], boxes[:, None], labels, truth, top=[1], blacklist=[0, 1, 2]
    )
    assert np.isnan(errors.classification + errors.localization).all() and errors.num_images == 0
    for wrong in (-1, 3):
        with pytest.raises(DataError, match="0 to 2"):
            known_class_error(boxes, labels, truth, blacklist=[wrong])


def test_equal_scores_rank_by_class():
    assert ranked_classes(np.array([[0.1, 0.5, 0.5], [0, 0, 0]]), 2).tolist() == [[1, 2], [0, 1]]
    for k in (0, 4):
        with pytest.raises(DataError, match="guesses"):
            ranked_classes(np.zeros((1, 3)), k)
    with pytest.raises(DataError, match="not finite"):
        ranked_classes(np.array([[0.0, np.nan]]), 1)


def test_wrong_arrays_are_refused():
    truth = truth_of([(0, 0, BOX, False)])
    one, box = np.zeros((1, 1), int), np.array([[BOX]], float)
    with pytest.raises(DataError, match="box"):
        localization_errors(one, box[0], one[0], truth, top=[1])
    with pytest.raises(DataError, match="labels"):
        localization_errors(one, box, one, truth, top=[1])
    for top in ((1, 5), (0,), ()):
        with pytest.raises(DataError, match="1 to 1"):
            localization_errors(one, box, one[0], truth, top=top)
    with pytest.raises(DataError, match="0 to 0"):
        localization_errors(one + 1, box, one[0], truth, top=[1])
    with pytest.raises(DataError, match="finite"):
        known_class_error(np.full((1, 4), np.nan), one[0], truth)
    with pytest.raises(DataError, match="image"):
        localization_errors(one.repeat(2, 0), box.repeat(2, 0), one[0], truth, top=[1])
    for labels in ([1], [-1], [0, 0]):
        with pytest.raises(DataError, match="labels"):
            known_class_error(box[0], np.array(labels), truth)
