"""EfficientNet-Lite0; its ImageNet weights come as a pip package."""

from __future__ import annotations

from typing import Annotated, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wsod_jax.nn.backbone import Backbone, Preprocessing, RoiMapping, is_frozen
from wsod_jax.nn.layers import Window, clear_margin
from wsod_jax.options import Range
from wsod_jax.types import FeatureMap


class BlockShape(NamedTuple):
    """One inverted residual block: its depthwise window, output channels and expansion factor."""

    kernel: int
    stride: int
    channels: int
    expansion: int = 6

    def window(self) -> Window:
        """The depthwise convolution's window."""
        return same_window(self.kernel, self.stride)


STEM_CHANNELS = 32
BLOCKS = (
    BlockShape(3, 1, 16, expansion=1),
    BlockShape(3, 2, 24),
    BlockShape(3, 1, 24),
    BlockShape(5, 2, 40),
    BlockShape(5, 1, 40),
    BlockShape(3, 2, 80),
    BlockShape(3, 1, 80),
    BlockShape(3, 1, 80),
    BlockShape(5, 1, 112),
    BlockShape(5, 1, 112),
    BlockShape(5, 1, 112),
    BlockShape(5, 2, 192),
    BlockShape(5, 1, 192),
    BlockShape(5, 1, 192),
    BlockShape(5, 1, 192),
    BlockShape(3, 1, 320),
)


def same_window(kernel: int, stride: int) -> Window:
    """Return TensorFlow's "SAME" window for maps of even length: ⌈length / stride⌉ cells.

    TensorFlow shifts the windows by a cell if the length is odd. Here they always start at the same place, so the first
    cell's center is the same in every image and on every canvas.
    """
    low = (kernel - stride) // 2
    return Window(kernel, stride, low, pad_high=kernel - 1 - low)


class FoldedConv(nn.Module):
    """A convolution with its batch normalization folded in, then ReLU6 or nothing; clears the margin.

    Attributes:
      channels: output width.
      kernel: cells per side, odd.
      stride: 1, or 2 as in `same_window`.
      depthwise: one kernel per channel, [kernel, kernel, 1, channels].
      clips: apply ReLU6.
      frozen: stop the gradient at the parameters.
      dtype: type of the computation.
    """

    channels: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    clips: bool = True
    frozen: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: FeatureMap) -> FeatureMap:
        """Map features [b, h, w, d] to [b, ⌈h / stride⌉, ⌈w / stride⌉, channels]."""
        window = same_window(self.kernel, self.stride)
        depth = 1 if self.depthwise else maps.features.shape[-1]
        shape = (self.kernel, self.kernel, depth, self.channels)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,), jnp.float32)
        if self.frozen:
            kernel, bias = jax.lax.stop_gradient((kernel, bias))
        x, kernel = maps.features.astype(self.dtype), kernel.astype(self.dtype)
        if self.depthwise:
            x = depthwise_conv(x, kernel, window)
        else:
            x = jax.lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(self.stride, self.stride),
                padding=((window.pad, window.pad_high),) * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        x = x + bias.astype(self.dtype)[None, None, None, :]
        if self.clips:
            x = jnp.clip(x, 0, 6)
        size = window.output_length(maps.size)
        return FeatureMap(clear_margin(x, size), size, maps.stride * self.stride)


def depthwise_conv(
    x: Float[Array, "b h w d"], kernel: Float[Array | np.ndarray, "k k 1 d"], window: Window
) -> Float[Array, "b p q d"]:
    """Depthwise convolution as a sum of shifted maps: on CPUs several times as fast as a grouped convolution."""
    rows, columns = (window.output_length(length) for length in x.shape[1:3])
    edges = (window.pad, window.pad_high)
    x = jnp.pad(x, ((0, 0), edges, edges, (0, 0)))
    step, total = window.stride, 0
    for i in range(window.kernel):
        for j in range(window.kernel):
            cells = x[:, i::step, j::step][:, :rows, :columns]
            total = total + cells * kernel[None, None, i, j]
    return total


class InvertedResidual(nn.Module):
    """Expand by 1x1, convolve depthwise, project by 1x1 without activation; add the input if shapes agree.

    Attributes:
      shape: of the block.
      frozen: stop the gradient at the parameters.
      dtype: type of the computation.
    """

    shape: BlockShape
    frozen: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: FeatureMap) -> FeatureMap:
        """Map features [b, h, w, d] to [b, ⌈h / stride⌉, ⌈w / stride⌉, shape.channels]."""
        kernel, stride, channels, expansion = self.shape
        shared = {"frozen": self.frozen, "dtype": self.dtype}
        depth = maps.features.shape[-1]
        wide = maps
        if expansion > 1:
            wide = FoldedConv(depth * expansion, name="expand", **shared)(maps)
        wide = FoldedConv(
            depth * expansion, kernel, stride, depthwise=True, name="depthwise", **shared
        )(wide)
        narrow = FoldedConv(channels, clips=False, name="project", **shared)(wide)
        if stride > 1 or channels != depth:
            return narrow
        return narrow.replace(features=narrow.features + maps.features)


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0 up to one of its blocks, batch normalization folded in.

    Blocks end without activation, so features have both signs: pool them by RoIAlign, not by maxima. The last layer
    standardizes channels by their mean and variance on ImageNet, which the converted weights take from the batch
    normalization at the block's end (summed over residual blocks).

    Attributes:
      ends_at: the last block, 0 to 15: 10 has 112 channels and 16 pixels a cell; 15 has 320 and 32.

    Source: Tan and Le 2019 (EfficientNet), Table 1, and the release of the Lite variants, which drop squeeze and
    excitation and replace swish by ReLU6.
    """

    preprocessing: Preprocessing = "efficientnet_lite"
    roi_mapping: RoiMapping = "receptive_field"
    ends_at: Annotated[int, Range(0, len(BLOCKS) - 1)] = 10

    architecture: ClassVar[str] = "efficientnet_lite0"

    @property
    def blocks(self) -> dict[str, BlockShape]:
        """The blocks up to the last by name."""
        return {f"block{i}": shape for i, shape in enumerate(BLOCKS[: self.ends_at + 1])}

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers and modules with parameters."""
        return ("stem", *self.blocks, f"standardize{self.ends_at}")

    @property
    def channels(self) -> int:
        """Width of the output map."""
        return BLOCKS[self.ends_at].channels

    @property
    def geometry(self) -> tuple[Window, ...]:
        """The windows of the layers, in order."""
        return (same_window(3, 2), *(shape.window() for shape in self.blocks.values()))

    @nn.compact
    def last_map(self, maps: FeatureMap) -> FeatureMap:
        """Map normalized pixels to features [b, ⌈H / stride⌉, ⌈W / stride⌉, channels] of both signs."""

        def shared(name: str) -> dict:
            return {"frozen": is_frozen(name, self.frozen), "dtype": self.dtype, "name": name}

        maps = FoldedConv(STEM_CHANNELS, 3, 2, **shared("stem"))(maps)
        for name, shape in self.blocks.items():
            maps = InvertedResidual(shape, **shared(name))(maps)
        last = FoldedConv(
            self.channels, depthwise=True, clips=False, **shared(f"standardize{self.ends_at}")
        )
        return last(maps)
