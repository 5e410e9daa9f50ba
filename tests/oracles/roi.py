"""RoI pooling one bin, one cell, one channel at a time."""

import math
from fractions import Fraction

import numpy as np


def _round_half_away(x):
    return int(math.copysign(math.floor(abs(Fraction(x)) + Fraction(1, 2)), x))


def bin_range(low, high, size, num_bins, i, scale):
    """Return the cells [start, end) of bin i along one axis, in exact arithmetic."""
    low = _round_half_away(float(np.float32(low) * np.float32(scale)))
    high = _round_half_away(float(np.float32(high) * np.float32(scale)))
    length = max(high - low + 1, 1)
    start = low + math.floor(Fraction(i * length, num_bins))
    end = low + math.ceil(Fraction((i + 1) * length, num_bins))
    return min(max(start, 0), size), min(max(end, 0), size)


def roi_max_pool(features, boxes, mask, map_size, output_size, spatial_scale):
    """Return pooled [r, p, p, d] of one image, and the cell (y, x) that each value came from."""
    p, d = output_size, features.shape[-1]
    pooled = np.zeros((len(boxes), p, p, d), features.dtype)
    source = np.full((len(boxes), p, p, d, 2), -1)
    for r, (x1, y1, x2, y2) in enumerate(boxes):
        if not mask[r]:
            continue
        for i in range(p):
            top, bottom = bin_range(y1, y2, map_size[0], p, i, spatial_scale)
            for j in range(p):
                left, right = bin_range(x1, x2, map_size[1], p, j, spatial_scale)
                for c in range(d):
                    best = -math.inf
                    for y in range(top, bottom):
                        for x in range(left, right):
                            if features[y, x, c] > best:
                                best = features[y, x, c]
                                source[r, i, j, c] = y, x
                    pooled[r, i, j, c] = best if best > -math.inf else 0
    return pooled, source


def roi_max_pool_grad(source, grad, map_shape):
    """Send each output's gradient to the cell its value came from."""
    result = np.zeros(map_shape)
    for r, i, j, c in np.ndindex(*grad.shape):
        y, x = source[r, i, j, c]
        if y >= 0:
            result[y, x, c] += grad[r, i, j, c]
    return result


def bilinear(features, y, x, map_size):
    """Return the map's value [d] at (y, x): 0 more than a cell outside, the border's value nearer."""
    height, width = map_size
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(features.shape[-1])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = math.floor(y), math.floor(x)
    low, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = features[top, left] * (1 - dx) + features[top, right] * dx
    lower = features[low, left] * (1 - dx) + features[low, right] * dx
    return upper * (1 - dy) + lower * dy


def roi_align(features, boxes, mask, map_size, output_size, spatial_scale, num_samples, aligned):
    """Return [r, p, p, d] of one image, one bilinear sample at a time."""
    p = output_size
    pooled = np.zeros((len(boxes), p, p, features.shape[-1]))
    for r in range(len(boxes)):
        if not mask[r]:
            continue
        x1, y1, x2, y2 = (float(v) * spatial_scale - (0.5 if aligned else 0) for v in boxes[r])
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1), max(height, 1)
        for i, j in np.ndindex(p, p):
            for k, m in np.ndindex(num_samples, num_samples):
                y = y1 + (i + (k + 0.5) / num_samples) * height / p
                x = x1 + (j + (m + 0.5) / num_samples) * width / p
                pooled[r, i, j] += bilinear(features, y, x, map_size) / num_samples**2
    return pooled
