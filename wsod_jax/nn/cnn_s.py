"""VGG-CNN-S: five convolutions, wide and coarse, with local response normalization."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn

from wsod_jax.nn.backbone import CAFFE_MEAN_IMAGENET, Backbone
from wsod_jax.nn.layers import Window, local_response_norm, max_pool
from wsod_jax.types import FeatureMap


class CnnS(Backbone):
    """VGG-CNN-S without pool5; ends after conv5's ReLU, 12 pixels a cell: 17x17 cells for 224x224 pixels.

    conv1 and conv2 are not padded, so the first cell's center is well inside the image: see `receptive_field`.

    Attributes:
      mean: of VGG's authors. They subtract a mean image here; this is its average.

    Source: Chatfield et al. 2014, Table 1, CNN-S; pooling rounds up, as the authors' Caffe model does.
    """

    mean: tuple[float, float, float] = CAFFE_MEAN_IMAGENET

    architecture: ClassVar[str] = "cnn_s"
    channels: ClassVar[int] = 512
    layers: ClassVar[tuple[str, ...]] = ("conv1", "conv2", "conv3", "conv4", "conv5")
    geometry: ClassVar[tuple[Window, ...]] = (
        Window(7, 2),
        Window(3, 3, ceil_mode=True),
        Window(5),
        Window(2, 2, ceil_mode=True),
        Window(3, pad=1),
        Window(3, pad=1),
        Window(3, pad=1),
    )

    @nn.compact
    def last_map(self, maps: FeatureMap) -> FeatureMap:
        """Map normalized pixels to features [b, h, w, 512] after ReLU."""
        maps = self.conv("conv1", 96, kernel=7, stride=2, pad=0)(maps)
        maps = local_response_norm(maps, window=5, alpha=5e-4, beta=0.75, k=2.0)
        maps = max_pool(maps, window=3, stride=3, ceil_mode=True)
        maps = self.conv("conv2", 256, kernel=5, pad=0)(maps)
        maps = max_pool(maps, window=2, stride=2, ceil_mode=True)
        for name in ("conv3", "conv4", "conv5"):
            maps = self.conv(name, 512)(maps)
        return maps
