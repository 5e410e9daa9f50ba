"""The network of SPN: backbone, an extra convolution, the soft proposal module, a sum over cells, one linear layer."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from wsod_jax.errors import ConfigError
from wsod_jax.nn.geometry import ReceptiveField, Window, receptive_field
from wsod_jax.nn.heads import ResponseHead
from wsod_jax.nn.layers import ConvRelu, valid_mask
from wsod_jax.nn.soft_proposal import Coupled, SoftProposal
from wsod_jax.types import Batch, FeatureMap, ResponseMaps

EXTRA_WINDOW = Window(3, pad=1)


@struct.dataclass
class SpnOutputs:
    """What the network says of every image.

    Attributes:
      logits: [b, c] float32 class scores y.
      maps: response maps R and the proposal map M.
    """

    logits: jax.Array
    maps: ResponseMaps


class SpnNetwork(nn.Module):
    """A classifier whose features are gathered where its own proposal map says there are objects.

    Attributes:
      backbone: module from (image, image_size) to a `FeatureMap`.
      soft_proposal: how the proposal map is found.
      num_classes: c.
      extra_channels: width of the 3x3 convolution that the released networks put after the backbone; `None`
        leaves it out.
      extra_groups: its groups of channels.
      insert_after: name of the backbone's layer that the module follows; `None` puts it at the very end. Before
        the end V feeds further layers, so give `soft_proposal` a `unit_mean`; the last map is then averaged over its
        cells.
      dropout_rate: of the summed features, when training.
    """

    backbone: nn.Module
    soft_proposal: SoftProposal
    num_classes: int
    extra_channels: int | None = 1024
    extra_groups: int = 2
    insert_after: str | None = None
    dropout_rate: float = 0.5

    def setup(self):
        self.head = ResponseHead(self.num_classes, self.dropout_rate)
        if self.extra_channels is not None:
            self.extra = ConvRelu(
                self.extra_channels,
                kernel=EXTRA_WINDOW.kernel,
                groups=self.extra_groups,
                initializer="uniform",
                dtype=self.backbone.dtype,
            )

    def __call__(self, batch: Batch, dropout_keys: jax.Array | None = None) -> SpnOutputs:
        """Classify a batch's images and say where the evidence lies.

        Args:
          batch: needs `image` or `features`.
          dropout_keys: [b] typed keys, one mask per image; `None` switches dropout off.
        """
        if self.insert_after is None:
            coupled = self.soft_proposal(self.final_map(self.feature_map(batch)))
            maps, proposal_size = coupled.maps, coupled.maps.size
        else:
            last, coupled = self.coupled_inside(batch)
            maps, proposal_size = _averaged(self.final_map(last)), coupled.maps.size
        logits, responses = self.head(maps, dropout_keys)
        where = ResponseMaps(responses, maps.size, coupled.proposal_map, proposal_size)
        return SpnOutputs(logits, where)

    def proposal_field(self) -> ReceptiveField:
        """Return what the cells of the proposal map see of the image.

        Raises:
          ConfigError: the map is made inside the backbone, whose description tells of its last map alone.
        """
        if self.insert_after is not None:
            raise ConfigError(
                f"network.insert_after is {self.insert_after!r}: receptive fields are known of a proposal map behind "
                "the backbone; use a network with insert_after = None"
            )
        extra = () if self.extra_channels is None else (EXTRA_WINDOW,)
        return receptive_field((*self.backbone.geometry, *extra))

    def feature_map(self, batch: Batch) -> FeatureMap:
        """Run the backbone, or take the cached map of a frozen one."""
        if batch.features is None:
            return self.backbone(batch.image, batch.image_size)
        return FeatureMap(batch.features, self.backbone.output_size(batch.image_size))

    def final_map(self, maps: FeatureMap) -> FeatureMap:
        """Run what stands between the backbone and the head."""
        return maps if self.extra_channels is None else self.extra(maps)

    def coupled_inside(self, batch: Batch) -> tuple[FeatureMap, Coupled]:
        """Run the backbone with the soft proposal module after `insert_after`.

        Raises:
          ConfigError: the backbone has no such layer, or its map comes from a cache, which has left the layer behind.
        """
        if batch.features is not None:
            raise ConfigError(
                f"network.insert_after is {self.insert_after!r}, inside a backbone whose maps are cached; set "
                "train.cache_features to False"
            )
        found: list[Coupled] = []

        def couple(layer, args, kwargs, context):
            output = layer(*args, **kwargs)
            path = (self.backbone.name, self.insert_after)
            if context.method_name == "__call__" and context.module.path[-2:] == path:
                found.append(self.soft_proposal(output))
                output = found[-1].maps
            return output

        with nn.intercept_methods(couple):
            maps = self.feature_map(batch)
        if not found:
            raise ConfigError(
                f"network.insert_after is {self.insert_after!r}, which is no layer of "
                f"{type(self.backbone).__name__}; its layers are {', '.join(self.backbone.layers)}"
            )
        return maps, found[0]


def _averaged(maps: FeatureMap) -> FeatureMap:
    """Return a map divided by its number of cells: summing it then averages, as M at the end would."""
    mask = valid_mask(maps.size, *maps.features.shape[1:3])
    count = jnp.maximum(jnp.sum(mask, axis=(1, 2, 3), keepdims=True), 1)
    return FeatureMap(maps.features / count.astype(maps.features.dtype), maps.size)
