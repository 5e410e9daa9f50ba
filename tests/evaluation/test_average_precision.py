"""VOC average precision against the literal loops, an independent project's numbers, and by hand."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import evals as oracle
from wsod_jax.data.records import AnnotatedBoxes, BoxAnnotations
from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.average_precision import (
    IOU_SWEEP,
    average_precision,
    evaluate_detections,
    match_detections,
)
from wsod_jax.evaluation.metrics.tables import DetectionTable, GroundTruth
from wsod_jax.types import ImageResult

GOLDEN = Path(__file__).parents[1] / "golden" / "padilla"


def detections_of(rows, *, num_images=1, num_classes=1):
    """Make a table of (image, class, score, box) rows."""
    return DetectionTable(
        image_index=[row[0] for row in rows],
        classes=[row[1] for row in rows],
        scores=[row[2] for row in rows],
        boxes=[row[3] for row in rows],
        num_images=num_images,
        num_classes=num_classes,
    )


def truth_of(rows, *, num_images=1, num_classes=1):
    """Make a table of (image, class, box, difficult) rows."""
    return GroundTruth(
        image_index=[row[0] for row in rows],
        classes=[row[1] for row in rows],
        boxes=[row[2] for row in rows],
        difficult=[row[3] for row in rows],
        num_images=num_images,
        num_classes=num_classes,
    )


def two_images():
    """Make tables of a hit, a box that is a little short, a small part, and a difficult object nobody found."""
    found = detections_of(
        [(0, 0, 0.9, BOX), (0, 1, 0.8, [0, 0, 10, 8]), (1, 1, 0.7, [0, 0, 4, 4])],
        num_images=2,
        num_classes=3,
    )
    truth = truth_of(
        [(0, 0, BOX, False), (0, 1, BOX, False), (1, 1, BOX, False), (1, 2, BOX, True)],
        num_images=2,
        num_classes=3,
    )
    return found, truth


def random_tables(rng, *, num_images=4, num_classes=3, num_detections=60, num_objects=14):
    """Draw integer boxes and coarse scores, so that ties, duplicates and exact IoU thresholds occur."""

    def boxes(count):
        corner = rng.integers(0, 6, (count, 2))
        return np.concatenate([corner, corner + rng.integers(1, 6, (count, 2))], axis=1)

    found = zip(
        rng.integers(0, num_images, num_detections),
        rng.integers(0, num_classes, num_detections),
        rng.integers(0, 10, num_detections) / 8,
        boxes(num_detections),
        strict=True,
    )
    objects = zip(
        rng.integers(0, num_images, num_objects),
        rng.integers(0, num_classes, num_objects),
        boxes(num_objects),
        rng.random(num_objects) < 0.3,
        strict=True,
    )
    return (
        detections_of(list(found), num_images=num_images, num_classes=num_classes),
        truth_of(list(objects), num_images=num_images, num_classes=num_classes),
    )


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    mode=st.sampled_from(["11point", "11point_devkit", "area", "ranking"]),
    iou_thr=st.sampled_from([0.25, 0.5, 0.75]),
    num_detections=st.integers(0, 60),
    num_objects=st.integers(0, 14),
)
def test_random_sets_agree_with_the_loops(seed, mode, iou_thr, num_detections, num_objects):
    rng = np.random.default_rng(seed)
    found, truth = random_tables(rng, num_detections=num_detections, num_objects=num_objects)
    metrics = evaluate_detections(found, truth, iou_thrs=(iou_thr,), ap_mode=mode)
    for c in range(3):
        mine = np.flatnonzero(found.classes == c)
        theirs = np.flatnonzero(truth.classes == c)
        expected, verdicts = oracle.class_ap(
            [(found.image_index[i], found.scores[i], found.boxes[i].tolist()) for i in mine],
            [(truth.image_index[i], truth.boxes[i].tolist(), truth.difficult[i]) for i in theirs],
            iou_thr,
            mode,
        )
        np.testing.assert_allclose(metrics.ap[c, 0], expected, atol=1e-12)
        np.testing.assert_array_equal(metrics.matched[mine], verdicts)


@settings(deadline=None, max_examples=60)
@given(
    steps=st.lists(st.booleans(), min_size=1, max_size=30),
    extra=st.integers(0, 5),
    mode=st.sampled_from(["11point", "11point_devkit", "area", "ranking"]),
)
def test_average_precision_agrees_with_the_loops(steps, extra, mode):
    hits = np.cumsum(steps)
    recall = hits / max(hits[-1] + extra, 1)
    precision = hits / np.arange(1, len(steps) + 1)
    expected = oracle.average_precision(recall.tolist(), precision.tolist(), mode)
    assert average_precision(recall, precision, mode) == pytest.approx(expected, abs=1e-12)


def test_devkit_steps_miss_recalls_of_exactly_three_six_and_seven_tenths():
    recall = np.array([3, 6, 7]) / 10
    for level in recall:
        exact = average_precision(np.array([level]), np.array([1.0]), "11point")
        devkit = average_precision(np.array([level]), np.array([1.0]), "11point_devkit")
        assert exact - devkit == pytest.approx(1 / 11)
    assert average_precision(np.array([0.5]), np.array([1.0]), "11point_devkit") == pytest.approx(
        6 / 11
    )


def test_average_precision_of_an_empty_curve_and_of_an_unknown_mode():
    for mode in ("11point", "11point_devkit", "area"):
        assert average_precision(np.zeros(0), np.zeros(0), mode) == 0.0
    with pytest.raises(ValueError, match="allowed"):
        average_precision(np.zeros(0), np.zeros(0), "coco")


def test_independent_project_gives_the_same_numbers():
    def read(name, numbers):
        rows = [line.split() for line in (GOLDEN / name).read_text().splitlines()]
        values = np.array([[float(value) for value in row[2:]] for row in rows])
        assert values.shape[1] == numbers
        corner = values[:, -4:-2]
        # the expected numbers count the last pixel
        boxes = np.concatenate([corner, corner + values[:, -2:] + 1], axis=1)
        return np.array([int(row[0]) - 1 for row in rows]), values[:, 0], boxes

    images, scores, boxes = read("detections.txt", 5)
    truth_images, _, truth_boxes = read("groundtruths.txt", 4)
    found = DetectionTable(images, np.zeros(len(images)), scores, boxes, 7, 1)
    none = np.zeros(len(truth_images))
    truth = GroundTruth(truth_images, none, truth_boxes, none, 7, 1)
    for mode, percent in (("area", 24.57), ("11point", 26.84)):
        metrics = evaluate_detections(found, truth, iou_thrs=(0.3,), ap_mode=mode)
        assert round(100 * metrics.mean_ap[0], 2) == percent
    assert metrics.num_objects.tolist() == [15] and metrics.hits[0, 0] == 7


BOX = [0, 0, 10, 10]


@pytest.mark.parametrize(
    ("found", "objects", "expected", "ap"),
    [
        ([], [(0, 0, BOX, False)], [], 0.0),  # no detection
        ([(0, 0, 0.9, BOX)], [], [0], np.nan),  # no object
        ([(0, 0, 0.9, BOX)], [(0, 0, BOX, True)], [-1], np.nan),  # only a difficult one
        ([(0, 0, 0.9, BOX), (0, 0, 0.8, BOX)], [(0, 0, BOX, False)], [1, 0], 1.0),  # duplicate
        ([(0, 0, 0.9, BOX), (0, 0, 0.9, BOX)], [(0, 0, BOX, False)], [1, 0], 1.0),  # tie: first
        ([(0, 0, 0.8, BOX), (0, 0, 0.9, BOX)], [(0, 0, BOX, False)], [0, 1], 1.0),
        ([(0, 0, 0.9, [0, 0, 10, 5])], [(0, 0, BOX, False)], [0], 0.0),  # IoU exactly 0.5
        ([(0, 0, 0.9, [0, 0, 10, 5.01])], [(0, 0, BOX, False)], [1], 1.0),
        ([(0, 0, 0.9, [3, 3, 3, 3])], [(0, 0, [3, 3, 3, 3], False)], [0], 0.0),  # empty boxes
    ],
)
def test_cases_by_hand(found, objects, expected, ap):
    metrics = evaluate_detections(detections_of(found), truth_of(objects))
    assert metrics.matched.tolist() == expected
    np.testing.assert_allclose(metrics.ap[0, 0], ap)


def test_detection_looks_only_at_the_object_it_overlaps_most():
    objects = [(0, 0, [0, 0, 10, 10], False), (0, 0, [0, 0, 10, 8], False)]
    found = [(0, 0, 0.9, [0, 0, 10, 10]), (0, 0, 0.8, [0, 0, 10, 9.5])]
    assert match_detections(detections_of(found), truth_of(objects)).tolist() == [1, 0]


def test_images_and_classes_do_not_mix():
    found = detections_of(
        [(0, 0, 0.9, BOX), (1, 1, 0.8, BOX), (2, 0, 0.7, BOX)], num_images=3, num_classes=3
    )
    truth = truth_of([(1, 0, BOX, False), (2, 1, BOX, False)], num_images=3, num_classes=3)
    metrics = evaluate_detections(found, truth)
    assert metrics.matched.tolist() == [0, 0, 0]
    assert np.flatnonzero(metrics.num_objects == 0).tolist() == [2]
    np.testing.assert_array_equal(metrics.ap[:, 0], [0.0, 0.0, np.nan])
    assert metrics.mean_ap[0] == 0.0


def test_truth_as_detections_is_perfect_at_every_threshold():
    side = np.arange(1, 13)
    boxes = np.stack([side, side, 30.7 * side, 20.3 * side], axis=1)  # distinct
    truth = GroundTruth(side % 4, side % 3, boxes, np.zeros(12), 4, 3)
    found = DetectionTable(truth.image_index, truth.classes, np.ones(12), truth.boxes, 4, 3)
    metrics = evaluate_detections(found, truth, iou_thrs=IOU_SWEEP, ap_mode="area")
    np.testing.assert_allclose(metrics.mean_ap, 1.0)
    assert metrics.ap.shape == (3, 10)


def test_sweep_equals_single_thresholds():
    found, truth = random_tables(np.random.default_rng(5))
    swept = evaluate_detections(found, truth, iou_thrs=(0.5, 0.75))
    alone = evaluate_detections(found, truth, iou_thrs=(0.75,))
    np.testing.assert_array_equal(swept.ap[:, 1], alone.ap[:, 0])


def test_tables_of_different_sets_are_refused():
    found = detections_of([(0, 0, 0.9, BOX)], num_images=2)
    with pytest.raises(DataError, match="2 images"):
        evaluate_detections(found, truth_of([]))
    with pytest.raises(DataError, match="0 to 0"):
        detections_of([(1, 0, 0.9, BOX)])
    with pytest.raises(DataError, match="finite"):
        detections_of([(0, 0, np.nan, BOX)])
    with pytest.raises(DataError, match="shape"):
        DetectionTable([0, 0], [0, 0], [0.5, 0.4], [BOX], 1, 1)


def test_truth_table_from_images_counts_empty_images():
    truth = GroundTruth.from_images(
        [np.zeros((0, 4)), [BOX, BOX]], [[], [1, 1]], [[], [True, False]], num_classes=2
    )
    assert truth.num_images == 2 and truth.image_index.tolist() == [1, 1]
    assert truth.counts().tolist() == [[0, 0], [0, 2]]
    assert truth.counts(include_difficult=False).tolist() == [[0, 0], [0, 1]]
    assert truth.present().tolist() == [[False, False], [False, True]]
    assert len(GroundTruth.from_images([], [], num_classes=1)) == 0


def test_truth_table_from_what_the_readers_return():
    truth = AnnotatedBoxes(
        class_names=("a", "b"),
        boxes={
            "x": BoxAnnotations.from_lists([], [], []),
            "y": BoxAnnotations.from_lists([BOX], [1], [True]),
        },
    )
    objects = truth.select(["y", "x"]).boxes.values()
    table = GroundTruth.from_annotations(objects, num_classes=2)
    assert table.num_images == 2 and table.image_index.tolist() == [0]
    assert table.classes.tolist() == [1] and table.difficult.tolist() == [True]


def test_a_table_of_results_in_any_order():
    def result(index, scores):
        boxes = np.tile(np.float32(BOX), (len(scores), 1))
        return ImageResult(index, (9, 9), boxes, np.array(scores), np.zeros(len(scores), int))

    results = [result(3, [0.5, 0.25]), ImageResult(0, (9, 9)), result(1, [0.75]), result(2, [])]
    table = DetectionTable.of_results(results, num_images=5, num_classes=2)
    assert table.image_index.tolist() == [1, 3, 3] and table.scores.tolist() == [0.75, 0.5, 0.25]
    assert (table.num_images, table.num_classes) == (5, 2)
    assert len(DetectionTable.of_results([], num_images=2, num_classes=1)) == 0
