"""CorLoc against the literal loops and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.test_average_precision import (
    BOX,
    detections_of,
    random_tables,
    truth_of,
    two_images,
)
from tests.oracles import evals as oracle
from tests.oracles import localization as localization_oracle
from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.corloc import box_quality, class_quality, corloc, corloc_any


def best_boxes(found):
    """Return the best box of every image and class; of equal scores the first."""
    rows = {}
    for i in sorted(range(len(found)), key=lambda i: (-found.scores[i], i)):
        rows.setdefault((found.image_index[i], found.classes[i]), i)
    return found.take(np.array(sorted(rows.values()), int))


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
    top = best_boxes(found)
    metrics = corloc(top, truth, iou_thr=iou_thr, include_difficult=include_difficult)
    pairs = zip(top.image_index, top.classes, strict=True)
    best = dict(zip(pairs, top.boxes.tolist(), strict=True))
    objects = [
        (truth.image_index[i], truth.classes[i], truth.boxes[i].tolist(), truth.difficult[i])
        for i in range(len(truth))
    ]
    expected = oracle.corloc(best, objects, 4, 3, iou_thr, include_difficult)
    np.testing.assert_allclose(metrics.corloc, expected)


def test_difficult_objects_count_as_hits_unless_excluded():
    truth = truth_of([(0, 0, BOX, True), (1, 0, BOX, False)], num_images=2)
    best = detections_of([(0, 0, 0.9, BOX), (1, 0, 0.9, [50, 50, 60, 60])], num_images=2)
    assert corloc(best, truth).corloc.tolist() == [0.5]
    assert corloc(best, truth, include_difficult=False).corloc.tolist() == [0.0]


def test_exact_threshold_is_a_miss_and_absent_classes_leave_the_mean():
    truth = truth_of([(0, 0, BOX, False), (0, 1, BOX, False)], num_classes=3)
    boxes = [[0, 0, 10, 5], [0, 0, 10, 6], BOX]
    metrics = corloc(
        detections_of([(0, c, 1, box) for c, box in enumerate(boxes)], num_classes=3), truth
    )
    np.testing.assert_array_equal(metrics.corloc, [0.0, 1.0, np.nan])
    assert metrics.mean == 0.5
    assert metrics.hits.tolist() == [0, 1, 0] and metrics.num_images.tolist() == [1, 1, 0]


def test_image_without_a_box_is_a_miss_and_no_image_with_any_class_gives_nan():
    assert corloc(detections_of([]), truth_of([(0, 0, BOX, False)])).mean == 0.0
    assert np.isnan(corloc(detections_of([(0, 0, 1, BOX)]), truth_of([])).mean)


def test_two_boxes_of_an_image_and_class_and_another_set_are_refused():
    truth = truth_of([(0, 0, BOX, False)], num_classes=2)
    rows = [(0, 0, 0.5, BOX), (0, 1, 0.5, BOX)]
    assert corloc(detections_of(rows, num_classes=2), truth).hits.tolist() == [1, 0]
    with pytest.raises(DataError, match="box per image.*corloc_any"):
        corloc(detections_of([*rows, rows[0]], num_classes=2), truth)
    with pytest.raises(DataError, match="2 images"):
        corloc(detections_of(rows, num_images=2, num_classes=2), truth)


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
    single = corloc(best_boxes(found), truth, iou_thr=iou_thr, include_difficult=include_difficult)
    assert (metrics.hit >= single.hit).all()
    np.testing.assert_array_equal(metrics.num_images, single.num_images)


def test_any_box_of_exact_iou_hits_unless_told_otherwise():
    truth = truth_of([(0, 0, BOX, False), (1, 0, BOX, False)], num_images=2)
    rows = [(0, 0, 0.9, [50, 50, 60, 60]), (0, 0, 0.1, [0, 0, 10, 5])]
    found = detections_of(rows, num_images=2)
    assert corloc_any(found, truth).corloc.tolist() == [0.5]
    assert corloc_any(found, truth, inclusive=False).corloc.tolist() == [0.0]
    assert corloc_any(found, truth, iou_thr=0.51).corloc.tolist() == [0.0]
    assert corloc(best_boxes(found), truth, iou_thr=0.4).corloc.tolist() == [0.0]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(0, 20), st.integers(0, 14))
def test_quality_class_by_class_agrees_with_the_loops(seed, num_boxes, num_objects):
    rng = np.random.default_rng(seed)
    found, truth = random_tables(rng, num_detections=num_boxes, num_objects=num_objects)
    quality = class_quality(found, truth)

    def share(values):
        return np.mean(values) if len(values) else np.nan

    for c in range(3):
        boxes, objects = (
            list(zip(of_class.image_index, of_class.boxes, strict=True))
            for of_class in (found.take(found.classes == c), truth.take(truth.classes == c))
        )
        pairs = np.array([[oracle.iou(a, b) * (i == j) for j, b in objects] for i, a in boxes])
        pairs = pairs.reshape(len(boxes), len(objects))
        best, covered = pairs.max(axis=1, initial=0), pairs.max(axis=0, initial=0)
        np.testing.assert_allclose(quality.precision[c], share(best > 0.5))
        np.testing.assert_allclose(quality.abo[c], share(covered), rtol=1e-6)
        # an object counts as found by a box that overlaps it most
        found_by = {int(row.argmax()) for row in pairs if row.max(initial=0) > 0.5}
        np.testing.assert_allclose(
            quality.recall[c], len(found_by) / len(objects) if objects else np.nan
        )
        ratio = [
            np.sqrt(np.prod(a[2:] - a[:2]) / np.prod((t := objects[row.argmax()][1])[2:] - t[:2]))
            for (_, a), row in zip(boxes, pairs, strict=True)
            if row.max(initial=0) > 0
        ]
        np.testing.assert_allclose(
            quality.size_ratio[c], np.median(ratio) if ratio else np.nan, rtol=1e-6
        )
        assert (quality.num_boxes[c], quality.num_objects[c]) == (len(boxes), len(objects))
    whole = box_quality(found, truth)
    np.testing.assert_allclose(
        whole.precision, share(np.repeat(quality.precision, quality.num_boxes))
    )
    assert whole.boxes_per_image == num_boxes / 4


def test_box_quality_measures_part_domination():
    found, truth = two_images()
    quality = box_quality(found, truth)
    assert quality.precision == pytest.approx(2 / 3)
    assert quality.recall == pytest.approx(2 / 4)
    assert quality.mean_iou == pytest.approx((1 + 0.8 + 0.16) / 3)
    assert quality.size_ratio == pytest.approx(np.sqrt(0.8))
    assert quality.boxes_per_image == 1.5
    nothing = box_quality(found.take(np.zeros(0, int)), truth)
    assert np.isnan(nothing.precision) and nothing.recall == 0.0
