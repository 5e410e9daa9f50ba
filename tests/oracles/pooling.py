"""Max pooling, one cell at a time."""

import math

import numpy as np


def max_pool(x, size, window, stride, ceil_mode):
    """Pool the valid [rows, columns] corner of x [h, w, d] into a map of its own size."""
    rows, columns = size
    rounding = math.ceil if ceil_mode else math.floor
    out_rows = max(rounding((rows - window) / stride) + 1, 0)
    out_columns = max(rounding((columns - window) / stride) + 1, 0)
    out = np.zeros((out_rows, out_columns, x.shape[-1]), x.dtype)
    for i in range(out_rows):
        for j in range(out_columns):
            for d in range(x.shape[-1]):
                out[i, j, d] = max(
                    x[y, z, d]
                    for y in range(i * stride, min(i * stride + window, rows))
                    for z in range(j * stride, min(j * stride + window, columns))
                )
    return out
