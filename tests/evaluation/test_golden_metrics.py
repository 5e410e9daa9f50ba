"""Numbers that other people's code gave; see tests/golden/metrics/README.md."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tests.evaluation.test_corloc import best_boxes
from tests.golden import cases
from wsod_jax.evaluation.metrics.average_precision import evaluate_detections
from wsod_jax.evaluation.metrics.coco_metrics import coco_ap
from wsod_jax.evaluation.metrics.corloc import corloc
from wsod_jax.evaluation.metrics.semantic import MeanIou
from wsod_jax.evaluation.metrics.tables import DetectionTable, GroundTruth

LAST_PIXEL = np.array([0, 0, 1, 1])  # VOC's boxes name the last pixel that they hold


@pytest.mark.parametrize("case", list(cases("metrics/voc_metrics.npz")), ids=lambda case: case[0])
def test_voc_average_precision_and_corloc(case):
    _, of = case
    size = int(of["num_images"]), int(of["num_classes"])
    found = DetectionTable(
        of["det_image"], of["det_class"], of["det_score64"], of["det_box64"] + LAST_PIXEL, *size
    )
    truth = GroundTruth(
        of["gt_image"], of["gt_class"], of["gt_box"] + LAST_PIXEL, of["gt_difficult"], *size
    )
    ranked = found.take(of["det_order"])
    for mode, expected in (("11point_devkit", of["ap_07_64"]), ("area", of["ap_10_64"])):
        metrics = evaluate_detections(ranked, truth, ap_mode=mode)
        has_objects = (
            metrics.num_objects > 0
        )  # without, that code gives 0 by one rule and NaN by the other
        np.testing.assert_allclose(metrics.ap[has_objects, 0], expected[has_objects], atol=1e-6)
        assert np.isnan(metrics.ap[~has_objects]).all()
    localized = corloc(best_boxes(found), truth)
    np.testing.assert_allclose(localized.corloc, of["corloc64"], atol=1e-6)


def rles(packed, shape):
    """Return bit-packed masks as RLEs."""
    pixels = np.unpackbits(packed, axis=2)[:, :, : shape[1]]
    return coco_mask.encode(np.asfortranarray(pixels.transpose(1, 2, 0)))


@pytest.mark.parametrize("case", list(cases("metrics/coco_segm.npz")), ids=lambda case: case[0])
def test_coco_metrics_of_masks(case):
    _, of = case
    gt_masks, det_masks = (rles(of[name], of["shape"]) for name in ("gt_mask", "det_mask"))
    size = max(of["gt_image"].max(), of["det_image"].max()) + 1, of["gt_class"].max() + 1
    crowd = of["gt_crowd"].astype(bool)
    boxes = np.zeros((len(gt_masks), 4))
    truth = GroundTruth(
        of["gt_image"], of["gt_class"], boxes, crowd, *size, crowd=crowd, masks=gt_masks
    )
    boxes = np.zeros((len(det_masks), 4))
    found = DetectionTable(
        of["det_image"], of["det_class"], of["det_score64"], boxes, *size, det_masks
    )
    metrics = coco_ap(found, truth, region="masks")
    stats = np.where(of["stats64"] < 0, np.nan, of["stats64"])
    np.testing.assert_allclose(list(metrics.summary.values()), stats, atol=1e-6)
    at = [metrics.mean_ap_at[iou_thr] for iou_thr in (0.25, 0.5, 0.7, 0.75)]
    np.testing.assert_allclose(at, of["ap_25_50_70_75_64"], atol=1e-6)
    assert metrics.summary["AP75"] == pytest.approx(metrics.mean_ap_at[0.75])


@pytest.mark.parametrize("case", list(cases("metrics/miou.npz")), ids=lambda case: case[0])
def test_mean_iou(case):
    _, of = case
    metric = MeanIou(int(of["num_classes"]) - 1)
    for predicted, truth in zip(of["pred"], of["gt"], strict=True):
        metric.add(predicted, truth)
    np.testing.assert_array_equal(metric.confusion, of["confusion"])
    np.testing.assert_allclose(metric.iou, of["iou64"], atol=1e-6)
    assert metric.mean == pytest.approx(float(of["miou64"]), abs=1e-6)
