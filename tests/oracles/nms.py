"""Greedy non-maximum suppression, one box after another."""

import numpy as np

from tests.oracles.boxes import iou


def nms_mask(boxes, scores, mask, iou_thr):
    """Return which boxes are kept: walk by descending score (lowest index first on ties)."""
    order = sorted((i for i in range(len(boxes)) if mask[i]), key=lambda i: (-scores[i], i))
    kept = []
    for i in order:
        if all(iou(boxes[j], boxes[i]) <= iou_thr for j in kept):
            kept.append(i)
    keep = np.zeros(len(boxes), bool)
    keep[kept] = True
    return keep
