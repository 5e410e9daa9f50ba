"""Layers from `FeatureMap` to `FeatureMap` that keep the padded margin at zero; their windows and receptive fields;
dropout with one key per image.

A map is valid in the top-left `size` rectangle of every image. A convolution's bias would leak into the margin and from
there back into the map, so every layer ends by zeroing the margin. The next layer sees it as zero padding, and an image
gives the same features on any canvas.
"""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple, TypeVar, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from wsod_jax.errors import ConfigError
from wsod_jax.types import FeatureMap

Size = TypeVar("Size", int, Array)
Initializer = Literal["he", "uniform"]


class Window(NamedTuple):
    """The square window of a convolution or a pooling layer, the same along both axes.

    Attributes:
      kernel: cells per side.
      stride: step between windows.
      pad: cells added before the first cell and, without `pad_high`, after the last.
      dilation: spacing of the window's cells.
      ceil_mode: round the number of steps up, so that the last window may extend over the edge (Caffe's pooling), else
        down. Up only without padding and with `stride` up to `kernel`: every window then starts in the map.
      pad_high: cells added after the last cell; `None`: as many as before the first.
    """

    kernel: int
    stride: int = 1
    pad: int = 0
    dilation: int = 1
    ceil_mode: bool = False
    pad_high: int | None = None

    @property
    def extent(self) -> int:
        """Cells from the window's first to its last, both included."""
        return self.dilation * (self.kernel - 1) + 1

    def output_length(self, length: Size) -> Size:
        """Return round((length + pad + pad_high − extent) / stride) + 1, at least 0.

        Args:
          length: cells of the input along one axis, an int or an int array.
        """
        pad_high = self.pad if self.pad_high is None else self.pad_high
        room = length + self.pad + pad_high - self.extent
        steps = -(-room // self.stride) if self.ceil_mode else room // self.stride
        return max(steps + 1, 0) if isinstance(length, int) else jnp.maximum(steps + 1, 0)


class ReceptiveField(NamedTuple):
    """The pixels that the cells of a map see, along either axis.

    Cell i sees `center_px` + i·`stride_px` ± `size_px`/2, clipped to the image.

    Attributes:
      size_px: side of the square that one cell sees.
      stride_px: from one cell to the next.
      center_px: center of cell 0's square, in continuous pixel coordinates: pixel 0 spans 0 to 1.
    """

    size_px: int
    stride_px: int
    center_px: float


class ConvRelu(nn.Module):
    """Convolve, add the bias, apply ReLU, and clear the margin.

    Attributes:
      channels: output width.
      kernel: cells per side, odd.
      stride: step.
      dilation: spacing of the kernel's cells.
      pad: zeros on each side; `None` keeps the size at stride 1.
      groups: split input and output channels into this many groups, in order; each output group sees one input group.
      initializer: "he" draws the kernel from He's normal distribution, with zero bias; "uniform" draws both with
        `framework_uniform`.
      frozen: stop the gradient at kernel and bias; it still reaches the input.
      dtype: type of the computation; parameters stay float32.
    """

    channels: int
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    pad: int | None = None
    groups: int = 1
    initializer: Initializer = "he"
    frozen: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: FeatureMap) -> FeatureMap:
        """Map features [b, h, w, d] to [b, h', w', channels].

        Raises:
          ConfigError: d or `channels` is not a multiple of `groups`, or `initializer` is unknown.
        """
        kernel, bias = self.parameters(maps.features.shape[-1])
        if self.frozen:
            kernel, bias = jax.lax.stop_gradient((kernel, bias))
        same = self.dilation * (self.kernel - 1) // 2
        pad = same if self.pad is None else self.pad
        x, weights = maps.features.astype(self.dtype), kernel.astype(self.dtype)
        if (self.stride, self.groups, pad) == (1, 1, same):
            features = same_conv(x, weights, self.dilation)
        else:
            features = jax.lax.conv_general_dilated(
                x,
                weights,
                window_strides=(self.stride, self.stride),
                padding=((pad, pad), (pad, pad)),
                rhs_dilation=(self.dilation, self.dilation),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=self.groups,
            )
        features = nn.relu(features + bias.astype(self.dtype)[None, None, None, :])
        size = Window(self.kernel, self.stride, pad, self.dilation).output_length(maps.size)
        return FeatureMap(clear_margin(features, size), size, maps.stride * self.stride)

    def parameters(self, depth: int) -> tuple[Array | np.ndarray, Array | np.ndarray]:
        """Make the kernel [rows, columns, depth / groups, channels] and the bias [channels]."""
        if self.groups < 1 or depth % self.groups or self.channels % self.groups:
            raise ConfigError(
                f"layer {self.name} maps {depth} to {self.channels} channels in {self.groups} groups; both must be "
                "multiples of the number of groups"
            )
        shape = (self.kernel, self.kernel, depth // self.groups, self.channels)
        if self.initializer == "he":
            draw_kernel, draw_bias = nn.initializers.he_normal(), nn.initializers.zeros
        elif self.initializer == "uniform":
            draw_kernel = draw_bias = framework_uniform(math.prod(shape[:-1]))
        else:
            raise ConfigError(
                f"layer {self.name} has initializer {self.initializer!r}; allowed: {', '.join(get_args(Initializer))}"
            )
        kernel = self.param("kernel", draw_kernel, shape, jnp.float32)
        bias = self.param("bias", draw_bias, shape[-1:], jnp.float32)
        return kernel, bias


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def same_conv(
    x: Float[Array, "b h w d"], kernel: Float[Array | np.ndarray, "k k d e"], dilation: int
) -> Float[Array, "b h w e"]:
    """Convolve at stride 1, padded so that the size stays; `kernel` is odd.

    Gradient: to `x` and `kernel`. That of `x` convolves with the kernel turned over and its channels swapped, which is
    made in the forward pass: left to XLA, a gradient taken in a loop or a branch takes seven times as long on CPUs.
    """
    pad = dilation * (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((pad, pad), (pad, pad)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _same_conv_fwd(x: Array, kernel: Array, dilation: int) -> tuple[Array, tuple[Array, ...]]:
    turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    return same_conv(x, kernel, dilation), (x, kernel, turned)


def _same_conv_bwd(dilation: int, residuals: tuple[Array, ...], grad: Array) -> tuple[Array, Array]:
    x, kernel, turned = residuals
    to_kernel = jax.linear_transpose(lambda k: same_conv.fun(x, k, dilation), kernel)
    return same_conv(grad, turned, dilation), to_kernel(grad)[0]


same_conv.defvjp(_same_conv_fwd, _same_conv_bwd)


def receptive_field(windows: tuple[Window, ...]) -> ReceptiveField:
    """Return the receptive field of the last of a chain of layers.

        size = 1 + Σ (extent − 1)·j,   center = ½ + Σ ((extent − 1)/2 − pad)·j,   j = Π strides of the layers before

    Args:
      windows: of the layers, in order; where a network branches, those of the path with the largest windows.
    """
    size, stride, center = 1, 1, 0.5
    for window in windows:
        size += (window.extent - 1) * stride
        center += ((window.extent - 1) / 2 - window.pad) * stride
        stride *= window.stride
    return ReceptiveField(size, stride, center)


def valid_mask(size: Int[Array, "b 2"], height: int, width: int) -> Bool[Array, "b h w 1"]:
    """Return True inside each image's top-left `size` rectangle of a `height` by `width` grid."""
    rows = jnp.arange(height)[None, :] < size[:, :1]  # [b, h]
    columns = jnp.arange(width)[None, :] < size[:, 1:]  # [b, w]
    return rows[:, :, None, None] & columns[:, None, :, None]


def clear_margin(
    features: Float[Array, "b h w d"], size: Int[Array, "b 2"]
) -> Float[Array, "b h w d"]:
    """Set everything outside the valid `size` rectangle to 0, NaN and infinity included."""
    mask = valid_mask(size, features.shape[1], features.shape[2])
    return jnp.where(mask, features, jnp.zeros((), features.dtype))


def max_pool(
    maps: FeatureMap, *, window: int, stride: int, ceil_mode: bool, pad: int = 0
) -> FeatureMap:
    """Take the maximum of every window, seeing valid cells only.

    Args:
      maps: features [b, h, w, d] of any sign.
      window: cells per side.
      stride: step between windows.
      ceil_mode: keep (True, as in Caffe) or drop a last window that extends over the edge.
      pad: how far the first and the last window extend over the edges of the valid map, less than `window`. Cells
        outside are never the maximum, as in every framework.

    Returns:
      The pooled map; its size follows from the valid size alone, never from the canvas.

    Gradient: to the first maximum of the window in row order.
    Cost: `window²` strided comparisons; on CPUs their gradient is far faster than a windowed reduction's.
    """
    rule = Window(window, stride, pad, ceil_mode=ceil_mode).output_length
    _, height, width, _ = maps.features.shape
    rows, columns = rule(height), rule(width)
    lowest = jnp.asarray(-jnp.inf, maps.features.dtype)
    x = jnp.where(valid_mask(maps.size, height, width), maps.features, lowest)
    overhang = [
        (pad, max((steps - 1) * stride + window - pad - length, 0))
        for steps, length in ((rows, height), (columns, width))
    ]
    x = jnp.pad(x, ((0, 0), *overhang, (0, 0)), constant_values=lowest)
    best = None
    for i in range(window):
        for j in range(window):
            cell = x[:, i::stride, j::stride][:, :rows, :columns]  # [b, rows, columns, d]
            best = cell if best is None else jnp.where(cell > best, cell, best)
    size = rule(maps.size)
    return FeatureMap(clear_margin(best, size), size, maps.stride * stride)


def local_response_norm(
    maps: FeatureMap, *, window: int, alpha: float, beta: float, k: float
) -> FeatureMap:
    """Divide every value by a norm of the neighboring channels (LRN), in float32.

        b_c = a_c / (k + α/n · Σ_{|c' − c| ≤ n/2} a_{c'}²)^β

    Args:
      maps: features [b, h, w, d].
      window: channels in the sum, n; odd, and fewer at the first and last channels.
      alpha: Caffe's, which is divided by n; the paper's is α/n.
      beta: exponent.
      k: offset, positive.

    Returns:
      The map, of the same size and type.

    Source: Krizhevsky et al. 2012, section 3.3; Caffe's LRN layer across channels.
    """
    x = maps.features.astype(jnp.float32)
    depth, half = x.shape[-1], window // 2
    squares = jnp.pad(x * x, ((0, 0), (0, 0), (0, 0), (half, half)))
    total = sum(squares[..., i : i + depth] for i in range(window))  # [b, h, w, d]
    x = x * (k + alpha / window * total) ** -beta
    return maps.replace(features=x.astype(maps.features.dtype))


def framework_uniform(fan_in: int) -> nn.initializers.Initializer:
    """Return an initializer that draws from U(−1/√fan_in, 1/√fan_in).

    PyTorch's default for kernels and, unlike in other frameworks, biases of linear and convolutional layers.

    Args:
      fan_in: inputs of one output value: rows · columns · input channels / groups of a kernel; the same for its bias.
    """
    bound = fan_in**-0.5

    def draw(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


def per_image_dropout(
    x: Float[Array, "b ..."], keys: Key[Array, " b"], rate: float
) -> Float[Array, "b ..."]:
    """Zero each value with probability `rate` and divide the others by 1 − `rate`.

    Args:
      x: [b, ...].
      keys: [b] typed keys. The same key gives the same mask in any batch; rows appended to axis 1 (masked proposals)
        do not change the mask of the others.
      rate: in [0, 1); 0 returns `x`.

    Returns:
      [b, ...] of the same type.
    """
    if rate == 0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
