"""Response maps, pointing, energy and localisation error as literal loops over plain Python values."""

import math
from collections import deque


def resize(values, height, width, how):
    """Return a bilinearly resized map, pixel by pixel; `values`: list of rows."""

    def position(pixel, pixels, cells):
        if how == "align_corners":
            return pixel * (cells - 1) / (pixels - 1) if pixels > 1 else 0.0
        return min(max((pixel + 0.5) * cells / pixels - 0.5, 0.0), cells - 1.0)

    out = []
    for i in range(height):
        y = position(i, height, len(values))
        row = []
        for j in range(width):
            x = position(j, width, len(values[0]))
            total = 0.0
            for a, cells in enumerate(values):
                for b, value in enumerate(cells):
                    total += max(0.0, 1 - abs(y - a)) * max(0.0, 1 - abs(x - b)) * value
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


def component_boxes(mask, response, connectivity):
    """Return [(box, mean response)] of the components in order of their labels."""
    labels = components(mask, connectivity)
    pixels = {}
    for i, row in enumerate(labels):
        for j, label in enumerate(row):
            if label >= 0:
                pixels.setdefault(label, []).append((i, j))
    found = []
    for label in sorted(pixels):
        ys, xs = zip(*pixels[label], strict=True)
        mean = math.fsum(response[i][j] for i, j in pixels[label]) / len(ys)
        found.append(([min(xs), min(ys), max(xs) + 1, max(ys) + 1], mean))
    return found
