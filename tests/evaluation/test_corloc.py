"""CorLoc against the literal loops and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.test_average_precision import BOX, detections_of, random_tables, truth_of
from tests.oracles import evals as oracle
from tests.oracles import localization as localization_oracle
from wsod_jax.evaluation.metrics.corloc import corloc, corloc_any, top_boxes


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    iou_thr=st.sampled_from([0.25, 0.5]),
    include_difficult=st.booleans(),
    num_detections=st.integers(0, 40),
    num_objects=st.integers(0, 14),
)
def test_random_sets_agree_with_the_loops(
    seed, iou_thr, include_difficult, num_detections, num_objects
):
    rng = np.random.default_rng(seed)
    found, truth = random_tables(rng, num_detections=num_detections, num_objects=num_objects)
    boxes, valid = top_boxes(found)
    metrics = corloc(boxes, valid, truth, iou_thr=iou_thr, include_difficult=include_difficult)
    best = {}
    for i in sorted(range(len(found)), key=lambda i: (-found.scores[i], i)):
        best.setdefault((found.image_index[i], found.classes[i]), found.boxes[i].tolist())
    objects = [
        (truth.image_index[i], truth.classes[i], truth.boxes[i].tolist(), truth.difficult[i])
        for i in range(len(truth))
    ]
    expected = oracle.corloc(best, objects, 4, 3, iou_thr, include_difficult)
    np.testing.assert_allclose(metrics.corloc, expected)
    np.testing.assert_array_equal(valid, [[(i, c) in best for c in range(3)] for i in range(4)])


def test_difficult_objects_count_as_hits_unless_excluded():
    truth = truth_of([(0, 0, BOX, True), (1, 0, BOX, False)], num_images=2)
    boxes, valid = np.array([[BOX], [[50, 50, 60, 60]]], float), np.ones((2, 1), bool)
    assert corloc(boxes, valid, truth).corloc.tolist() == [0.5]
    assert corloc(boxes, valid, truth, include_difficult=False).corloc.tolist() == [0.0]


def test_exact_threshold_is_a_miss_and_absent_classes_leave_the_mean():
    truth = truth_of([(0, 0, BOX, False), (0, 1, BOX, False)], num_classes=3)
    boxes = np.array([[[0, 0, 10, 5], [0, 0, 10, 6], BOX]], float)
    metrics = corloc(boxes, np.ones((1, 3), bool), truth)
    np.testing.assert_array_equal(metrics.corloc, [0.0, 1.0, np.nan])
    assert metrics.mean == 0.5
    assert metrics.hits.tolist() == [0, 1, 0] and metrics.num_images.tolist() == [1, 1, 0]


def test_image_without_a_box_is_a_miss():
    truth = truth_of([(0, 0, BOX, False)])
    metrics = corloc(np.full((1, 1, 4), np.nan), np.zeros((1, 1), bool), truth)
    assert metrics.mean == 0.0


def test_no_image_with_any_class_gives_nan():
    assert np.isnan(corloc(np.zeros((1, 1, 4)), np.ones((1, 1), bool), truth_of([])).mean)


def test_top_boxes_take_the_first_of_equal_scores():
    found = detections_of([(0, 0, 0.5, [0, 0, 1, 1]), (0, 0, 0.7, BOX), (0, 0, 0.7, [0, 0, 2, 2])])
    boxes, valid = top_boxes(found)
    assert boxes[0, 0].tolist() == BOX and valid.tolist() == [[True]]


def test_wrong_image_set_is_refused():
    with pytest.raises(ValueError, match="image set"):
        corloc(np.zeros((2, 1, 4)), np.ones((2, 1), bool), truth_of([]))


@settings(max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    iou_thr=st.sampled_from([0.25, 0.5]),
    inclusive=st.booleans(),
    include_difficult=st.booleans(),
    num_detections=st.integers(0, 40),
    num_objects=st.integers(0, 14),
)
def test_any_box_may_hit_as_in_the_loops(
    seed, iou_thr, inclusive, include_difficult, num_detections, num_objects
):
    rng = np.random.default_rng(seed)
    found, truth = random_tables(rng, num_detections=num_detections, num_objects=num_objects)
    choices = {"inclusive": inclusive, "include_difficult": include_difficult}
    metrics = corloc_any(found, truth, iou_thr=iou_thr, **choices)
    boxes = list(zip(found.image_index, found.classes, found.boxes.tolist(), strict=True))
    columns = (truth.image_index, truth.classes, truth.boxes.tolist(), truth.difficult)
    expected = localization_oracle.corloc_any(
        boxes, list(zip(*columns, strict=True)), (4, 3), iou_thr, **choices
    )
    np.testing.assert_allclose(metrics.corloc, expected)
    single = corloc(*top_boxes(found), truth, iou_thr=iou_thr, include_difficult=include_difficult)
    assert (metrics.hit >= single.hit).all()
    np.testing.assert_array_equal(metrics.num_images, single.num_images)


def test_any_box_of_exact_iou_hits_unless_told_otherwise():
    truth = truth_of([(0, 0, BOX, False), (1, 0, BOX, False)], num_images=2)
    rows = [(0, 0, 0.9, [50, 50, 60, 60]), (0, 0, 0.1, [0, 0, 10, 5])]
    found = detections_of(rows, num_images=2)
    assert corloc_any(found, truth).corloc.tolist() == [0.5]
    assert corloc_any(found, truth, inclusive=False).corloc.tolist() == [0.0]
    assert corloc_any(found, truth, iou_thr=0.51).corloc.tolist() == [0.0]
    assert corloc(*top_boxes(found), truth, iou_thr=0.4).corloc.tolist() == [0.0]
    with pytest.raises(ValueError, match="image set"):
        corloc_any(found, truth_of([]))
