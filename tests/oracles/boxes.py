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


def encode(proposal, target, weights=(10, 10, 5, 5)):
    """Return the four deltas from one box to another."""
    width, height = proposal[2] - proposal[0], proposal[3] - proposal[1]
    to_width, to_height = target[2] - target[0], target[3] - target[1]
    right = (target[0] + target[2]) / 2 - (proposal[0] + proposal[2]) / 2
    down = (target[1] + target[3]) / 2 - (proposal[1] + proposal[3]) / 2
    return [
        weights[0] * right / width,
        weights[1] * down / height,
        weights[2] * np.log(to_width / width),
        weights[3] * np.log(to_height / height),
    ]


def decode(proposal, deltas, size, weights=(10, 10, 5, 5)):
    """Return the box that deltas make of a proposal, clipped to an image of (height, width)."""
    width, height = proposal[2] - proposal[0], proposal[3] - proposal[1]
    x = (proposal[0] + proposal[2]) / 2 + deltas[0] / weights[0] * width
    y = (proposal[1] + proposal[3]) / 2 + deltas[1] / weights[1] * height
    width *= min(np.exp(deltas[2] / weights[2]), 1000 / 16)
    height *= min(np.exp(deltas[3] / weights[3]), 1000 / 16)
    corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return [min(max(edge, 0), size[1 - i % 2]) for i, edge in enumerate(corners)]
