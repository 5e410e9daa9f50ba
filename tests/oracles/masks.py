"""Slow and literal run-length encoding."""

import numpy as np


def run_lengths(pixels):
    """Run lengths in column order, zeros first: a loop."""
    counts, value = [0], False
    for pixel in np.asarray(pixels, bool).T.ravel():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts
