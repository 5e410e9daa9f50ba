"""Counting the cells of a binary map in boxes, through its integral image."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def integral_image(binary: Bool[Array, "h w"]) -> Float[Array, "h1 w1"]:
    """Return I[i, j] = number of True cells above row i and left of column j, [h + 1, w + 1] float32.

    Exact for maps of up to 2^24 cells.
    """
    sums = jnp.cumsum(jnp.cumsum(binary.astype(jnp.float32), axis=0), axis=1)
    return jnp.pad(sums, ((1, 0), (1, 0)))


def box_counts(integral: Float[Array, "h1 w1"], corners: Int[Array, "r 4"]) -> Float[Array, " r"]:
    """Return how many True cells each box holds.

    Args:
      integral: of `integral_image`.
      corners: [r, 4] x1, y1, x2, y2 in whole cells, x2 and y2 excluded, inside the map; x1 <= x2 and y1 <= y2.
    """
    x1, y1, x2, y2 = corners.T
    return integral[y2, x2] - integral[y1, x2] - integral[y2, x1] + integral[y1, x1]
