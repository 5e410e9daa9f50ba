"""A small VGG-like network for small pictures on a laptop's CPU."""

from __future__ import annotations

from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from wsod_jax.nn.backbone import Backbone
from wsod_jax.nn.layers import max_pool, pool_size
from wsod_jax.nn.pixels import Pixels
from wsod_jax.types import FeatureMap


class TinyNet(Backbone):
    """Four stages of two 3x3 convolutions; 2x2 max pooling (ceil mode) after the first ones.

    Attributes:
      widths: channels of the four stages.
      stride: 8 pools after stages 1 to 3; 4 after stages 1 and 2, and stage 4 then has dilation 2.
    """

    pixels: Pixels = "torchvision"
    widths: tuple[int, int, int, int] = (16, 32, 64, 64)
    stride: Literal[8, 4] = 8

    architecture: ClassVar[str] = "tiny"
    layers: ClassVar[tuple[str, ...]] = tuple(
        f"conv{stage}_{i}" for stage in (1, 2, 3, 4) for i in (1, 2)
    )

    @property
    def channels(self) -> int:
        """Width of the output map."""
        return self.widths[-1]

    @nn.compact
    def __call__(
        self,
        image: Shaped[Array | np.ndarray, "b H W 3"],
        image_size: Int[Array | np.ndarray, "b 2"],
    ) -> FeatureMap:
        """Map RGB pixels 0..255 to features [b, ceil(H / stride), ceil(W / stride), channels] after ReLU."""
        maps = self.network_input(image, image_size)
        num_pools = 3 if self.stride == 8 else 2
        for stage, channels in enumerate(self.widths, start=1):
            dilation = 2 if stage == 4 and self.stride == 4 else 1
            for i in (1, 2):
                maps = self.conv(f"conv{stage}_{i}", channels, dilation=dilation)(maps)
            if stage <= num_pools:
                maps = max_pool(maps, window=2, stride=2, ceil_mode=True)
        return maps

    def output_size(self, image_size: Int[Array | np.ndarray, "b 2"]) -> Int[Array, "b 2"]:
        """Return the map's valid (rows, columns)."""
        size = jnp.asarray(image_size, jnp.int32)
        for _ in range(3 if self.stride == 8 else 2):
            size = pool_size(size, window=2, stride=2, ceil_mode=True)
        return size
