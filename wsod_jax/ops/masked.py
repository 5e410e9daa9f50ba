"""Reductions over the entries whose mask is True; values and gradients are finite even when none is.

Masks broadcast against the values at equal rank: scores [r, c] take a mask of [r, c] or [r, 1].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int


def masked_softmax(
    logits: Float[Array, "*n"], mask: Bool[Array, "*#n"], axis: int
) -> Float[Array, "*n"]:
    """Return the softmax over `axis` of the real entries, in float32.

    Args:
      logits: [...] of any finite size; masked entries may hold anything, NaN included.
      mask: True = real; broadcasts against `logits` at equal rank.
      axis: the axis that sums to 1.

    Returns:
      [...] probabilities, 0 where masked; all 0 along an axis without a real entry.

    Gradient: finite; 0 to masked entries.
    """
    logits = jnp.where(mask, logits.astype(jnp.float32), -jnp.inf)
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=axis, keepdims=True))
    peak = jnp.where(jnp.isfinite(peak), peak, 0.0)
    exponent = jnp.where(mask, logits - peak, 0.0)
    numerator = jnp.where(mask, jnp.exp(exponent), 0.0)
    total = jnp.sum(numerator, axis=axis, keepdims=True)
    return numerator / jnp.where(total > 0, total, 1.0)


def masked_mean(
    x: Float[Array, "*n"], mask: Bool[Array, "*#n"], axis: int | tuple[int, ...] | None = None
) -> Float[Array, "..."]:
    """Return the mean of the real entries over `axis`, in float32.

    Args:
      x: [...] values; masked entries may hold anything.
      mask: True = real; broadcasts against `x` at equal rank.
      axis: the axes to reduce; all of them by default.

    Returns:
      The means, 0 where no entry is real.
    """
    total = jnp.sum(jnp.where(mask, x.astype(jnp.float32), 0.0), axis=axis)
    count = jnp.sum(jnp.broadcast_to(mask, x.shape), axis=axis)
    return total / jnp.maximum(count, 1)


def masked_argmax(
    x: Float[Array, "*b n"], mask: Bool[Array, "*#b n"]
) -> tuple[Int[Array, "*b"], Float[Array, "*b"]]:
    """Return position and value of the largest real entry of the last axis.

    Args:
      x: [..., n] values above minus infinity.
      mask: [..., n] True = real.

    Returns:
      index: [...] int32, and value: [...]; both 0 where no entry is real.

    Ties: lowest index wins.
    """
    index = jnp.argmax(jnp.where(mask, x, -jnp.inf), axis=-1).astype(jnp.int32)
    value = jnp.take_along_axis(x, index[..., None], axis=-1)[..., 0]
    return index, jnp.where(jnp.any(mask, axis=-1), value, 0)


def masked_top_k(
    x: Float[Array, " n"], mask: Bool[Array, " n"], k: int
) -> tuple[Float[Array, " k"], Int[Array, " k"], Bool[Array, " k"]]:
    """Return the `k` largest real entries in descending order.

    Args:
      x: [n] values above minus infinity.
      mask: [n] True = real.
      k: number of slots; may exceed `n`.

    Returns:
      values: [k], 0 in empty slots.
      indices: [k] int32, 0 in empty slots.
      valid: [k] bool, False in empty slots, which are last.

    Ties: the lower index comes first (-0.0 and 0.0 are equal).
    """
    ranked = jnp.where(mask, jnp.where(x == 0, 0.0, x), -jnp.inf)
    _, indices = jax.lax.top_k(ranked, min(k, x.shape[0]))
    indices = jnp.pad(indices, (0, k - indices.shape[0])).astype(jnp.int32)
    valid = jnp.arange(k) < jnp.sum(mask)
    if x.shape[0] == 0:
        return jnp.zeros(k, x.dtype), indices, valid
    return jnp.where(valid, x[indices], 0), jnp.where(valid, indices, 0), valid
