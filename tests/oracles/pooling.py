"""Max pooling, one cell at a time."""

import math

import numpy as np


def max_pool(x, size, window, stride, ceil_mode, pad=0):
    """Pool the valid [rows, columns] corner of x [h, w, d] into a map of its own size."""
    rows, columns = size
    rounding = math.ceil if ceil_mode else math.floor
    out_rows = max(rounding((rows + 2 * pad - window) / stride) + 1, 0)
    out_columns = max(rounding((columns + 2 * pad - window) / stride) + 1, 0)
    out = np.zeros((out_rows, out_columns, x.shape[-1]), x.dtype)
    for i in range(out_rows):
        for j in range(out_columns):
            for d in range(x.shape[-1]):
                top, left = i * stride - pad, j * stride - pad
                out[i, j, d] = max(
                    x[y, z, d]
                    for y in range(max(top, 0), min(top + window, rows))
                    for z in range(max(left, 0), min(left + window, columns))
                )
    return out
