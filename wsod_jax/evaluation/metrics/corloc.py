"""Correct localization (CorLoc): does the best box, or any box, of each present class lie on an object?"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.average_precision import best_overlaps, mean_over_classes
from wsod_jax.evaluation.metrics.best_overlap import average_best_overlap
from wsod_jax.evaluation.metrics.tables import DetectionTable, GroundTruth
from wsod_jax.ops.boxes import box_area


@dataclass(frozen=True)
class CorLocMetrics:
    """Correct localization per class.

    Attributes:
      corloc: [c] float64 in [0, 1]; NaN for a class that no image contains.
      hits: [c] int, images whose box (`corloc_any`: one of whose boxes) hits an object of the class.
      num_images: [c] int, images that contain the class.
      hit: [n, c] bool, the image is such a hit.
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
    best: DetectionTable,
    truth: GroundTruth,
    *,
    iou_thr: float = 0.5,
    include_difficult: bool = True,
) -> CorLocMetrics:
    """Return the share of images whose top box of a class hits any of its objects.

    CorLoc_c = |{images with class c whose top box has IoU > iou_thr with an object of c}| /
    |{images with class c}|. Greedy NMS never removes a class's best box, so applying it first
    ("NMS for mAP and CorLoc", as papers put it) changes nothing. Methods that make several boxes without
    a ranking are counted in two ways: the single reading gives this function their one tightest box, as the name CorLoc
    promises; `corloc_any` lets any of them hit.

    Args:
      best: the highest-scored box of every image and class; none is a miss.
      truth: objects of the same images.
      iou_thr: a hit needs IoU > this.
      include_difficult: difficult objects count as hits and put their image into the denominator. False ignores
        them in both.
    Returns:
      `CorLocMetrics`; a class without images has NaN and is left out of the mean.
    Raises:
      DataError: the tables cover different sets, or `best` has several boxes of an image and class.

    Source: Deselaers et al. 2012, section 6; difficult objects as in the released OICR code.
    """
    pairs = best.image_index.astype(np.int64) * best.num_classes + best.classes
    if len(np.unique(pairs)) < len(pairs):
        raise DataError(
            "CorLoc looks at one box per image and class, found several; see corloc_any"
        )
    return corloc_any(
        best,
        truth,
        iou_thr=iou_thr,
        inclusive=False,
        include_difficult=include_difficult,
    )


def corloc_any(
    boxes: DetectionTable,
    truth: GroundTruth,
    *,
    iou_thr: float = 0.5,
    inclusive: bool = True,
    include_difficult: bool = True,
) -> CorLocMetrics:
    """Return the share of images in which any box of a class hits any of its objects.

    The reading of CorLoc behind the number published for SPN, whose boxes are the connected components of maps at
    three scales: more boxes can only raise it. Not to be compared with `corloc`, which looks at one box.

    Args:
      boxes: all boxes of every image and class; scores are not used. An image without a box of the class is a miss.
      truth: objects of the same image set.
      iou_thr: see `inclusive`.
      inclusive: a hit needs IoU >= `iou_thr`, as in the released notebook; False: IoU > `iou_thr`, as `corloc`.
      include_difficult: difficult objects count as hits and put their image into the denominator. False ignores
        them in both.
    Returns:
      `CorLocMetrics`; a class without images has NaN and is left out of the mean.
    Raises:
      DataError: the tables cover different sets.

    Source: Zhu et al. 2017 (SPN), section 4.3, as its released notebook counts.
    """
    if not include_difficult:
        truth = truth.take(~truth.difficult)
    best_iou, _ = best_overlaps(boxes, truth)
    hits_object = best_iou >= iou_thr if inclusive else best_iou > iou_thr
    present = truth.present()
    hit = np.zeros(present.shape, bool)
    hit[boxes.image_index[hits_object], boxes.classes[hits_object]] = True
    hits, num_images = (hit & present).sum(axis=0), present.sum(axis=0)
    share = np.where(num_images > 0, hits / np.maximum(num_images, 1), np.nan)
    return CorLocMetrics(corloc=share, hits=hits, num_images=num_images, hit=hit & present)


@dataclass(frozen=True)
class BoxQuality:
    """How good mined boxes are as training targets.

    Attributes:
      precision: share of boxes with IoU > threshold with an object of their class; NaN without boxes.
      recall: share of objects that some box hits; NaN without objects.
      mean_iou: mean over boxes of the best IoU with an object of their class; NaN without boxes.
      size_ratio: median of sqrt(box area / area of the object it overlaps most), over boxes that overlap one;
        below 1 when boxes shrink to a part. NaN without such boxes.
      boxes_per_image: mean number of boxes.
    """

    precision: float
    recall: float
    mean_iou: float
    size_ratio: float
    boxes_per_image: float


def box_quality(boxes: DetectionTable, truth: GroundTruth, *, iou_thr: float = 0.5) -> BoxQuality:
    """Compare pseudo boxes, or any boxes, with the objects of their image and class.

    Args:
      boxes: mined boxes in pixels of the original image; scores are not used.
      truth: all objects, difficult ones count.
      iou_thr: a hit needs IoU > this.
    Returns:
      `BoxQuality`.
    """
    best_iou, best_row = best_overlaps(boxes, truth)
    hit = best_iou > iou_thr
    touching = best_iou > 0
    found = np.unique(best_row[hit])
    objects = truth.boxes[best_row[touching]]
    ratio = np.sqrt(box_area(boxes.boxes[touching]) / box_area(objects))
    return BoxQuality(
        precision=float(hit.mean()) if len(boxes) else np.nan,
        recall=len(found) / len(truth) if len(truth) else np.nan,
        mean_iou=float(best_iou.mean()) if len(boxes) else np.nan,
        size_ratio=float(np.median(ratio)) if touching.any() else np.nan,
        boxes_per_image=len(boxes) / max(boxes.num_images, 1),
    )


@dataclass(frozen=True)
class ClassQuality:
    """How good boxes are as training targets, class by class; NaN where a class has none to judge.

    Attributes:
      precision: [c] share of boxes with IoU > threshold with an object of their class.
      recall: [c] share of objects that some box hits.
      abo: [c] mean over objects of the best IoU of a box of their class, 0 for none (average best overlap).
      size_ratio: [c] as in `BoxQuality`.
      num_boxes, num_objects: [c] int.
    """

    precision: np.ndarray
    recall: np.ndarray
    abo: np.ndarray
    size_ratio: np.ndarray
    num_boxes: np.ndarray
    num_objects: np.ndarray


def class_quality(
    boxes: DetectionTable, truth: GroundTruth, *, iou_thr: float = 0.5
) -> ClassQuality:
    """Compare pseudo boxes with the objects of their image and class, one class after the other.

    Args:
      boxes: in pixels of the original image; scores are not used.
      truth: all objects, difficult ones count.
      iou_thr: a hit needs IoU > this.
    """
    classes = range(truth.num_classes)
    quality = [
        box_quality(boxes.take(boxes.classes == c), truth.take(truth.classes == c), iou_thr=iou_thr)
        for c in classes
    ]
    counted = dataclasses.replace(truth, difficult=np.zeros(len(truth), bool))
    return ClassQuality(
        precision=np.array([q.precision for q in quality]),
        recall=np.array([q.recall for q in quality]),
        abo=average_best_overlap(boxes, counted).abo,
        size_ratio=np.array([q.size_ratio for q in quality]),
        num_boxes=np.bincount(boxes.classes, minlength=truth.num_classes),
        num_objects=np.bincount(truth.classes, minlength=truth.num_classes),
    )
