"""COCO's box metrics through pycocotools, in memory."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

import numpy as np

from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.tables import DetectionTable, TruthTable

SUMMARY = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
IGNORED_AREA = 1e11  # beyond COCO's largest area range, hence ignored in all of them


@dataclass(frozen=True)
class CocoMetrics:
    """COCO's summary.

    Attributes:
      summary: name -> value in [0, 1], NaN where there is no such object; see `SUMMARY`.
      ap: [c] float64 mean AP over IoU 0.50 to 0.95; NaN for a class without objects.
    """

    summary: dict[str, float]
    ap: np.ndarray


def coco_box_ap(detections: DetectionTable, truth: TruthTable) -> CocoMetrics:
    """Return COCO's box AP and AR.

    Crowds are matched as COCO does. Other difficult objects are ignored: neither hits nor misses, whatever
    their size. At most 100 detections per image and class count.

    Raises:
      DataError: the tables cover different sets.
    Source: Lin et al. 2014; pycocotools decides every detail.
    """
    from pycocotools.cocoeval import COCOeval

    if (detections.num_images, detections.num_classes) != (truth.num_images, truth.num_classes):
        raise DataError(
            f"detections cover {detections.num_images} images and {detections.num_classes} classes, ground truth "
            f"{truth.num_images} and {truth.num_classes}; evaluate on the image set that was predicted"
        )
    ignored = truth.difficult & ~truth.crowd
    areas = np.where(ignored, IGNORED_AREA, truth.areas)
    found_areas = np.prod(detections.boxes[:, 2:] - detections.boxes[:, :2], axis=1)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _coco(truth, areas=areas, crowd=truth.crowd),
            _coco(detections, areas=found_areas, scores=detections.scores),
            iouType="bbox",
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = np.where(evaluation.stats < 0, np.nan, evaluation.stats)  # -1 means: no such object
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # [iou, recall, c], all areas, 100
    precision = np.where(precision < 0, np.nan, precision)
    has_objects = ~np.isnan(precision).any(axis=(0, 1))
    ap = np.full(truth.num_classes, np.nan)
    ap[has_objects] = precision[:, :, has_objects].mean(axis=(0, 1))
    return CocoMetrics(dict(zip(SUMMARY, values.tolist(), strict=True)), ap)


def _coco(table: DetectionTable | TruthTable, *, areas, crowd=None, scores=None):
    """Return a table as a pycocotools `COCO` object."""
    from pycocotools.coco import COCO

    boxes = table.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": index} for index in range(table.num_images)],
        "categories": [{"id": c} for c in range(table.num_classes)],
        "annotations": [
            {
                "id": row + 1,  # 0 means "no match" to pycocotools
                "image_id": int(table.image_index[row]),
                "category_id": int(table.classes[row]),
                "bbox": boxes[row].tolist(),
                "area": float(areas[row]),
                "iscrowd": 0 if crowd is None else int(crowd[row]),
                **({} if scores is None else {"score": float(scores[row])}),
            }
            for row in range(len(boxes))
        ],
    }
    coco.createIndex()
    return coco
