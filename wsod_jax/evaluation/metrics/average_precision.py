"""Average precision in the PASCAL VOC manner, for any number of classes and IoU thresholds."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wsod_jax.evaluation.metrics.tables import (
    DetectionTable,
    GroundTruth,
    Region,
    Rle,
    check_same_set,
)

ApMode = Literal["11point", "11point_devkit", "area", "ranking"]
MASK_IOU_THRS = (0.25, 0.5, 0.7, 0.75)  # where papers report AP of masks
IOU_SWEEP = tuple(percent / 100 for percent in range(50, 100, 5))  # 0.50, 0.55 ... 0.95


@dataclass(frozen=True)
class PrecisionRecall:
    """The curve of one class: one point per counted detection, in descending score.

    Attributes:
      scores, precision, recall: [m] float. Detections on difficult objects make no point.
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


@dataclass(frozen=True)
class DetectionMetrics:
    """The score of one set of detections.

    Attributes:
      ap: [c, t] float64 in [0, 1]; NaN for a class without a (not difficult) object.
      iou_thrs: the t IoU thresholds; a hit needs IoU > threshold.
      ap_mode: how the curve became one number.
      curves: per class the precision-recall curve at `iou_thrs[0]`.
      hits: [c, t] int, detections that found an object.
      num_objects: [c] int, objects that count.
      num_difficult: [c] int, objects that count neither way.
      num_detections: [c] int, detections, those on difficult objects included.
      num_images: images of the set.
      matched: [m] int8 per detection at `iou_thrs[0]`, in table order: 1 hit, 0 false, -1 not counted.
    """

    ap: np.ndarray
    iou_thrs: tuple[float, ...]
    ap_mode: ApMode
    curves: tuple[PrecisionRecall, ...]
    hits: np.ndarray
    num_objects: np.ndarray
    num_difficult: np.ndarray
    num_detections: np.ndarray
    num_images: int
    matched: np.ndarray

    @property
    def mean_ap(self) -> np.ndarray:
        """Mean over the classes that have an object, [t] float64; NaN if none has."""
        return mean_over_classes(self.ap)


def mean_over_classes(values: np.ndarray) -> np.ndarray:
    """Return the mean over axis 0 of the entries that are not NaN; NaN where there are none."""
    real = ~np.isnan(values)
    total = np.where(real, values, 0.0).sum(axis=0)
    return np.where(real.any(axis=0), total / np.maximum(real.sum(axis=0), 1), np.nan)


def average_precision(recall: np.ndarray, precision: np.ndarray, mode: ApMode = "11point") -> float:
    """Return the average precision of one curve.

    `11point`: mean over t in {0, 0.1 ... 1} of max{precision_i : recall_i >= t}, 0 where no point
    reaches t. `area`: the area under the curve whose precision at recall r is max{precision_i : recall_i >= r}.
    `ranking`: the same area without interpolation, the mean precision at the points where recall rises.

    Args:
      recall: [m] non-decreasing, in [0, 1].
      precision: [m] in [0, 1].
      mode: `11point` compares with i / 10, so a recall of exactly 3 / 10 reaches 0.3. `11point_devkit`
        takes the steps of the Python devkits, `np.arange(0, 1.1, 0.1)`, whose 0.3, 0.6 and 0.7 are a rounding
        error too high, so that a recall of exactly that misses. `area` is VOC's rule from 2010 on. `ranking` is how the
        released code of SPN measures classification.
    Returns:
      float in [0, 1]; 0 for an empty curve.
    Raises:
      ValueError: unknown mode.

    Source: Everingham et al. 2010, section 4.2; Everingham et al. 2015 for `area`.
    """
    recall, precision = np.asarray(recall, np.float64), np.asarray(precision, np.float64)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # best precision at this recall or more
    if mode in ("area", "ranking"):
        heights = envelope if mode == "area" else precision
        return float(np.sum(np.diff(recall, prepend=0.0) * heights))
    if mode == "11point":
        steps = np.arange(11) / 10
    elif mode == "11point_devkit":
        steps = np.arange(0.0, 1.1, 0.1)
    else:
        raise ValueError(f"unknown ap_mode {mode!r}; allowed: {typing.get_args(ApMode)}")
    reached = np.searchsorted(recall, steps, side="left")  # first point with recall >= step
    return float(np.sum(np.append(envelope, 0.0)[reached]) / 11)


