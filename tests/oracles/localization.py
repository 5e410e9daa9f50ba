"""Class activation maps, pointing, energy and localization error as literal loops over plain Python values."""

import math
from collections import deque
from fractions import Fraction

from tests.oracles.evals import average_precision, iou


def resize(values, height, width, how):
    """Return a bilinearly resized map, pixel by pixel and exactly if the `values` (list of rows) are fractions."""

    def position(pixel, pixels, cells):
        if how == "align_corners":
            return Fraction(pixel * (cells - 1), pixels - 1) if pixels > 1 else 0
        return min(max(Fraction((2 * pixel + 1) * cells - pixels, 2 * pixels), 0), cells - 1)

    out = []
    for i in range(height):
        y = position(i, height, len(values))
        row = []
        for j in range(width):
            x = position(j, width, len(values[0]))
            total = 0
            for a, cells in enumerate(values):
                for b, value in enumerate(cells):
                    total += max(0, 1 - abs(y - a)) * max(0, 1 - abs(x - b)) * value
            row.append(total)
        out.append(row)
    return out


def components(mask, connectivity):
    """Return labels by flooding from every pixel in row order; `mask`: list of rows."""
    height, width = len(mask), len(mask[0]) if mask else 0
    steps = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    if connectivity == 8:
        steps += [(1, 1), (1, -1), (-1, 1), (-1, -1)]
    labels = [[-1] * width for _ in range(height)]
    for i in range(height):
        for j in range(width):
            if not mask[i][j] or labels[i][j] >= 0:
                continue
            labels[i][j] = i * width + j
            waiting = deque([(i, j)])
            while waiting:
                y, x = waiting.popleft()
                for dy, dx in steps:
                    v, u = y + dy, x + dx
                    inside = 0 <= v < height and 0 <= u < width
                    if inside and mask[v][u] and labels[v][u] < 0:
                        labels[v][u] = i * width + j
                        waiting.append((v, u))
    return labels


def component_boxes(mask, cam, connectivity):
    """Return [(box, mean activation)] of the components in order of their labels."""
    labels = components(mask, connectivity)
    pixels = {}
    for i, row in enumerate(labels):
        for j, label in enumerate(row):
            if label >= 0:
                pixels.setdefault(label, []).append((i, j))
    found = []
    for label in sorted(pixels):
        ys, xs = zip(*pixels[label], strict=True)
        mean = math.fsum(cam[i][j] for i, j in pixels[label]) / len(ys)
        found.append(([min(xs), min(ys), max(xs) + 1, max(ys) + 1], mean))
    return found


def pixel_inside(i, j, box):
    """Return whether the center of pixel (row i, column j) lies in a box."""
    return box[0] <= j + 0.5 < box[2] and box[1] <= i + 0.5 < box[3]


def union_area(boxes, height, width):
    """Return how many pixels of the image lie in some box; exact for boxes of whole pixels."""
    return sum(
        any(pixel_inside(i, j, box) for box in boxes) for i in range(height) for j in range(width)
    )


def on_object(point, image, c, objects, tolerance):
    """Return whether a point lies in an enlarged box of its image and class.

    `objects`: list of (image, class, box, difficult).
    """
    return any(
        i == image
        and k == c
        and box[0] - tolerance <= point[0] <= box[2] + tolerance
        and box[1] - tolerance <= point[1] <= box[3] + tolerance
        for i, k, box, _ in objects
    )


def pointing_accuracy(points, objects, num_images, num_classes, tolerance, counted=None):
    """Return accuracy, hits and images per class. `points[image][class]`: (x, y)."""
    accuracy, all_hits, all_images = [], [], []
    for c in range(num_classes):
        hits = images = 0
        for image in range(num_images):
            if not any(i == image and k == c for i, k, _, _ in objects):
                continue
            if counted is not None and not counted[image][c]:
                continue
            images += 1
            hits += on_object(points[image][c], image, c, objects, tolerance)
        accuracy.append(hits / images if images else math.nan)
        all_hits.append(hits)
        all_images.append(images)
    return accuracy, all_hits, all_images


def difficult_subset(objects, sizes, num_classes):
    """Return per image and class whether its objects are small and not alone."""
    table = []
    for image, (height, width) in enumerate(sizes):
        row = []
        for c in range(num_classes):
            boxes = [box for i, k, box, _ in objects if i == image and k == c]
            others = [k for i, k, _, _ in objects if i == image and k != c]
            small = union_area(boxes, height, width) < height * width / 4
            row.append(bool(boxes) and bool(others) and small)
        table.append(row)
    return table


