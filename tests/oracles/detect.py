"""Detections of one image, one candidate after another."""

import numpy as np

from tests.oracles.boxes import iou


def detect(boxes, scores, mask, score_thr, iou_thr, top_k, class_top_k=None):
    """Return the detections as (score, row, class, box), the best first."""
    kept = []
    for c in range(scores.shape[1]):
        candidates = [m for m in range(len(scores)) if mask[m] and scores[m, c] > score_thr]
        candidates = sorted(candidates, key=lambda m: (-scores[m, c], m))[:class_top_k]
        own = {m: boxes[m] if boxes.ndim == 2 else boxes[m, c] for m in candidates}
        of_class = []
        for m in candidates:
            if all(iou(own[better], own[m]) <= iou_thr for better in of_class):
                of_class.append(m)
        kept += [(float(scores[m, c]), m, c, np.asarray(own[m])) for m in of_class]
    kept.sort(key=lambda found: (-found[0], found[1], found[2]))
    return kept[:top_k]


def detect_again(found, iou_thr, top_k):
    """Return what stays of (score, row, class, box) of several views, the best first."""
    kept = []
    for score, row, c, box in sorted(found, key=lambda one: (-one[0], one[1], one[2])):
        if all(k != c or iou(better, box) <= iou_thr for _, _, k, better in kept):
            kept.append((score, row, c, box))
    return kept[:top_k]
