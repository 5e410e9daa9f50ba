"""COCO's numbers of boxes: the perfect, none, and beside VOC's."""

import numpy as np
import pytest

from tests.evaluation.test_average_precision import detections_of, two_images
from wsod_jax.evaluation.metrics.average_precision import evaluate_detections
from wsod_jax.evaluation.metrics.coco_metrics import coco_ap


def test_coco_metrics_of_perfect_and_of_no_detections():
    _, truth = two_images()
    perfect = detections_of(
        [
            (i, c, 0.5, box)
            for i, c, box in zip(truth.image_index, truth.classes, truth.boxes, strict=True)
        ],
        num_images=2,
        num_classes=3,
    )
    metrics = coco_ap(perfect, truth)
    assert metrics.summary["AP"] == pytest.approx(1.0)
    np.testing.assert_allclose(metrics.ap, [1.0, 1.0, np.nan])  # the third has a difficult one only
    nothing = coco_ap(perfect.take(np.zeros(0, int)), truth)
    assert nothing.summary["AP"] == 0.0 and np.isnan(nothing.summary["AP_large"])


def test_coco_ap50_differs_from_area_ap_by_interpolation_only():
    found, truth = two_images()
    coco = coco_ap(found, truth).summary["AP50"]
    area = evaluate_detections(found, truth, ap_mode="area").mean_ap[0]
    assert coco == pytest.approx(area, abs=0.01)
