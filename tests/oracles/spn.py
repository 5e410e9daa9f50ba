"""The last layers of a soft proposal network literally: cell by cell, in float64."""

import numpy as np


def extra_convolution(features, kernel, bias, groups):
    """Return the rectified 3x3 convolution [h, w, channels] of a map [h, w, d] with zeros around it."""
    height, width, depth = features.shape
    inputs, outputs = depth // groups, len(bias) // groups
    out = np.zeros((height, width, len(bias)))
    for i in range(height):
        for j in range(width):
            for k in range(len(bias)):
                first = k // outputs * inputs
                total = float(bias[k])
                for a in range(3):
                    for b in range(3):
                        y, x = i + a - 1, j + b - 1
                        if 0 <= y < height and 0 <= x < width:
                            total += features[y, x, first : first + inputs] @ kernel[a, b, :, k]
                out[i, j, k] = max(total, 0.0)
    return out


def logits(features, proposal_map, kernel, bias):
    """Return class scores [c] of a map [h, w, d] coupled with M [h, w]."""
    total = np.array(bias, np.float64)
    for i, row in enumerate(features):
        for j, cell in enumerate(row):
            total += proposal_map[i, j] * (cell @ kernel)
    return total
