"""Learning rates (and other numbers) as functions of the update count, starting at 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from wsod_jax.errors import ConfigError

Schedule = Callable[[jax.Array | int], jax.Array]


def piecewise_constant(values: Sequence[float], boundaries: Sequence[int] = ()) -> Schedule:
    """Hold `values[i]` until update `boundaries[i]`, which is the first to use `values[i + 1]`.

    Args:
      values: one more than boundaries.
      boundaries: strictly increasing update counts.

    Returns:
      step -> [] float32.

    Raises:
      ConfigError: if the lengths do not fit or the boundaries do not increase.
    Ties: the boundary itself belongs to the later value (`step >= boundary`).
    Source: Caffe's "multistep" learning-rate policy.
    """
    values, boundaries = tuple(values), tuple(boundaries)
    if len(values) != len(boundaries) + 1:
        raise ConfigError(
            f"a schedule of {len(values)} value(s) {values} needs {len(values) - 1} boundaries, "
            f"found {len(boundaries)}: {boundaries}; add or drop one"
        )
    if any(b <= a for a, b in zip((0, *boundaries), boundaries, strict=False)):
        raise ConfigError(f"schedule boundaries must increase from above 0, found {boundaries}")

    def schedule(step: jax.Array | int) -> jax.Array:
        passed = jnp.sum(jnp.asarray(step) >= jnp.asarray(boundaries, jnp.int32))
        return jnp.asarray(values, jnp.float32)[passed]

    return schedule


def cosine(peak: float, *, total_steps: int, final: float = 0.0) -> Schedule:
    """Fall from `peak` to `final` along half a cosine: final + (peak − final)·(1 + cos(π·step/T))/2.

    Args:
      peak: value at update 0.
      total_steps: T; from there on the value is `final`.
      final: the last value.

    Returns:
      step -> [] float32.

    Raises:
      ConfigError: if `total_steps` is not positive.
    """
    if total_steps < 1:
        raise ConfigError(f"a cosine schedule needs total_steps >= 1, found {total_steps}")

    def schedule(step: jax.Array | int) -> jax.Array:
        share = jnp.clip(jnp.asarray(step, jnp.float32) / total_steps, 0.0, 1.0)
        return final + (peak - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * share))

    return schedule


def warm_up(schedule: Schedule, *, steps: int, factor: float) -> Schedule:
    """Multiply a schedule by a ramp from `factor` at update 0 to 1 at update `steps`.

    Args:
      schedule: the schedule after the ramp.
      steps: length of the ramp; 0 leaves the schedule as it is.
      factor: in [0, 1].

    Returns:
      step -> [] float32.

    Raises:
      ConfigError: if `steps` is negative or `factor` lies outside [0, 1].
    """
    if steps < 0 or not 0.0 <= factor <= 1.0:
        raise ConfigError(
            f"warm-up needs steps >= 0 and a factor in [0, 1], found {steps} and {factor}"
        )
    if steps == 0:
        return schedule

    def warmed(step: jax.Array | int) -> jax.Array:
        share = jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0)
        return schedule(step) * (factor + (1.0 - factor) * share)

    return warmed