def pointing_with_prediction(points, scores, objects, shape, tolerance, mode, include_difficult):
    """Return AP per class, walking down the images by score."""
    num_images, num_classes = shape
    values = []
    for c in range(num_classes):
        ranked, positives = [], 0
        for image in range(num_images):
            kinds = [difficult for i, k, _, difficult in objects if i == image and k == c]
            if kinds and all(kinds) and not include_difficult:
                continue
            positives += bool(kinds)
            ranked.append((-scores[image][c], image))
        hits, recall, precision = 0, [], []
        for rank, (_, image) in enumerate(sorted(ranked), 1):
            hits += on_object(points[image][c], image, c, objects, tolerance)
            recall.append(hits / positives if positives else 0.0)
            precision.append(hits / rank)
        values.append(average_precision(recall, precision, mode) if positives else math.nan)
    return values


def object_energy(energy_map, boxes):
    """Return the share of the map on pixels whose center lies in some box."""
    inside = total = 0.0
    for i, row in enumerate(energy_map):
        for j, value in enumerate(row):
            total += value
            inside += value if any(pixel_inside(i, j, box) for box in boxes) else 0.0
    return inside / total if total and boxes else math.nan


def boxes_energy_map(boxes, scores, height, width):
    """Return per pixel the sum of the scores of the boxes that contain its center."""
    return [
        [
            sum(s for box, s in zip(boxes, scores, strict=True) if pixel_inside(i, j, box))
            for j in range(width)
        ]
        for i in range(height)
    ]


def corloc_any(found, objects, shape, iou_thr, inclusive, include_difficult):
    """Return CorLoc per class, any box may hit. `found`: list of (image, class, box)."""
    num_images, num_classes = shape
    values = []
    for c in range(num_classes):
        images = hits = 0
        for image in range(num_images):
            truth = [
                box
                for i, k, box, difficult in objects
                if i == image and k == c and (include_difficult or not difficult)
            ]
            if not truth:
                continue
            images += 1
            overlaps = [iou(a, b) for i, k, a in found for b in truth if i == image and k == c]
            hits += any(v >= iou_thr if inclusive else v > iou_thr for v in overlaps)
        values.append(hits / images if images else math.nan)
    return values


def localization_error(scores, boxes, labels, objects, k, iou_thr, blacklist):
    """Return the top-k errors of class alone and of class and box; `boxes[image][rank]`.

    `objects`: list of (image, class, box).
    """
    wrong_class = wrong = images = 0
    for image, label in enumerate(labels):
        if image in blacklist:
            continue
        images += 1
        ranking = sorted(range(len(scores[image])), key=lambda c: (-scores[image][c], c))[:k]
        wrong_class += label not in ranking
        wrong += not any(
            c == label
            and any(
                i == image and other == label and iou(boxes[image][rank], box) >= iou_thr
                for i, other, box in objects
            )
            for rank, c in enumerate(ranking)
        )
    return (wrong_class / images, wrong / images) if images else (math.nan, math.nan)


def located(views, size, how):
    """Return (point, tightest box and its score, component boxes and their scores) of one class of one image.

    `views`: the class's activations [h][w] in every view; their mean over views is read. In exact arithmetic, so that
    equal values are equal.
    """
    height, width = size
    views = [[[Fraction(value) for value in row] for row in view] for view in views]
    resized = [resize(view, height, width, how) for view in views]
    mean = [
        [sum(view[i][j] for view in resized) / len(resized) for j in range(width)]
        for i in range(height)
    ]
    values = [value for row in mean for value in row]
    point, best = (width / 2, height / 2), min(values)
    for i, row in enumerate(mean):
        for j, value in enumerate(row):
            if value > best:
                point, best = (j + 0.5, i + 0.5), value
    threshold = sum(values) / len(values)
    mask = [[value >= threshold for value in row] for row in mean]
    inside = [(i, j) for i in range(height) for j in range(width) if mask[i][j]]
    box = [
        min(j for _, j in inside),
        min(i for i, _ in inside),
        max(j for _, j in inside) + 1,
        max(i for i, _ in inside) + 1,
    ]
    score = math.fsum(mean[i][j] for i, j in inside) / len(inside)
    return point, (box, score), component_boxes(mask, mean, 4)
