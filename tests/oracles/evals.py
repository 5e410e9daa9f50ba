"""Average precision, matching and CorLoc as literal loops over plain Python values."""

import math

from tests.oracles.boxes import iou


def average_precision(recall, precision, mode):
    """Return AP by scanning the curve anew for every recall level."""
    if mode in ("area", "ranking"):
        total, before = 0.0, 0.0
        for i, level in enumerate(recall):
            total += (level - before) * (max(precision[i:]) if mode == "area" else precision[i])
            before = level
        return total
    levels = [i / 10 for i in range(11)]
    if mode == "11point_devkit":
        levels = [i * 0.1 for i in range(11)]
    total = 0.0
    for level in levels:
        reached = [p for r, p in zip(recall, precision, strict=True) if r >= level]
        total += max(reached) if reached else 0.0
    return total / 11


def class_ap(detections, objects, iou_thr, mode):
    """Return the AP of one class and the verdict on each detection.

    `detections`: list of (image, score, box); `objects`: list of (image, box, difficult).
    """
    num_objects = sum(not difficult for _, _, difficult in objects)
    order = sorted(range(len(detections)), key=lambda i: (-detections[i][1], i))
    taken, verdicts = set(), [0] * len(detections)
    hits, false, recall, precision = 0, 0, [], []
    for i in order:
        image, _, box = detections[i]
        best, best_object = -1.0, None
        for j, (other, truth, _) in enumerate(objects):
            overlap = iou(box, truth)
            if other == image and overlap > best:
                best, best_object = overlap, j
        if best > iou_thr and objects[best_object][2]:
            verdicts[i] = -1
            continue
        if best > iou_thr and best_object not in taken:
            taken.add(best_object)
            verdicts[i] = 1
            hits += 1
        else:
            false += 1
        recall.append(hits / num_objects if num_objects else 0.0)
        precision.append(hits / (hits + false))
    if num_objects == 0:
        return math.nan, verdicts
    return average_precision(recall, precision, mode), verdicts


def corloc(top, objects, num_images, num_classes, iou_thr, include_difficult=True):
    """Return CorLoc per class. `top`: {(image, class): box}; `objects`: (image, class, box, difficult)."""
    values = []
    for c in range(num_classes):
        images = hits = 0
        for image in range(num_images):
            boxes = [
                box
                for i, k, box, difficult in objects
                if i == image and k == c and (include_difficult or not difficult)
            ]
            if not boxes:
                continue
            images += 1
            found = top.get((image, c))
            hits += found is not None and any(iou(found, box) > iou_thr for box in boxes)
        values.append(hits / images if images else math.nan)
    return values


def running_heap_threshold(images, limit, top_k):
    """Return the threshold that the released test loop ends with; `images`: scores per image, in order."""
    import heapq

    heap, thr = [], -math.inf
    for scores in images:
        above = [score for score in scores if score > thr]
        for score in sorted(above, reverse=True)[:top_k]:
            heapq.heappush(heap, score)
        if len(heap) > limit:
            while len(heap) > limit:
                heapq.heappop(heap)
            thr = heap[0]
    return thr


def greedy_nms(boxes, scores, iou_thr):
    """Return the indices that greedy NMS keeps, best first."""
    kept = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if all(iou(boxes[i], boxes[j]) <= iou_thr for j in kept):
            kept.append(i)
    return kept
