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
