"""VGG16 as weakly supervised detectors use it: no last pooling, and a finer map by dilation."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from wsod_jax.nn.backbone import Backbone
from wsod_jax.nn.layers import max_pool, pool_size
from wsod_jax.types import FeatureMap

STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # (convolutions, channels)


class Vgg16(Backbone):
    """The 13 convolutional layers of VGG16, without pool5; ends after conv5_3's ReLU.

    Attributes:
      dilated: remove pool4 as well and give conv5 dilation 2, for a stride of 8 (OICR, PCL, OIM); else the stride
        is 16 (WSDDN).
      frozen: conv1 and conv2 by default, as OICR and its descendants train it.

    Pooling rounds sizes up as Caffe does, so the map is ceil(ceil(ceil(W / 2) / 2) / 2) wide at stride 8.
    Source: Simonyan and Zisserman 2015; released OICR code (train.prototxt).
    """

    frozen: tuple[str, ...] = ("conv1", "conv2")
    dilated: bool = True

    architecture: ClassVar[str] = "vgg16"
    channels: ClassVar[int] = 512
    layers: ClassVar[tuple[str, ...]] = tuple(
        f"conv{stage}_{i + 1}" for stage, (n, _) in enumerate(STAGES, start=1) for i in range(n)
    )

    @property
    def stride(self) -> int:
        """Pixels per cell."""
        return 8 if self.dilated else 16

    @nn.compact
    def __call__(
        self,
        image: Shaped[Array | np.ndarray, "b H W 3"],
        image_size: Int[Array | np.ndarray, "b 2"],
    ) -> FeatureMap:
        """Map RGB pixels 0..255 to features [b, ceil(H / stride), ceil(W / stride), 512] after ReLU."""
        maps = self.network_input(image, image_size)
        for stage, (num_convs, channels) in enumerate(STAGES, start=1):
            dilation = 2 if stage == 5 and self.dilated else 1
            for i in range(num_convs):
                maps = self.conv(f"conv{stage}_{i + 1}", channels, dilation=dilation)(maps)
            if stage <= (3 if self.dilated else 4):
                maps = max_pool(maps, window=2, stride=2, ceil_mode=True)
        return maps

    def output_size(self, image_size: Int[Array | np.ndarray, "b 2"]) -> Int[Array, "b 2"]:
        """Return the map's valid (rows, columns)."""
        size = jnp.asarray(image_size, jnp.int32)
        for _ in range(3 if self.dilated else 4):
            size = pool_size(size, window=2, stride=2, ceil_mode=True)
        return size
