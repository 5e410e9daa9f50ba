"""The loss on box deltas."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def smooth_l1(difference: Float[Array, "*n"], beta: float) -> Float[Array, "*n"]:
    """Return d² / (2β) where |d| < β, else |d| - β/2; |d| for β = 0.

    Args:
      difference: [...] d.
      beta: β >= 0, static.

    Gradient: d / β, within [-1, 1]; the sign of d for β = 0, which is 0 at 0.
    Source: Girshick 2015 (Fast R-CNN), section 2.3, where β is 1.
    """
    size = jnp.maximum(difference, -difference)  # the slope of jnp.abs at 0 is 1
    if beta == 0:
        return size
    return jnp.where(size < beta, 0.5 * size * size / beta, size - 0.5 * beta)