def paired_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU of box a_i with box b_i, [n] float64; 0 where the union is empty.

    Args:
      a, b: [n, 4] `xyxy`, continuous edges.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    size = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    overlap = np.prod(np.maximum(size, 0.0), axis=1)
    area_a = np.prod(np.maximum(a[:, 2:] - a[:, :2], 0.0), axis=1)
    area_b = np.prod(np.maximum(b[:, 2:] - b[:, :2], 0.0), axis=1)
    union = area_a + area_b - overlap
    return np.where(union > 0, overlap / np.where(union > 0, union, 1.0), 0.0)


def mask_iou(a: Sequence[Rle], b: Sequence[Rle]) -> np.ndarray:
    """Return the IoU of every mask of `a` with every one of `b`, [n, m] float64; 0 where both are empty.

    All are masks of one image.
    """
    from pycocotools import mask as coco_mask

    iou = coco_mask.iou(list(a), list(b), [0] * len(b))
    return np.asarray(iou, np.float64).reshape(len(a), len(b))


def best_overlaps(
    detections: DetectionTable,
    truth: GroundTruth,
    *,
    region: Region = "boxes",
) -> tuple[np.ndarray, np.ndarray]:
    """Return per detection the highest IoU with an object of its class and image, and that object's row.

    Args:
      region: what overlaps, boxes or masks.
    Returns:
      [m] float64 IoU (0 where the image has no such object) and [m] int64 row of `truth` (-1 there).
    Ties: the first object in table order. Objects of IoU 0 can be the best one.
    Cost: one IoU per pair of detection and object of the same class and image; a loop over detections for masks alone.
    """
    check_same_set(detections, truth, region)
    group = detections.image_index.astype(np.int64) * truth.num_classes + detections.classes
    truth_group = truth.image_index.astype(np.int64) * truth.num_classes + truth.classes
    order = np.argsort(truth_group, kind="stable")
    first = np.searchsorted(truth_group[order], group, side="left")
    count = np.searchsorted(truth_group[order], group, side="right") - first  # [m]

    best_iou = np.zeros(len(detections))
    best_row = np.full(len(detections), -1)
    rows = np.flatnonzero(count)
    if rows.size == 0:
        return best_iou, best_row
    start = np.cumsum(count[rows]) - count[rows]  # where each detection's pairs begin
    pair_detection = np.repeat(rows, count[rows])
    offset = np.arange(pair_detection.size) - np.repeat(start, count[rows])
    pair_truth = order[np.repeat(first[rows], count[rows]) + offset]
    if region == "boxes":
        iou = paired_iou(detections.boxes[pair_detection], truth.boxes[pair_truth])
    else:
        pairs = zip(rows, np.split(pair_truth, start[1:]), strict=True)
        iou = np.concatenate(
            [
                mask_iou([detections.masks[row]], [truth.masks[i] for i in objects])[0]
                for row, objects in pairs
            ]
        )
    best_iou[rows] = np.maximum.reduceat(iou, start)
    is_best = iou == best_iou[pair_detection]
    best_row[rows] = np.minimum.reduceat(np.where(is_best, pair_truth, len(truth)), start)
    return best_iou, best_row


def match_detections(
    detections: DetectionTable,
    truth: GroundTruth,
    *,
    iou_thr: float = 0.5,
) -> np.ndarray:
    """Tell true positives from false ones, as VOC does.

    A detection looks only at the object of its class and image that it overlaps most. IoU > `iou_thr`
    with a difficult object: not counted. With any other object: a hit if no earlier detection took it, else
    false (a duplicate). Otherwise false.

    Returns:
      [m] int8 in table order: 1 hit, 0 false, -1 not counted.
    Ties: equal scores keep table order; equal IoU goes to the first object in table order.
    """
    best_iou, best_row = best_overlaps(detections, truth)
    order = np.argsort(-detections.scores, kind="stable")
    return _match(best_iou, best_row, order, truth.difficult, iou_thr)


