"""Losses on the class scores of an image."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from wsod_jax.ops.masked import masked_mean

EPSILON = 1e-6  # scores are clipped to [EPSILON, 1 - EPSILON], which float32 resolves


def mil_loss(
    image_scores: Float[Array, " c"],
    labels: Int[Array, " c"],
    *,
    reduction: Literal["mean", "sum"] = "mean",
    scale: ArrayLike = 1.0,
) -> Float[Array, ""]:
    """Return the multi-label cross entropy of one image's class scores.

        L = - scale/C * sum_c [ y_c log phi_c + (1 - y_c) log(1 - phi_c) ]

    over the C classes whose label is known, with phi clipped to [1e-6, 1 - 1e-6]. Clipping bounds the
    gradient but does not zero it: a score of 0 can still rise.

    Args:
      image_scores: [c] phi in [0, 1], e.g. proposal scores summed over proposals.
      labels: [c] 1 present, 0 absent, -1 unknown (no loss).
      reduction: "mean" divides by the number of known labels, as the released OICR code effectively
        does; "sum" does not, as printed in the papers.
      scale: factor on the loss. The mean weighs each class by 1/C, so 4 weighs each of 80 classes
        like each of 20.

    Returns:
      [] float32, >= 0. 0 if no label is known.

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


def score_entropy(
    scores: Float[Array, "r c"], mask: Bool[Array, " r"], labels: Int[Array, " c"]
) -> Float[Array, ""]:
    """Return the mean of -X log X over the proposals and the present classes of one image; 0 if there are none.

    Args:
      scores: [r, c] X in [0, 1].
      mask: [r] True = real proposal.
      labels: [c] 1 present; no other class counts.

    Source: the released WS-JDS code.
    """
    counted = mask[:, None] & (labels == 1)[None, :]
    x = jnp.where(counted, jnp.clip(scores, 1e-20, 1.0), 1.0)
    return masked_mean(-x * jnp.log(x), counted)


Activation = Literal["softmax", "sigmoid"]


def classification_loss(
    logits: Float[Array, "b c"], labels: Int[Array, "b c"], activation: Activation
) -> Float[Array, " b"]:
    """Return every image's cross-entropy.

    "softmax": −log softmax(y)_c of its one class. "sigmoid": −Σ_c [t_c log σ(y_c) + (1 − t_c) log(1 − σ(y_c))] / C,
    over the C classes whose label is known; 0 where none is.

    Args:
      logits: [b, c] y.
      labels: [b, c] 1 present, 0 absent, -1 unknown, excluded from the sigmoid loss.
      activation: "softmax" for one class per image, "sigmoid" for any number.
    """
    present = (labels == 1).astype(jnp.float32)
    if activation == "softmax":
        return optax.losses.safe_softmax_cross_entropy(logits, present)
    known = labels >= 0
    per_class = optax.losses.sigmoid_binary_cross_entropy(logits, present)
    return jnp.sum(per_class * known, axis=1) / jnp.maximum(jnp.sum(known, axis=1), 1)


def class_scores(logits: Float[Array, "b c"], activation: Activation) -> Float[Array, "b c"]:
    """Return class probabilities: a softmax over classes, or a sigmoid of each."""
    return jax.nn.softmax(logits, axis=-1) if activation == "softmax" else jax.nn.sigmoid(logits)


def top1_hits(logits: Float[Array, "b c"], labels: Int[Array, "b c"]) -> Float[Array, " b"]:
    """Return 1 for images that contain the class scored highest, else 0."""
    best = jnp.argmax(logits, axis=1)
    present = (labels == 1).astype(jnp.float32)
    return jnp.take_along_axis(present, best[:, None], axis=1)[:, 0]
