"""The soft proposal module, and SPN's network: backbone, extra convolution, the module, spatial sum, linear layer."""

from __future__ import annotations

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from wsod_jax.errors import ConfigError
from wsod_jax.nn.heads import CamHead
from wsod_jax.nn.layers import ConvRelu, ReceptiveField, Window, receptive_field, valid_mask
from wsod_jax.ops.soft_proposal import EpsilonRule, Solver, soft_proposals
from wsod_jax.options import COUNT, NOT_NEGATIVE, POSITIVE, Mark
from wsod_jax.types import ActivationMaps, Batch, FeatureMap


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

    The module has no parameters and may follow any layer whose output is a `FeatureMap`.

    Attributes:
      solver: how M is computed, see `ops.soft_proposal`.
      epsilon_rule, epsilon_factor: ε of the spatial kernel, see there.
      num_steps, tolerance: of the walk.
      block_nodes: rows of D' at a time, for maps too large for a dense D', see there.
      unit_mean: multiply by M · n instead of M, where n is the number of valid cells. ΣM is 1, so M alone makes values
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


EXTRA_WINDOW = Window(3, pad=1)


@struct.dataclass
class SpnOutputs:
    """The network's outputs for every image.

    Attributes:
      logits: [b, c] float32 class scores y.
      maps: class activation maps R and the proposal map M.
      features: U, the input of the soft proposal module.
    """

    logits: jax.Array
    maps: ActivationMaps
    features: FeatureMap


class SpnNetwork(nn.Module):
    """A classifier that pools features weighted by its proposal map.

    Attributes:
      backbone: module from a batch to maps by name, of which "c5" is the last.
      soft_proposal: the module that computes the proposal map.
      num_classes: c.
      extra_channels: width of the 3x3 convolution that the released networks put after the backbone; `None`: none.
      extra_groups: its groups of channels.
      insert_after: name of the backbone's layer that the module follows; `None`: after the last. In the middle V feeds
        further layers, so set `unit_mean` of `soft_proposal`; the last map is then averaged over its cells.
      dropout_rate: of the summed features, when training.
    """

    backbone: nn.Module
    soft_proposal: SoftProposal
    num_classes: int
    extra_channels: int | None
    extra_groups: int
    insert_after: str | None
    dropout_rate: float

    def setup(self):
        self.head = CamHead(self.num_classes, self.dropout_rate)
        if self.extra_channels is not None:
            self.extra = ConvRelu(
                self.extra_channels,
                kernel=EXTRA_WINDOW.kernel,
                groups=self.extra_groups,
                initializer="uniform",
                dtype=self.backbone.dtype,
            )

    def __call__(self, batch: Batch, dropout_keys: jax.Array | None = None) -> SpnOutputs:
        """Classify a batch's images and compute class activation maps.

        Args:
          batch: needs `image` or `features`.
          dropout_keys: [b] typed keys, one mask per image; `None` disables dropout.
        """
        if self.insert_after is None:
            features = self.final_map(self.backbone(batch)["c5"])
            coupled = self.soft_proposal(features)
            maps, proposal_size = coupled.maps, coupled.maps.size
        else:
            last, features, coupled = self.coupled_inside(batch)
            maps, proposal_size = _averaged(self.final_map(last)), coupled.maps.size
        logits, cams = self.head(maps, dropout_keys)
        activation_maps = ActivationMaps(
            cams * _num_cells(maps.size)[..., None],
            maps.size,
            coupled.proposal_map * _num_cells(proposal_size),
            proposal_size,
        )
        return SpnOutputs(logits, activation_maps, features)

    def proposal_field(self) -> ReceptiveField:
        """Return the receptive field of the proposal map's cells.

        Raises:
          ConfigError: the module is inside the backbone, where receptive fields are not known.
        """
        if self.insert_after is not None:
            raise ConfigError(
                f"method.insert_after is {self.insert_after!r}: the receptive field of a proposal map is only known "
                "after the backbone; use a run with insert_after = None"
            )
        extra = () if self.extra_channels is None else (EXTRA_WINDOW,)
        return receptive_field((*self.backbone.geometry, *extra))

    def final_map(self, maps: FeatureMap) -> FeatureMap:
        """Apply the extra convolution, if there is one."""
        return maps if self.extra_channels is None else self.extra(maps)

    def coupled_inside(self, batch: Batch) -> tuple[FeatureMap, FeatureMap, Coupled]:
        """Run the backbone with the soft proposal module after `insert_after`; return its last map, U and V.

        Raises:
          ConfigError: the backbone has no such layer, or its last map is cached.
        """
        if batch.features is not None:
            raise ConfigError(
                f"method.insert_after is {self.insert_after!r}, inside a backbone whose maps are cached; set "
                'config.train.cache to "none"'
            )
        calls: list[tuple[FeatureMap, Coupled]] = []

        def couple(layer, args, kwargs, context):
            output = layer(*args, **kwargs)
            path = (self.backbone.name, self.insert_after)
            if context.method_name == "__call__" and context.module.path[-2:] == path:
                calls.append((output, self.soft_proposal(output)))
                output = calls[-1][1].maps
            return output

        with nn.intercept_methods(couple):
            maps = self.backbone(batch)["c5"]
        if not calls:
            raise ConfigError(
                f"method.insert_after is {self.insert_after!r}, which is not a layer of "
                f"{type(self.backbone).__name__}; its layers are {', '.join(self.backbone.layers)}"
            )
        return maps, *calls[0]


def _averaged(maps: FeatureMap) -> FeatureMap:
    """Return a map divided by its number of cells: summing it then averages, as M at the end would."""
    count = jnp.maximum(_num_cells(maps.size)[..., None], 1)
    return maps.replace(features=maps.features / count.astype(maps.features.dtype))


def _num_cells(size: jax.Array) -> jax.Array:
    """Return the number of valid cells of maps of sizes [b, 2], [b, 1, 1] float32."""
    return jnp.prod(size, axis=1)[:, None, None].astype(jnp.float32)
