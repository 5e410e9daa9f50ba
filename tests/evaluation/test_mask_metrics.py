"""AP and best overlap of masks against literal loops over pixels; masks of boxes against boxes."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.test_average_precision import detections_of, random_tables, truth_of
from tests.oracles import evals as oracle
from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.average_precision import MASK_IOU_THRS, evaluate_detections
from wsod_jax.evaluation.metrics.best_overlap import average_best_overlap
from wsod_jax.evaluation.metrics.coco_metrics import coco_ap
from wsod_jax.evaluation.metrics.tables import DetectionTable
from wsod_jax.ops.masks import mask_areas, mask_to_rle
from wsod_jax.types import Mask

SIZE = (12, 12)


def box_mask(box):
    x1, y1, x2, y2 = map(int, box)
    return mask_to_rle(Mask(y1, x1, np.ones((y2 - y1, x2 - x1), bool)), SIZE)


def with_masks(table, masks=None):
    masks = [box_mask(box) for box in table.boxes] if masks is None else masks
    return dataclasses.replace(table, masks=tuple(masks))


def random_masks(rng, count):
    """Draw pixels of few columns, so that overlaps, ties and empty masks occur."""
    pixels = np.zeros((count, *SIZE), bool)
    for mask in pixels:
        top, left = rng.integers(0, 8, 2)
        mask[top : top + rng.integers(0, 5), left : left + 4] = rng.random() < 0.8
        mask &= rng.random(SIZE) < 0.8
    return pixels, [mask_to_rle(Mask(0, 0, mask), SIZE) for mask in pixels]


def pixel_iou(a, b):
    union = sum(x or y for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
    both = sum(x and y for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
    return both / union if union else 0.0


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), num_detections=st.integers(0, 25), num_objects=st.integers(0, 9))
def test_masks_of_boxes_score_as_boxes(seed, num_detections, num_objects):
    rng = np.random.default_rng(seed)
    found, truth = random_tables(rng, num_detections=num_detections, num_objects=num_objects)
    found, truth = with_masks(found), with_masks(truth)
    for evaluate in (
        lambda region: (
            evaluate_detections(
                found, truth, region=region, iou_thrs=MASK_IOU_THRS, ap_mode="area"
            ).ap
        ),
        lambda region: coco_ap(found, truth, region=region).ap_at,
        lambda region: list(coco_ap(found, truth, region=region).summary.values()),
        lambda region: average_best_overlap(found, truth, region=region).overlap,
    ):
        np.testing.assert_allclose(evaluate("masks"), evaluate("boxes"), atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_overlaps_are_those_of_the_pixels(seed):
    rng = np.random.default_rng(seed)
    found, truth = random_tables(rng, num_images=2, num_detections=15, num_objects=8)
    found_pixels, found_masks = random_masks(rng, 15)
    true_pixels, true_masks = random_masks(rng, 8)
    found, truth = with_masks(found, found_masks), with_masks(truth, true_masks)
    result = average_best_overlap(found, truth, region="masks")
    per_class = {c: [] for c in range(3)}
    for g in np.flatnonzero(~truth.difficult):
        best = 0.0
        for d in range(15):
            if (found.image_index[d], found.classes[d]) == (truth.image_index[g], truth.classes[g]):
                best = max(best, pixel_iou(found_pixels[d], true_pixels[g]))
        per_class[int(truth.classes[g])].append(best)
    np.testing.assert_allclose(
        result.abo, [np.mean(v) if v else np.nan for v in per_class.values()], atol=1e-12
    )
    curves = evaluate_detections(found, truth, region="masks", iou_thrs=(0.25,), ap_mode="area")
    for c in range(3):  # the loops compare boxes by IoU of their own; here of pixels
        verdicts = voc_verdicts(found, truth, found_pixels, true_pixels, c)
        np.testing.assert_array_equal(curves.matched[found.classes == c], verdicts)
        counted = np.array([v for v in in_score_order(found, c, verdicts) if v >= 0], int)
        hits, num_objects = np.cumsum(counted), int(np.sum(~truth.difficult[truth.classes == c]))
        if num_objects:
            expected = oracle.average_precision(
                (hits / num_objects).tolist(), (hits / np.arange(1, len(hits) + 1)).tolist(), "area"
            )
            assert curves.ap[c, 0] == pytest.approx(expected)


def in_score_order(found, c, verdicts):
    mine = np.flatnonzero(found.classes == c)
    order = sorted(range(len(mine)), key=lambda i: (-found.scores[mine[i]], i))
    return [verdicts[i] for i in order]


def voc_verdicts(found, truth, found_pixels, true_pixels, c):
    """Return 1, 0 or -1 per detection of the class, in table order, by VOC's rule at IoU > 0.25."""
    mine = [i for i in range(len(found)) if found.classes[i] == c]
    verdicts, taken = {}, set()
    for i in sorted(mine, key=lambda i: (-found.scores[i], i)):
        best, best_iou = None, -1.0
        for g in range(len(truth)):
            if truth.classes[g] == c and truth.image_index[g] == found.image_index[i]:
                iou = pixel_iou(found_pixels[i], true_pixels[g])
                if iou > best_iou:
                    best, best_iou = g, iou
        if best_iou <= 0.25:
            verdicts[i] = 0
        elif truth.difficult[best]:
            verdicts[i] = -1
        else:
            verdicts[i] = int(best not in taken)
            taken.add(best)
    return [verdicts[i] for i in mine]


