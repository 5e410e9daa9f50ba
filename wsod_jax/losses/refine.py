"""Losses of the refinement heads on mined targets."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from wsod_jax.types import PseudoBoxes, RefineTargets

Normaliser = Literal["weighted", "real"]


def refinement_loss(
    logits: Float[Array, "r k"],
    targets: RefineTargets,
    multiplier: Float[Array, " r"],
    mask: Bool[Array, " r"],
    *,
    normaliser: Normaliser = "weighted",
) -> Float[Array, ""]:
    """Return the weighted cross entropy of one refinement head on one image.

        L = - 1/|P| sum_j w_j (1 + z_j) log x_{y_j, j}

    with w_j, y_j from `targets`, 1 + z_j = `multiplier`, and x the softmax of `logits`. A multiplier of
    ones gives the loss of OICR.

    Args:
      logits: [r, k] background first; masked rows may hold anything.
      targets: mined labels and weights.
      multiplier: [r] factor on each weight; it does not enter the normaliser.
      mask: [r] True = real proposal.
      normaliser: |P|. "weighted": proposals with w_j > 1e-12, at least 1 (released OICR code);
        "real": all real proposals, at least 1. They differ only by ignored proposals.

    Returns:
      [] float32. 0 where all weights are 0.

    Raises:
      ValueError: unknown `normaliser`.
    Gradient: to `logits` only; finite, and 0 for masked rows.
    Source: Tang et al. 2017 (OICR), section 3; Lin et al. 2020 (OIM), eqs. 3 and 4.
    """
    if normaliser not in ("weighted", "real"):
        raise ValueError(f"normaliser is {normaliser!r}; it must be 'weighted' or 'real'")
    targets, multiplier = jax.lax.stop_gradient((targets, multiplier))
    weights = jnp.where(mask, targets.weights, 0.0)
    counted = weights > 1e-12 if normaliser == "weighted" else mask
    log_likelihood = _log_likelihood(logits, targets, mask)
    total = -jnp.sum(jnp.where(mask, weights * multiplier, 0.0) * log_likelihood)
    return total / jnp.maximum(jnp.sum(counted), 1)


def cluster_loss(
    logits: Float[Array, "r k"],
    targets: RefineTargets,
    pseudo: PseudoBoxes,
    mask: Bool[Array, " r"],
) -> Float[Array, ""]:
    """Return PCL's loss: each cluster of proposals is classified as one bag, the background singly.

        L = - 1/R [ sum_{r: y_r = 0} w_r log x_{0,r}
                    + sum_n S_n log( 1/|M_n| sum_{r in M_n} x_{y_n, r} ) ],   S_n = sum_{r in M_n} w_r,

    where cluster n has the foreground proposals M_n assigned to pseudo box n and R counts the real
    proposals. The mean over a cluster is taken in the log domain, so it needs no clamp and does not
    lose its gradient where probabilities are tiny. Clusters without members add nothing.

    Args:
      logits: [r, k] of the head being trained, background first; masked rows may hold anything.
      targets: mined labels, weights and cluster slots.
      pseudo: the boxes mined; only their number of slots matters.
      mask: [r] True = real proposal.

    Returns:
      [] float32. 0 where all weights are 0.

    Gradient: to `logits` only; -S_n / (R |M_n| mean_n) for the probability of each member.
    Source: Tang et al. 2018 (PCL), arXiv:1807.03342, section 3. The released code clamps at 1e-12.
    """
    targets = jax.lax.stop_gradient(targets)
    num_slots = pseudo.mask.shape[0]
    weights = jnp.where(mask, targets.weights, 0.0)
    log_likelihood = _log_likelihood(logits, targets, mask)  # [r]
    member = mask & (targets.labels > 0)
    background = jnp.sum(jnp.where(member, 0.0, weights) * log_likelihood)

    slot = jnp.where(member, targets.assigned, num_slots)  # all others share a last, unused segment
    peak = jax.ops.segment_max(jax.lax.stop_gradient(log_likelihood), slot, num_slots + 1)
    peak = jnp.where(jnp.isfinite(peak), peak, 0.0)
    size = jax.ops.segment_sum(member.astype(jnp.float32), slot, num_slots + 1)
    total = jax.ops.segment_sum(jnp.exp(log_likelihood - peak[slot]), slot, num_slots + 1)
    used = size > 0
    log_mean = peak + jnp.log(jnp.where(used, total / jnp.maximum(size, 1.0), 1.0))
    weight = jax.ops.segment_sum(weights, slot, num_slots + 1)
    clusters = jnp.sum(jnp.where(used, weight * log_mean, 0.0))
    return -(background + clusters) / jnp.maximum(jnp.sum(mask), 1)


def _log_likelihood(
    logits: Float[Array, "r k"], targets: RefineTargets, mask: Bool[Array, " r"]
) -> Float[Array, " r"]:
    """Return log x_{y_j, j}, and 0 for masked rows."""
    logits = jnp.where(mask[:, None], logits.astype(jnp.float32), 0.0)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(log_probs, targets.labels[:, None], axis=1)[:, 0]
    return jnp.where(mask, chosen, 0.0)
