"""The soft proposal module: make a proposal map from a feature map, and multiply the two."""

from __future__ import annotations

from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from wsod_jax.nn.layers import valid_mask
from wsod_jax.ops.soft_proposal import EpsilonRule, Solver, soft_proposals
from wsod_jax.options import COUNT, NOT_NEGATIVE, POSITIVE, Mark
from wsod_jax.types import FeatureMap


@struct.dataclass
class Coupled:
    """A feature map after a soft proposal module.

    Attributes:
      maps: V, features [b, h, w, d] with the sizes of U.
      proposal_map: M, [b, h, w] float32, sums to 1 over each image's valid cells.
    """

    maps: FeatureMap
    proposal_map: Float[Array, "b h w"]


class SoftProposal(nn.Module):
    """Couple a feature map with its own proposal map, V_k = U_k ∘ M.

    It has no parameters and may stand after any layer whose output is a `FeatureMap`.

    Attributes:
      solver: how M is found, see `ops.soft_proposal`.
      epsilon_rule, epsilon_factor: reach of the spatial kernel, see there.
      num_steps, tolerance: of the walk.
      block_nodes: for maps so large that D' cannot be held, see there.
      unit_mean: multiply by M · n instead of M, n being the number of valid cells. ΣM is 1, so M alone makes values
        n times smaller: right before a spatial sum, wrong before further layers with biases.

    Gradient: as if M were a constant, ∂E/∂U = M ∘ ∂E/∂V (equations 6 to 8).
    Source: Zhu et al. 2017, sections 3.1 and 3.2.
    """

    solver: Annotated[Solver, Mark.TEST] = "walk"
    epsilon_rule: EpsilonRule = "side"
    epsilon_factor: Annotated[float, POSITIVE] = 0.15
    num_steps: Annotated[int, NOT_NEGATIVE] = 20
    tolerance: Annotated[float, NOT_NEGATIVE] = 1e-4
    block_nodes: Annotated[int | None, COUNT] = None
    unit_mean: bool = False

    def __call__(self, maps: FeatureMap) -> Coupled:
        """Return V and M for U [b, h, w, d]; V has U's type."""
        proposal_map = soft_proposals(
            maps.features,
            maps.size,
            solver=self.solver,
            epsilon_rule=self.epsilon_rule,
            epsilon_factor=self.epsilon_factor,
            num_steps=self.num_steps,
            tolerance=self.tolerance,
            block_nodes=self.block_nodes,
        )
        factor = proposal_map[..., None]  # [b, h, w, 1]
        if self.unit_mean:
            mask = valid_mask(maps.size, *maps.features.shape[1:3])
            factor = factor * jnp.sum(mask, axis=(1, 2, 3), keepdims=True)
        features = (maps.features * factor).astype(maps.features.dtype)
        return Coupled(maps.replace(features=features), proposal_map)
