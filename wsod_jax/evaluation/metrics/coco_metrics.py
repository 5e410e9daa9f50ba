"""COCO's metrics of boxes and masks through pycocotools, in memory."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

import numpy as np

from wsod_jax.evaluation.metrics.average_precision import IOU_SWEEP, mean_over_classes
from wsod_jax.evaluation.metrics.tables import (
    DetectionTable,
    GroundTruth,
    Region,
    check_same_set,
)
from wsod_jax.ops.boxes import box_area
from wsod_jax.ops.masks import mask_areas

SUMMARY = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
IOU_THRS = (0.25, *IOU_SWEEP)  # 0.25 is beyond COCO's own, and enters no mean
IGNORED_AREA = 1e11  # beyond COCO's largest area range, hence ignored in all of them


@dataclass(frozen=True)
class CocoMetrics:
    """COCO's summary.

    Attributes:
      summary: name -> value in [0, 1], NaN where there is no such object; see `SUMMARY`.
      ap: [c] float64 mean AP over IoU 0.50 to 0.95; NaN for a class without objects.
      ap_at: [c, t] float64 AP at each of `IOU_THRS`.
    """

    summary: dict[str, float]
    ap: np.ndarray
    ap_at: np.ndarray

    @property
    def mean_ap_at(self) -> dict[float, float]:
        """Each of `IOU_THRS` -> mean AP over the classes that have an object."""
        return dict(zip(IOU_THRS, mean_over_classes(self.ap_at).tolist(), strict=True))


def coco_ap(
    detections: DetectionTable, truth: GroundTruth, *, region: Region = "boxes"
) -> CocoMetrics:
    """Return COCO's AP and AR of boxes or of masks.

    Crowds are matched as COCO does. Other difficult objects are ignored: neither hits nor misses, whatever
    their size. At most 100 detections per image and class count. Of masks, sizes of detections are their pixels, of
    boxes the box's area; sizes of objects are `truth.areas` in both.

    Args:
      detections: candidates after NMS.
      truth: objects of the same image set.
      region: what overlaps, boxes (`bbox`) or masks (`segm`).
    Raises:
      DataError: the tables cover different sets, or lack the masks to compare.
    Source: Lin et al. 2014; pycocotools decides every detail.
    """
    from pycocotools.cocoeval import COCOeval

    check_same_set(detections, truth, region)
    ignored = truth.difficult & ~truth.crowd
    areas = np.where(ignored, IGNORED_AREA, truth.areas)
    found_areas = (
        box_area(detections.boxes) if region == "boxes" else mask_areas(detections.masks or ())
    )
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _coco(truth, areas=areas, crowd=truth.crowd),
            _coco(detections, areas=found_areas, scores=detections.scores),
            iouType={"boxes": "bbox", "masks": "segm"}[region],
        )
        sweep = evaluation.params.iouThrs
        evaluation.params.iouThrs = np.append(IOU_THRS[0], sweep)
        evaluation.evaluate()
        evaluation.accumulate()
        precision = evaluation.eval["precision"][:, :, :, 0, 2]  # [t, recall, c], all areas, 100
        evaluation.params.iouThrs = sweep
        for name in ("precision", "recall"):
            evaluation.eval[name] = evaluation.eval[name][1:]
        evaluation.summarize()
    values = np.where(evaluation.stats < 0, np.nan, evaluation.stats)  # -1 means: no such object
    ap_at = np.where(precision < 0, np.nan, precision).mean(axis=1).T  # [c, t]
    summary = dict(zip(SUMMARY, values.tolist(), strict=True))
    return CocoMetrics(summary, ap_at[:, 1:].mean(axis=1), ap_at)


def _coco(table: DetectionTable | GroundTruth, *, areas, crowd=None, scores=None):
    """Return a table as a pycocotools `COCO` object."""
    from pycocotools.coco import COCO

    boxes = table.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    coco = COCO()
    coco.dataset = {
        # Sizes are asked for, and used of polygons alone.
        "images": [{"id": index, "height": 0, "width": 0} for index in range(table.num_images)],
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
                **({} if table.masks is None else {"segmentation": table.masks[row]}),
            }
            for row in range(len(boxes))
        ],
    }
    coco.createIndex()
    return coco
