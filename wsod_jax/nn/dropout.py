"""Dropout with one key per image, so that an image's mask does not depend on the batch it sits in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def per_image_dropout(
    x: Float[Array, "b *rest"], keys: Key[Array, " b"], rate: float
) -> Float[Array, "b *rest"]:
    """Zero each value with probability `rate` and divide the others by 1 − `rate`.

    Args:
      x: [b, ...].
      keys: [b] typed keys. The same key gives the same mask whatever the batch; appended rows of axis 1 (masked
        proposals) leave the mask of the others as it was.
      rate: in [0, 1); 0 returns `x`.

    Returns:
      [b, ...] of the same type.
    """
    if rate == 0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
