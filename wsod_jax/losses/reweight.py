"""The instance-reweighted loss: less weight on the centre of a graph, more on those around it."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from wsod_jax.types import RefineTargets

Reweighting = Literal["off", "paper", "release"]


def instance_multiplier(
    targets: RefineTargets,
    *,
    mode: Reweighting,
    beta: ArrayLike = 0.2,
    release_core_sign: Literal[-1, 1] = -1,
) -> Float[Array, " r"]:
    """Return the factor 1 + z_j on each proposal's loss weight.

    "paper", where j is the centre of a graph if it is a pseudo box itself (core or node):

        1 + z_j = beta        centres,
                  1 + beta    other members of a graph (foreground),
                  1           background.

    "release", what the authors' code does to the gradient. With q_j the proposal's own source score for
    its label (w_j, for background) and ratio_j = q_j / (w_j + 1e-5):

        1 + z_j = -beta       ratio > 0.999 and j is a centre,
                  1           ratio > 0.999 otherwise,
                  1 + beta    0.299 < ratio <= 0.999,
                  1           ratio <= 0.299.

    The minus sign climbs the loss of the mined boxes; an author called it a mistake, and
    `release_core_sign=1` mends it. Below w of about 0.01 the 1e-5 keeps every ratio under 0.999, so
    that cores and background get 1 + beta: the rule sets in only as scores grow.

    Args:
      targets: of any miner; with OICR's each graph is a top box and its neighbours.
      mode: "off" (all ones), "paper" or "release".
      beta: in [0, 1]; the paper's best is 0.2.
      release_core_sign: sign of the first line of "release".

    Returns:
      [r] float32. Masked proposals get a factor too, which their weight 0 makes void.

    Raises:
      ValueError: unknown `mode` or sign.
    Gradient: none (stop_gradient).
    Source: Lin et al. 2020 (OIM), eqs. 4 and 5. Read to the letter eq. 5 would give the background
    1 + beta too; the text speaks of the members of a spatial graph.
    """
    if mode not in ("off", "paper", "release"):
        raise ValueError(f"mode is {mode!r}; it must be 'off', 'paper' or 'release'")
    if release_core_sign not in (-1, 1):
        raise ValueError(f"release_core_sign is {release_core_sign!r}; it must be -1 or 1")
    targets = jax.lax.stop_gradient(targets)
    ones = jnp.ones_like(targets.weights)
    if mode == "off":
        return ones
    if mode == "paper":
        member = jnp.where(targets.is_centre, beta, 1.0 + beta)
        return jnp.where(targets.labels > 0, member, ones).astype(jnp.float32)
    ratio = targets.source / (targets.weights + 1e-5)
    weak = jnp.where(ratio > 0.299, 1.0 + beta, ones)
    strong = jnp.where(targets.is_centre, release_core_sign * beta, ones)
    return jnp.where(ratio > 0.999, strong, weak).astype(jnp.float32)
