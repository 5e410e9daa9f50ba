"""The training state, one donated pytree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from wsod_jax.errors import ConfigError
from wsod_jax.train.identity import layout
from wsod_jax.train.sharding import replicate, replicated
from wsod_jax.types import Params

_INIT_STREAM = 0xFFFFFFFF  # folded into the seed key; no update has this number


@struct.dataclass
class TrainState:
    """The state that an update reads and replaces.

    Attributes:
      step: [] int32, updates done so far.
      params: trained parameters.
      extras: the method's state without gradients (running statistics, centers); {} if none.
      opt_state: the optimizer's state.
      ema: running average of `params`, or `None`. It never shares buffers with `params`.
    """

    step: jax.Array
    params: Params
    extras: dict
    opt_state: optax.OptState
    ema: Params | None = None


def init_state(
    method: Any,
    tx: optax.GradientTransformation,
    *,
    seed: int,
    batch: Any,
    mesh: Mesh,
    ema: bool = False,
    warm_start: Callable[[Params, dict], tuple[Params, dict]] | None = None,
) -> TrainState:
    """Make the state of step 0, placed on the mesh.

    Only shapes and dtypes of `batch` are read. Parameters are drawn on the devices, once per mesh and
    not per device, so a state does not depend on the number of devices.

    Args:
      method: `init(key, batch) -> (params, extras)`.
      tx: the optimizer.
      seed: the run's seed, as given to the step.
      batch: pytree of arrays or `jax.ShapeDtypeStruct`, one micro-batch.
      mesh: for the state.
      ema: keep a running average of the parameters, starting as their copy.
      warm_start: returns the initial parameters and extras with other weights merged in; same names,
        shapes and dtypes.

    Returns:
      `TrainState` with step 0, replicated on every device of the mesh.

    Raises:
      ConfigError: if `warm_start` changed a name, shape or dtype, or `extras` uses the name "ema".
    """
    placed = replicated(mesh)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)

    def draw() -> tuple[Params, dict]:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        key = jax.random.fold_in(jax.random.key(seed), _INIT_STREAM)
        drawn = method.init(key, zeros)
        # Without weak types, so that a drawn state and a restored one compile to the same program.
        return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), drawn)

    params, extras = jax.jit(draw, out_shardings=placed)()
    if "extras" in params:
        raise ConfigError(
            'the method has params["extras"], a name reserved for state without gradients; give its parameters '
            "another name"
        )
    if "ema" in extras:
        raise ConfigError(
            'the method has extras["ema"], a name reserved for the running average of the parameters, which the loss '
            "reads there; give the method's entry another name"
        )
    if warm_start is not None:
        params, extras = replicate(_warm_started((params, extras), warm_start), mesh)
    opt_state = jax.jit(tx.init, out_shardings=placed)(params)
    average = jax.tree.map(jnp.copy, params) if ema else None
    step = replicate(np.zeros((), np.int32), mesh)
    return TrainState(step, params, extras, opt_state, average)


def _warm_started(
    drawn: tuple[Params, dict], warm_start: Callable[[Params, dict], tuple[Params, dict]]
) -> tuple[Params, dict]:
    warmed = warm_start(*drawn)
    before, after = (
        layout({"params": params, "extras": extras}) for params, extras in (drawn, warmed)
    )
    if before != after:
        wrong = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
        raise ConfigError(
            "pretrained weights changed the parameters' layout at "
            + "; ".join(f"{k}: needed {before.get(k)}, got {after.get(k)}" for k in wrong[:8])
            + f" ({len(wrong)} in all); choose weights made for this network"
        )
    return warmed
