"""VGG16 as in weakly supervised detectors: without the last pooling, and dilated for a finer map."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn

from wsod_jax.nn.backbone import Backbone
from wsod_jax.nn.layers import Window, max_pool
from wsod_jax.types import FeatureMap

STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # (convolutions, channels)


class Vgg16(Backbone):
    """The 13 convolutional layers of VGG16, without pool5; ends after conv5_3's ReLU.

    Attributes:
      dilated: remove pool4 as well and dilate conv5 by 2, for a stride of 8 (OICR, PCL, OIM); else the stride is 16
        (WSDDN).
      frozen: conv1 and conv2 by default, as in OICR and its descendants.

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
    def num_pools(self) -> int:
        """How many stages, from the first, end in pooling."""
        return 3 if self.dilated else 4

    def dilation(self, stage: int) -> int:
        """Return the dilation of a stage's convolutions."""
        return 2 if stage == 5 and self.dilated else 1

    @property
    def geometry(self) -> tuple[Window, ...]:
        """The windows of the layers, in order."""
        windows = []
        for stage, (num_convs, _) in enumerate(STAGES, start=1):
            dilation = self.dilation(stage)
            windows += [Window(3, pad=dilation, dilation=dilation)] * num_convs
            if stage <= self.num_pools:
                windows.append(Window(2, 2, ceil_mode=True))
        return tuple(windows)

    @nn.compact
    def last_map(self, maps: FeatureMap) -> FeatureMap:
        """Map normalized pixels to features [b, ceil(H / stride), ceil(W / stride), 512] after ReLU."""
        for stage, (num_convs, channels) in enumerate(STAGES, start=1):
            for i in range(num_convs):
                name = f"conv{stage}_{i + 1}"
                maps = self.conv(name, channels, dilation=self.dilation(stage))(maps)
            if stage <= self.num_pools:
                maps = max_pool(maps, window=2, stride=2, ceil_mode=True)
        return maps
