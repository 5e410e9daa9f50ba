"""A small VGG-like network for small images on a laptop's CPU."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import flax.linen as nn

from wsod_jax.nn.backbone import Backbone, Preprocessing
from wsod_jax.nn.layers import Window, max_pool
from wsod_jax.options import COUNT
from wsod_jax.types import FeatureMap


class TinyNet(Backbone):
    """Four stages of two 3x3 convolutions; 2x2 max pooling (ceil mode) after the first ones.

    Attributes:
      widths: channels of the four stages.
      stride: 8 pools after stages 1 to 3; 4 after stages 1 and 2, and stage 4 then has dilation 2.
    """

    preprocessing: Preprocessing = "torch"
    widths: Annotated[tuple[int, int, int, int], COUNT] = (16, 32, 64, 64)
    stride: Literal[8, 4] = 8

    architecture: ClassVar[str] = "tiny"
    layers: ClassVar[tuple[str, ...]] = tuple(
        f"conv{stage}_{i}" for stage in (1, 2, 3, 4) for i in (1, 2)
    )

    @property
    def channels(self) -> int:
        """Width of the output map."""
        return self.widths[-1]

    @property
    def num_pools(self) -> int:
        """How many stages, from the first, end in pooling."""
        return 3 if self.stride == 8 else 2

    def dilation(self, stage: int) -> int:
        """Return the dilation of a stage's convolutions."""
        return 2 if stage == 4 and self.stride == 4 else 1

    @property
    def geometry(self) -> tuple[Window, ...]:
        """The windows of the layers, in order."""
        windows = []
        for stage in (1, 2, 3, 4):
            dilation = self.dilation(stage)
            windows += [Window(3, pad=dilation, dilation=dilation)] * 2
            if stage <= self.num_pools:
                windows.append(Window(2, 2, ceil_mode=True))
        return tuple(windows)

    @nn.compact
    def last_map(self, maps: FeatureMap) -> FeatureMap:
        """Map normalized pixels to features [b, ceil(H / stride), ceil(W / stride), channels] after ReLU."""
        for stage, channels in enumerate(self.widths, start=1):
            for i in (1, 2):
                name = f"conv{stage}_{i}"
                maps = self.conv(name, channels, dilation=self.dilation(stage))(maps)
            if stage <= self.num_pools:
                maps = max_pool(maps, window=2, stride=2, ceil_mode=True)
        return maps
