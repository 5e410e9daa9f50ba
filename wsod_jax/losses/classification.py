"""Losses of image classifiers, one value per image."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

Activation = Literal["softmax", "sigmoid"]


def classification_loss(
    logits: Float[Array, "b c"], labels: Int[Array, "b c"], activation: Activation
) -> Float[Array, " b"]:
    """Return every image's cross-entropy.

    "softmax": −log softmax(y)_c of its one class. "sigmoid": −Σ_c [t_c log σ(y_c) + (1 − t_c) log(1 − σ(y_c))] / C,
    over the C classes whose label is known; 0 where none is.

    Args:
      logits: [b, c] y.
      labels: [b, c] 1 present, 0 absent, -1 unknown, which carries no sigmoid loss.
      activation: for one class per image, or for any number.
    """
    present = (labels == 1).astype(jnp.float32)
    if activation == "softmax":
        return optax.losses.safe_softmax_cross_entropy(logits, present)
    known = labels >= 0
    per_class = optax.losses.sigmoid_binary_cross_entropy(logits, present)
    return jnp.sum(per_class * known, axis=1) / jnp.maximum(jnp.sum(known, axis=1), 1)


def class_scores(logits: Float[Array, "b c"], activation: Activation) -> Float[Array, "b c"]:
    """Return class probabilities: together 1 by softmax, each on its own by sigmoid."""
    return jax.nn.softmax(logits, axis=-1) if activation == "softmax" else jax.nn.sigmoid(logits)


def top1_hits(logits: Float[Array, "b c"], labels: Int[Array, "b c"]) -> Float[Array, " b"]:
    """Return 1 for images that contain the class scored highest, else 0."""
    best = jnp.argmax(logits, axis=1)
    present = (labels == 1).astype(jnp.float32)
    return jnp.take_along_axis(present, best[:, None], axis=1)[:, 0]
