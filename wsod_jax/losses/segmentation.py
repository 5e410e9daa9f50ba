"""Losses of a segmentation branch whose classes do not compete: a sigmoid per class, learned from seeds.

A seed map holds, per class and pixel, 1 for the class, 0 for what is not the class, and -1 where neither is known.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from wsod_jax.losses.image_labels import EPSILON

Balance = Literal["balanced", "plain"]


def seed_loss(
    logits: Float[Array, "H W"], seeds: Int[Array, "H W"], balance: Balance = "balanced"
) -> Float[Array, ""]:
    """Return the loss of one class of one image on the pixels with a seed, s = σ(logits).

        balanced:  −mean_{M = 1} log s − mean_{M = 0} log(1 − s)
        plain:     −mean_{M ≥ 0} [M log s + (1 − M) log(1 − s)]

    Args:
      logits: [H, W].
      seeds: [H, W] M: 1, 0 or -1.
      balance: "balanced" is the released code's, "plain" the paper's Eq. 2 as a mean.

    Returns:
      [] float32; the mean over no pixels is 0.

    Gradient: finite for any logits.
    Source: Shen et al. 2019 (WS-JDS), Eq. 2, which lacks its minus sign.
    """
    logits = logits.astype(jnp.float32)
    positive, negative = seeds == 1, seeds == 0

    def mean(values: Array, mask: Bool[Array, "H W"], count: Array) -> Array:
        return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(count, 1)

    counts = jnp.sum(positive), jnp.sum(negative)
    if balance == "plain":
        counts = (counts[0] + counts[1],) * 2
    found = mean(jax.nn.softplus(-logits), positive, counts[0])
    return found + mean(jax.nn.softplus(logits), negative, counts[1])


def label_probabilities(
    foreground: Float[Array, "h w k"], is_present: Bool[Array, " k"]
) -> Float[Array, "h w k1"]:
    """Return p over background and the present classes, which sum to 1 in every cell.

        p_c = s_c,   p_background = 1 − max_c s_c,   both divided by their sum

    Args:
      foreground: [h, w, k] s in [0, 1].
      is_present: [k]; the other classes get 0.

    Returns:
      [h, w, 1 + k] float32, background first, each present label at least 1e-6 before the division.
    """
    foreground = jnp.where(is_present, jnp.clip(foreground, EPSILON, 1.0), 0.0)
    background = jnp.maximum(1.0 - jnp.max(foreground, axis=-1, initial=0.0), EPSILON)
    labels = jnp.concatenate([background[..., None], foreground], axis=-1)
    return labels / jnp.sum(labels, axis=-1, keepdims=True)


def boundary_loss(
    probabilities: Float[Array, "h w k"],
    refined: Float[Array, "h w k"],
    mask: Bool[Array, "h w"],
) -> Float[Array, ""]:
    """Return the divergence of the probabilities from refined ones that follow the image's edges.

        L = 1/n Σ_cells Σ_k q_k log(q_k / p_k)

    Args:
      probabilities: [h, w, k] p, summing to 1 over k.
      refined: [h, w, k] q likewise, constant; a label of q_k = 0 does not count.
      mask: [h, w] True = valid cell, n in all.

    Returns:
      [] float32, >= 0 where both sum to 1; 0 without cells.

    Source: Kolesnikov and Lampert 2016 (SEC), section 3.4.
    """
    q = jax.lax.stop_gradient(refined)
    p = jnp.clip(probabilities, EPSILON, 1.0)
    safe = jnp.where(q > 0, q, 1.0)
    divergence = jnp.sum(jnp.where(q > 0, q * (jnp.log(safe) - jnp.log(p)), 0.0), axis=-1)
    return jnp.sum(jnp.where(mask, divergence, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def balanced_boundary_loss(
    foreground: Float[Array, "h w c"],
    refined: Float[Array, "h w c"],
    mask: Bool[Array, "h w"],
) -> Float[Array, ""]:
    """Return the released code's boundary loss, over all classes and without the background.

        L = Σ_c [mean_{q_c > ½} q_c log(q_c / s_c) + mean_{q_c ≤ ½} q_c log(q_c / s_c)]

    Args:
      foreground: [h, w, c] s in [0, 1]. The released code applies the sigmoid twice, a slip that is not copied.
      refined: [h, w, c] q, constant.
      mask: [h, w] True = valid cell.

    Returns:
      [] float32, of any sign.
    """
    q = jax.lax.stop_gradient(refined)
    s = jnp.clip(foreground, EPSILON, 1.0)
    safe = jnp.where(q > 0, q, 1.0)
    values = jnp.where(q > 0, q * (jnp.log(safe) - jnp.log(s)), 0.0)

    def mean(chosen: Bool[Array, "h w c"]) -> Float[Array, " c"]:
        total = jnp.sum(jnp.where(chosen, values, 0.0), axis=(0, 1))
        return total / jnp.maximum(jnp.sum(chosen, axis=(0, 1)), 1)

    valid = mask[..., None]
    return jnp.sum(mean(valid & (q > 0.5)) + mean(valid & (q <= 0.5)))


def seeds_of_map(
    localization: Float[Array, "H W"],
    is_confident: ArrayLike,
    is_present: ArrayLike,
    valid: Bool[Array, "H W"],
    *,
    fg_thr: float,
    bg_thr: float,
) -> Int[Array, "H W"]:
    """Return the seeds of one class: 1 where the map >= `fg_thr`, 0 where it <= `bg_thr`, else -1.

    A class that the image does not contain is 0 everywhere; one that it contains, but that the detector is not
    confident of, is -1 everywhere, and so is the margin.

    Args:
      localization: [H, W] localization map in [0, 1].
      is_confident: [] bool.
      is_present: [] bool.
      valid: [H, W] True = pixel of the image.
      fg_thr, bg_thr: thresholds, `bg_thr` < `fg_thr`.

    Source: Shen et al. 2019 (WS-JDS), section 3, "Cyclic Guidance Learning".
    """
    seeds = jnp.where(localization >= fg_thr, 1, jnp.where(localization <= bg_thr, 0, -1))
    seeds = jnp.where(is_present, jnp.where(is_confident, seeds, -1), 0)
    return jnp.where(valid, seeds, -1)
