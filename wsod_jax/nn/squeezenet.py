"""SqueezeNet 1.1: ImageNet features that are cheap enough for a laptop."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp

from wsod_jax.nn.backbone import CAFFE_MEAN_IMAGENET, Backbone, is_frozen
from wsod_jax.nn.layers import ConvRelu, Window, max_pool
from wsod_jax.types import FeatureMap

FIRES = {  # name: (channels of the squeeze layer, channels of each of the two expand layers)
    "fire2": (16, 64),
    "fire3": (16, 64),
    "fire4": (32, 128),
    "fire5": (32, 128),
    "fire6": (48, 192),
    "fire7": (48, 192),
    "fire8": (64, 256),
    "fire9": (64, 256),
}


class Fire(nn.Module):
    """Squeeze by 1x1, then expand by 1x1 and 3x3 in parallel.

    Attributes:
      squeeze: channels of the squeeze layer.
      expand: channels of each expand layer; the output has twice as many.
      dilation: of the 3x3 layer.
      frozen: stop the gradient at the parameters.
      dtype: type of the computation.
    """

    squeeze: int
    expand: int
    dilation: int = 1
    frozen: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: FeatureMap) -> FeatureMap:
        """Map features [b, h, w, d] to [b, h, w, 2 * expand]."""

        def conv(name: str, channels: int, kernel: int, dilation: int) -> ConvRelu:
            return ConvRelu(
                channels,
                kernel=kernel,
                dilation=dilation,
                frozen=self.frozen,
                dtype=self.dtype,
                name=name,
            )

        squeezed = conv("squeeze1x1", self.squeeze, 1, 1)(maps)
        points = conv("expand1x1", self.expand, 1, 1)(squeezed)
        patches = conv("expand3x3", self.expand, 3, self.dilation)(squeezed)
        return maps.replace(features=jnp.concatenate([points.features, patches.features], -1))


class SqueezeNet(Backbone):
    """SqueezeNet 1.1 up to fire9: an unpadded 3x3 convolution of stride 2, then eight fire modules.

    Attributes:
      mean: the Keras weights' by default.
      stride: 16 pools 3x3 with stride 2 after conv1, fire3 and fire5; 8 omits the last pooling and dilates fire6 to
        fire9 by 2.
      ceil_mode: how pooling rounds: False for the Keras weights, True for torchvision's.

    Source: Iandola et al. 2016, and the release of version 1.1.
    """

    mean: tuple[float, float, float] = CAFFE_MEAN_IMAGENET
    stride: Literal[16, 8] = 16
    ceil_mode: bool = False

    architecture: ClassVar[str] = "squeezenet1_1"
    channels: ClassVar[int] = 512
    layers: ClassVar[tuple[str, ...]] = ("conv1", *FIRES)

    @property
    def description(self) -> dict[str, Any]:
        """The properties that fitting weights must share, in JSON types; weight files carry the same keys."""
        return {**super().description, "ceil_mode": self.ceil_mode}

    @property
    def pooled_layers(self) -> tuple[str, ...]:
        """Names of the layers that pooling follows."""
        return ("conv1", "fire3", "fire5") if self.stride == 16 else ("conv1", "fire3")

    def dilation(self, fire: str) -> int:
        """Return the dilation of a fire module's 3x3 layer."""
        return 2 if self.stride == 8 and fire > "fire5" else 1

    @property
    def geometry(self) -> tuple[Window, ...]:
        """The windows of the layers, in order, through the 3x3 layers of the fire modules."""
        pool = Window(3, 2, ceil_mode=self.ceil_mode)
        windows = [Window(3, 2), pool]
        for fire in FIRES:
            windows.append(Window(3, pad=self.dilation(fire), dilation=self.dilation(fire)))
            if fire in self.pooled_layers:
                windows.append(pool)
        return tuple(windows)

    @nn.compact
    def last_map(self, maps: FeatureMap) -> FeatureMap:
        """Map normalized pixels to features [b, h, w, 512] after ReLU."""
        maps = self.conv("conv1", 64, stride=2, pad=0)(maps)
        maps = self.pool_after("conv1", maps)
        for name, (squeeze, expand) in FIRES.items():
            frozen = is_frozen(name, self.frozen)
            fire = Fire(squeeze, expand, self.dilation(name), frozen, self.dtype, name=name)
            maps = fire(maps)
            maps = self.pool_after(name, maps)
        return maps

    def pool_after(self, layer: str, maps: FeatureMap) -> FeatureMap:
        """Pool if pooling follows `layer`."""
        if layer not in self.pooled_layers:
            return maps
        return max_pool(maps, window=3, stride=2, ceil_mode=self.ceil_mode)
