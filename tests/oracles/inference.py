"""Views of one image merged row by row, and label maps pixel by pixel."""

import math

import numpy as np

from tests.oracles import detect


def original_box(box, view, b):
    """Return a box of row `b` of a batch in pixels of its original image."""
    x1, y1, x2, y2 = (float(value) for value in box)
    if view.views.flipped[b]:
        width = int(view.image_size[b, 1])
        x1, x2 = width - x2, width - x1
    (sx, sy), (ox, oy) = view.views.scale[b].tolist(), view.views.offset[b].tolist()
    return [(x1 + ox) / sx, (y1 + oy) / sy, (x2 + ox) / sx, (y2 + oy) / sy]


def candidates(view, found, b, is_aligned):
    """Return {row: (boxes [4] or [c, 4], scores [c])} of the real rows of one view."""
    rows = {}
    for m in range(found.scores.shape[1]):
        source = int(view.representative[b, m]) if is_aligned else m
        if found.mask[b, source]:
            boxes = np.asarray(found.boxes[b, source])
            own = [original_box(box, view, b) for box in boxes.reshape(-1, 4)]
            rows[m] = np.reshape(own, boxes.shape), np.asarray(found.scores[b, source], np.float64)
    return rows


def merged(pairs, b, merge):
    """Return boxes, scores and mask of all rows, averaged over the views in which each is real.

    `pairs`: (batch, predictions) of every view.
    """
    parts = [candidates(view, found, b, True) for view, found in pairs]
    first = pairs[0][1]
    boxes, scores = np.zeros(first.boxes.shape[1:]), np.zeros(first.scores.shape[1:])
    mask = np.zeros(len(scores), bool)
    for m in range(len(scores)):
        seen = [rows[m] for rows in parts if m in rows]
        if seen:
            mask[m] = True
            boxes[m] = sum(box for box, _ in seen) / len(seen)
            scores[m] = sum(score for _, score in seen) / (len(seen) if merge == "mean" else 1)
    return boxes, scores, mask


def detections(pairs, b, merge, *, score_thr, iou_thr, top_k, class_top_k):
    """Return (score, row, class, box, view) of one image, the best first; `pairs`: as in `merged`, by view."""
    options = dict(score_thr=score_thr, iou_thr=iou_thr, top_k=top_k, class_top_k=class_top_k)
    if merge != "union":
        found = detect.detect(*merged(list(pairs.values()), b, merge), **options)
        return [(*one, -1) for one in found]
    together, count = [], next(iter(pairs.values()))[1].scores.shape[1]
    for v, pair in pairs.items():
        rows = candidates(*pair, b, False)
        mask = np.array([m in rows for m in range(count)])
        boxes, scores = np.zeros(pair[1].boxes.shape[1:]), np.zeros(pair[1].scores.shape[1:])
        for m, (box, score) in rows.items():
            boxes[m], scores[m] = box, score
        of_view = detect.detect(boxes, scores, mask, **options)
        together += [(score, v * count + m, c, box) for score, m, c, box in of_view]
    again = detect.detect_again(together, iou_thr, top_k)
    return [(score, row % count, c, box, row // count) for score, row, c, box in again]


def label_map(maps, views, b, size, threshold):
    """Return the class of every pixel of image `b`; `maps`: one for each view."""
    labels = np.zeros(size, int)
    for i in range(size[0]):
        for j in range(size[1]):
            total = sum(
                _probabilities(one, view, b, i, j) for one, view in zip(maps, views, strict=True)
            )
            mean = [float(value) / len(maps) for value in total]
            best = mean.index(max(mean))
            labels[i, j] = best + 1 if mean[best] > threshold else 0
    return labels


def _probabilities(found, view, b, i, j):
    """Return the probabilities [c] of one view at a pixel."""
    rows, columns = (int(n) for n in found.size[b])
    if rows == 0 or columns == 0:
        return np.zeros(found.features.shape[-1])
    (sx, sy), (ox, oy) = view.views.scale[b].tolist(), view.views.offset[b].tolist()
    x, y = (j + 0.5) * sx - ox, (i + 0.5) * sy - oy
    if view.views.flipped[b]:
        x = int(view.image_size[b, 1]) - x
    u = min(max(x / found.stride - 0.5, 0), columns - 1)
    v = min(max(y / found.stride - 0.5, 0), rows - 1)
    total = np.zeros(found.features.shape[-1])
    for row in {math.floor(v), math.ceil(v)}:
        for column in {math.floor(u), math.ceil(u)}:
            weight = (1 - abs(v - row)) * (1 - abs(u - column))
            total += weight * np.asarray(found.features[b, row, column], np.float64)
    return total