def test_ground_truth_found_exactly_scores_one():
    boxes = [(0, 0, 4, 4), (2, 2, 10, 12), (5, 0, 9, 3)]
    truth = with_masks(
        truth_of([(0, 0, boxes[0], False), (0, 1, boxes[1], False), (1, 1, boxes[2], False)],
                 num_images=2, num_classes=3)
    )  # fmt: skip
    found = with_masks(
        detections_of([(0, 0, 0.5, boxes[0]), (0, 1, 0.4, boxes[1]), (1, 1, 0.3, boxes[2])],
                      num_images=2, num_classes=3)
    )  # fmt: skip
    metrics = coco_ap(found, truth, region="masks")
    assert metrics.summary["AP"] == metrics.mean_ap_at[0.25] == pytest.approx(1)
    np.testing.assert_allclose(metrics.ap, [1, 1, np.nan])
    assert metrics.ap_at.shape == (3, 11)
    assert evaluate_detections(found, truth, region="masks").mean_ap == 1
    overlap = average_best_overlap(found, truth, region="masks")
    assert overlap.mean == 1 and np.isnan(overlap.abo[2])
    nothing = found.take(np.zeros(0, int))
    assert nothing.masks == ()
    for none in (nothing, dataclasses.replace(nothing, masks=None)):  # an empty file does not tell
        assert average_best_overlap(none, truth, region="masks").mean == 0
        assert coco_ap(none, truth, region="masks").summary["AP"] == 0
        assert evaluate_detections(none, truth, region="masks").mean_ap == 0
    empty = truth.take(np.zeros(3, bool))
    assert np.isnan(average_best_overlap(found, empty, region="masks").mean)
    assert np.isnan(coco_ap(found, empty, region="masks").summary["AP"])


@pytest.mark.parametrize("crowd", [True, False])
def test_what_lies_on_a_crowd_or_a_difficult_object_counts_neither_way(crowd):
    rows = [(0, 0, (0, 0, 4, 4), False), (0, 0, (5, 0, 12, 12), True)]
    truth = dataclasses.replace(with_masks(truth_of(rows)), crowd=[False, crowd])
    inside, outside = (5, 1, 8, 4), (0, 6, 4, 10)  # a part of the second object; nothing
    exact = [(0, 0, 0.5, (0, 0, 4, 4)), (0, 0, 0.9, (5, 0, 12, 12))]

    def ap(*boxes):
        found = with_masks(detections_of([*exact, *((0, 0, 0.8, box) for box in boxes)]))
        return coco_ap(found, truth, region="masks").summary["AP"]

    assert ap() == pytest.approx(1)
    assert ap(inside) == pytest.approx(1 if crowd else 0.5)  # any part of a crowd may be found
    assert ap(outside) == pytest.approx(0.5)


def test_sizes_of_masks_are_their_pixels():
    truth = truth_of([(0, 0, (0, 0, 12, 12), False)])
    pixels = np.zeros(SIZE, bool)
    pixels[:3] = True
    table = with_masks(truth, [mask_to_rle(Mask(0, 0, pixels), SIZE)])
    assert table.areas.tolist() == [144]  # known before the masks were added
    made = dataclasses.replace(table, areas=None)
    assert made.areas.tolist() == [36] and made.take([0]).areas.tolist() == [36]


def test_areas_of_many_masks():
    masks = [box_mask((0, 0, 1 + i % 12, 2)) for i in range(300)]
    assert mask_areas(masks).tolist() == [2 * (1 + i % 12) for i in range(300)]
    assert mask_areas([]).shape == (0,)


def test_tables_without_masks_or_with_masks_of_another_image_are_named():
    truth = truth_of([(0, 0, (0, 0, 4, 4), False)])
    found = detections_of([(0, 0, 0.5, (0, 0, 4, 4))])
    with pytest.raises(DataError, match="truth.*masks"):
        coco_ap(with_masks(found), truth, region="masks")
    with pytest.raises(DataError, match="detections.*masks"):
        average_best_overlap(found, with_masks(truth), region="masks")
    other = with_masks(found, [mask_to_rle(Mask(0, 0, np.ones((2, 2), bool)), (5, 9))])
    for evaluate in (coco_ap, evaluate_detections, average_best_overlap):
        with pytest.raises(DataError, match=r"image 0 .*\(5, 9\)|image 0 .*\(12, 12\)"):
            evaluate(other, with_masks(truth), region="masks")
    with pytest.raises(DataError, match="2 masks for 1 boxes"):
        with_masks(found, [box_mask((0, 0, 1, 1))] * 2)
    with pytest.raises(DataError, match="0 masks for 1 boxes"):
        DetectionTable([0], [0], [0.5], [[0, 0, 1, 1]], 1, 1, ())
