"""Literal loops for `wsod_jax.ops.boxes`."""

import numpy as np


def iou(a, b):
    """Return the IoU of two boxes; 0 where neither has area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0) * max(height, 0)
    area_a = max(a[2] - a[0], 0) * max(a[3] - a[1], 0)
    area_b = max(b[2] - b[0], 0) * max(b[3] - b[1], 0)
    union = area_a + area_b - intersection
    return intersection / union if union > 0 else 0.0


def pairwise_iou(a, b):
    """Return [n, m] IoU, one pair at a time."""
    result = np.zeros((len(a), len(b)))
    for i in range(len(a)):
        for j in range(len(b)):
            result[i, j] = iou(a[i], b[j])
    return result
