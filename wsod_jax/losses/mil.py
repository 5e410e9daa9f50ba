"""Losses on image-level class scores, and WSDDN's spatial regulariser."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from wsod_jax.ops.boxes import pairwise_iou
from wsod_jax.ops.masked import masked_top_k

EPSILON = 1e-6  # the smallest distance to 0 and 1 that float32 keeps apart safely


def mil_loss(
    image_scores: Float[Array, " c"],
    labels: Int[Array, " c"],
    *,
    reduction: Literal["mean", "sum"] = "mean",
    scale: ArrayLike = 1.0,
) -> Float[Array, ""]:
    """Return the multi-label cross entropy of one image's class scores.

        L = - scale/C * sum_c [ y_c log phi_c + (1 - y_c) log(1 - phi_c) ]

    over the C classes whose label is known, with phi clipped to [1e-6, 1 - 1e-6]. The clipping bounds
    the gradient but does not cut it off: a class whose score has sunk to 0 can still rise.

    Args:
      image_scores: [c] phi in [0, 1], e.g. proposal scores summed over proposals.
      labels: [c] 1 present, 0 absent, -1 unknown (no loss).
      reduction: "mean" divides by the number of known labels, as the gradient of the released OICR
        code effectively does; "sum" does not, as the papers print it.
      scale: factor on the loss. The mean weighs each class by 1/C; with 80 classes 4 restores the
        strength that 20 classes had.

    Returns:
      [] float32, >= 0. 0 where no label is known.

    Raises:
      ValueError: unknown `reduction`.
    Gradient: dL/dphi_c = scale/C (-y_c/phi_c + (1 - y_c)/(1 - phi_c)) at the clipped phi.
    Source: Bilen & Vedaldi 2016 (WSDDN), section 3.3; Tang et al. 2017 (OICR), section 3.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}; it must be 'mean' or 'sum'")
    scores = image_scores.astype(jnp.float32)
    clipped = jnp.clip(scores, EPSILON, 1.0 - EPSILON)
    scores = scores + jax.lax.stop_gradient(clipped - scores)
    log_likelihood = jnp.where(labels == 1, jnp.log(scores), jnp.log1p(-scores))
    known = labels >= 0
    total = -jnp.sum(jnp.where(known, log_likelihood, 0.0))
    if reduction == "mean":
        total = total / jnp.maximum(jnp.sum(known), 1)
    return scale * total


def spatial_regulariser(
    scores: Float[Array, "r c"],
    features: Float[Array, "r f"],
    boxes: Float[Array, "r 4"],
    mask: Bool[Array, " r"],
    labels: Int[Array, " c"],
    *,
    iou_thr: ArrayLike = 0.6,
    num_best: int = 10,
    max_classes: int,
) -> Float[Array, ""]:
    """Return how much the features of good boxes differ from those of the best box beside them.

        L = 1/2 sum_{c: y_c = 1} sum_{k in N_c} || p_k (f_k - f_*) ||^2

    where * is the best proposal of class c, N_c those of the next nine best with IoU(k, *) > `iou_thr`,
    and p_k = x_ck is a constant.

    Args:
      scores: [r, c] proposal scores of the detector.
      features: [r, f] features that the class scores are computed from.
      boxes: [r, 4] xyxy in pixels.
      mask: [r] True = real proposal; masked rows may hold anything.
      labels: [c] only classes with label 1 count.
      iou_thr: IoU > this makes a neighbour (exclusive).
      num_best: how many of the best boxes are looked at, the best included.
      max_classes: static maximum of positive classes; further (higher) ones are left out.

    Returns:
      [] float32, >= 0, not yet weighted (the authors use 1e-4).

    Ties: lower index ranks first.   Gradient: to features only, f_* included; that of the printed loss,
    with p_k squared, where the authors' hand-written one has p_k once.
    Source: Bilen & Vedaldi 2016 (WSDDN), section 3.4.
    """
    scores = jax.lax.stop_gradient(scores.astype(jnp.float32))

    def one_class(column: Array) -> Array:
        weight, best, valid = masked_top_k(column, mask, num_best)
        overlap = pairwise_iou(boxes[best], boxes[best[:1]])[:, 0]
        neighbour = valid & (overlap > iou_thr) & (jnp.arange(num_best) > 0)
        chosen = features[best].astype(jnp.float32)  # [num_best, f]
        difference = jnp.where(neighbour[:, None], chosen - chosen[:1], 0.0)
        return 0.5 * jnp.sum((weight[:, None] * difference) ** 2)

    (classes,) = jnp.nonzero(labels == 1, size=max_classes, fill_value=-1)
    per_class = jax.vmap(one_class, in_axes=1)(scores[:, classes])  # [m]
    return jnp.sum(jnp.where(classes >= 0, per_class, 0.0))
