"""Boxes of several models or scales, joined into one table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.tables import DetectionTable
from wsod_jax.ops.boxes import pairwise_iou


def combine_boxes(
    tables: Sequence[DetectionTable],
    *,
    nms_thr: float = 0.7,
    min_side_px: float = 50.0,
    min_score: float = 0.0,
) -> DetectionTable:
    """Join the boxes of several tables per image and class: drop weak and small ones, then suppress overlaps.

    Greedy NMS within a class runs on the boxes that passed, so that a dropped box suppresses nothing. Scores are
    compared as they are: give tables whose scores are on one scale. With the defaults an image or class may end up
    without any box.

    Args:
      tables: boxes of the same images and classes, in pixels of the original image.
      nms_thr: a box is removed by a better kept one of its image and class with IoU > this.
      min_side_px: keep boxes whose width and height both are >= this; 0 keeps all.
      min_score: keep scores > this; -inf keeps all.
    Returns:
      `DetectionTable`, images ascending, classes ascending, scores descending.
    Raises:
      DataError: no table, or tables of different sets.
    Ties: equal scores rank by table, then by row.   Cost: O(m^2) per image and class; nothing is compiled.

    Source: Zhu et al. 2017 (SPN): the released notebook for VOC joins three models so, with these defaults.
    """
    joined = _concatenate(tables)
    sides = joined.boxes[:, 2:].astype(np.float64) - joined.boxes[:, :2]
    passed = (joined.scores > min_score) & (sides >= min_side_px).all(axis=1)
    joined = joined.take(passed)
    order = np.lexsort((-joined.scores.astype(np.float64), joined.classes, joined.image_index))
    joined = joined.take(order)
    group = joined.image_index.astype(np.int64) * joined.num_classes + joined.classes
    bounds = np.flatnonzero(np.diff(group, prepend=-1, append=-1))
    keep = [
        start + _greedy_nms(joined.boxes[start:stop], nms_thr)
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True)
    ]
    return joined.take(np.concatenate([np.zeros(0, np.int64), *keep]))


def _concatenate(tables: Sequence[DetectionTable]) -> DetectionTable:
    """Return the rows of all tables, in order."""
    if not tables:
        raise DataError("no table of boxes to combine; give at least one")
    sets = {(table.num_images, table.num_classes) for table in tables}
    if len(sets) > 1:
        raise DataError(
            f"tables cover different sets, (images, classes): {sorted(sets)}; predict the same image set "
            "with every model"
        )
    return DetectionTable(
        *(
            np.concatenate([getattr(table, name) for table in tables])
            for name in ("image_index", "classes", "scores", "boxes")
        ),
        num_images=tables[0].num_images,
        num_classes=tables[0].num_classes,
    )


def _greedy_nms(boxes: np.ndarray, iou_thr: float) -> np.ndarray:
    """Return the rows that greedy NMS keeps of [m, 4] boxes in descending score."""
    boxes = boxes.astype(np.float64)
    overlaps = pairwise_iou(boxes, boxes) > iou_thr
    alive = np.ones(len(boxes), bool)
    for row in range(len(boxes)):
        if alive[row]:
            alive[row + 1 :] &= ~overlaps[row, row + 1 :]
    return np.flatnonzero(alive)
