"""Correct localisation (CorLoc): does the best box of each present class lie on an object?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsod_jax.evals.tables import DetectionTable, TruthTable
from wsod_jax.evals.voc import best_overlaps, mean_over_classes


@dataclass(frozen=True)
class CorLocMetrics:
    """Correct localisation per class.

    Attributes:
      corloc: [c] float64 in [0, 1]; NaN for a class that no image contains.
      hits: [c] int, images whose top box hits an object of the class.
      num_images: [c] int, images that contain the class.
      hit: [n, c] bool, the image's top box of the class hits.
    """

    corloc: np.ndarray
    hits: np.ndarray
    num_images: np.ndarray
    hit: np.ndarray

    @property
    def mean(self) -> float:
        """Mean over the classes that occur; NaN if none does."""
        return float(mean_over_classes(self.corloc))


def corloc(
    top_boxes: np.ndarray,
    valid: np.ndarray,
    truth: TruthTable,
    *,
    iou_thr: float = 0.5,
    include_difficult: bool = True,
    plus_one: bool = False,
) -> CorLocMetrics:
    """Return the share of images whose top box of a class hits any of its objects.

    CorLoc_c = |{images with class c whose top box has IoU > iou_thr with an object of c}| /
    |{images with class c}|. Greedy NMS never removes a class's best box, so applying it first
    ("NMS for mAP and CorLoc", as papers put it) changes nothing.

    Args:
      top_boxes: [n, c, 4] the highest-scored box of every image and class, original pixels.
      valid: [n, c] bool; False where there is no box, which is a miss.
      truth: objects of these n images.
      iou_thr: a hit needs IoU > this.
      include_difficult: difficult objects count as hits and put their image into the denominator. False ignores
        them in both.
      plus_one: boxes name their last pixel, see `voc.paired_iou`.
    Returns:
      `CorLocMetrics`; a class without images has NaN and is left out of the mean.
    Raises:
      DataError: `top_boxes` covers another image set than `truth`, or holds values that are not finite where valid.

    Source: Deselaers et al. 2012, section 6; difficult objects as in the released OICR code.
    """
    top_boxes, valid = np.asarray(top_boxes), np.asarray(valid, bool)
    image_index, classes = np.nonzero(valid)
    table = DetectionTable(
        image_index=image_index,
        classes=classes,
        scores=np.ones(len(classes)),
        boxes=top_boxes[image_index, classes],
        num_images=valid.shape[0],
        num_classes=valid.shape[1],
    )
    if not include_difficult:
        truth = truth.take(~truth.difficult)
    best_iou, _ = best_overlaps(table, truth, plus_one=plus_one)
    hit = np.zeros(valid.shape, bool)
    hit[image_index, classes] = best_iou > iou_thr
    present = truth.present()
    hits, num_images = (hit & present).sum(axis=0), present.sum(axis=0)
    share = np.where(num_images > 0, hits / np.maximum(num_images, 1), np.nan)
    return CorLocMetrics(corloc=share, hits=hits, num_images=num_images, hit=hit & present)


def top_boxes(detections: DetectionTable) -> tuple[np.ndarray, np.ndarray]:
    """Return the best box of every image and class, [n, c, 4] float32, and where there is one, [n, c] bool.

    Ties: the first row of the table.
    """
    shape = (detections.num_images, detections.num_classes)
    boxes, valid = np.zeros((*shape, 4), np.float32), np.zeros(shape, bool)
    order = np.argsort(-detections.scores, kind="stable")[::-1]  # the best row is written last
    boxes[detections.image_index[order], detections.classes[order]] = detections.boxes[order]
    valid[detections.image_index, detections.classes] = True
    return boxes, valid