def _match(best_iou, best_row, order, difficult, iou_thr) -> np.ndarray:
    """Return [m] int8 as `match_detections`, from overlaps that no threshold changes."""
    reaches = best_iou > iou_thr
    on_difficult = np.zeros(len(best_iou), bool)
    on_difficult[reaches] = difficult[best_row[reaches]]
    candidates = order[(reaches & ~on_difficult)[order]]  # in descending score
    _, first = np.unique(best_row[candidates], return_index=True)
    matched = np.where(on_difficult, -1, 0).astype(np.int8)
    matched[candidates[first]] = 1
    return matched


def _curve(scores: np.ndarray, matched: np.ndarray, num_objects: int) -> PrecisionRecall:
    """Return the curve of one class whose detections come in descending score."""
    counted = matched >= 0
    hits = np.cumsum(matched[counted] == 1)
    precision = hits / np.arange(1, len(hits) + 1)
    recall = hits / max(num_objects, 1)
    return PrecisionRecall(scores=scores[counted], precision=precision, recall=recall)


def evaluate_detections(
    detections: DetectionTable,
    truth: GroundTruth,
    *,
    iou_thrs: tuple[float, ...] = (0.5,),
    ap_mode: ApMode = "11point",
    region: Region = "boxes",
) -> DetectionMetrics:
    """Return the average precision of every class at every IoU threshold.

    Scores and boxes enter at full precision: published VOC results were rounded to 3 decimals and 0.1 pixel on the
    way through text files, which makes ties that these numbers do not have.

    Args:
      detections: candidates after NMS.
      truth: objects of the same image set.
      iou_thrs: thresholds; a hit needs IoU > threshold. `IOU_SWEEP` is 0.50 to 0.95.
      ap_mode: see `average_precision`.
      region: what overlaps. "masks" with `ap_mode="area"` is the AP^r of instance segmentation, which papers report at
        `MASK_IOU_THRS`.
    Returns:
      `DetectionMetrics`. A class without a counted object has AP NaN and is left out of the mean.
    Raises:
      DataError: the tables cover different sets, or lack the masks to compare.
    Ties: see `match_detections`.
    Source: Everingham et al. 2010, section 4; the VOC2007 development kit for difficult objects and duplicates.
      Hariharan et al. 2014, section 5, for AP^r.
    """
    classes = truth.num_classes
    best_iou, best_row = best_overlaps(detections, truth, region=region)
    order = np.argsort(-detections.scores, kind="stable")
    by_class = order[np.argsort(detections.classes[order], kind="stable")]
    bounds = np.searchsorted(detections.classes[by_class], np.arange(classes + 1))
    num_objects = np.bincount(truth.classes[~truth.difficult], minlength=classes)

    ap = np.full((classes, len(iou_thrs)), np.nan)
    hits = np.zeros((classes, len(iou_thrs)), np.int64)
    curves, matched_first = [], np.zeros(len(detections), np.int8)
    for t, iou_thr in enumerate(iou_thrs):
        matched = _match(best_iou, best_row, order, truth.difficult, iou_thr)
        if t == 0:
            matched_first = matched
        for c in range(classes):
            rows = by_class[bounds[c] : bounds[c + 1]]
            curve = _curve(detections.scores[rows], matched[rows], num_objects[c])
            hits[c, t] = np.sum(matched[rows] == 1)
            if num_objects[c]:
                ap[c, t] = average_precision(curve.recall, curve.precision, ap_mode)
            if t == 0:
                curves.append(curve)
    return DetectionMetrics(
        ap=ap,
        iou_thrs=tuple(iou_thrs),
        ap_mode=ap_mode,
        curves=tuple(curves),
        hits=hits,
        num_objects=num_objects,
        num_difficult=np.bincount(truth.classes[truth.difficult], minlength=classes),
        num_detections=np.bincount(detections.classes, minlength=classes),
        num_images=truth.num_images,
        matched=matched_first,
    )
