"""The base class of backbones: preprocessing, compute type, frozen layers, geometry."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from wsod_jax.errors import ConfigError
from wsod_jax.nn.layers import ConvRelu, ReceptiveField, clear_margin, receptive_field
from wsod_jax.types import Batch, FeatureMap

Preprocessing = Literal["caffe", "torch", "tf", "efficientnet_lite"]
RoiMapping = Literal["stride", "receptive_field"]

# Blue, green, red means on 0..255.
CAFFE_MEAN_RCNN = (102.9801, 115.9465, 122.7717)  # Fast R-CNN, OICR, PCL, OIM
CAFFE_MEAN_IMAGENET = (103.939, 116.779, 123.68)  # VGG's authors, Keras
TORCHVISION_MEAN = (0.485, 0.456, 0.406)  # red, green, blue, on 0..1
TORCHVISION_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """A convolutional network from a batch's RGB pixels to its last map, under the name "c5".

    A subclass adds `last_map(pixels) -> FeatureMap` and the properties `channels`, `layers` and `geometry`, the
    windows of its layers, along the path with the largest ones where it branches. Sizes, stride and receptive field
    follow from `geometry`.

    Attributes:
      preprocessing: convention that the weights were trained with; the module converts RGB 0..255 itself.
      mean: blue, green, red mean, used when `preprocessing` is "caffe".
      dtype: type of the computation (float32 or bfloat16); parameters stay float32.
      frozen: prefixes of layer names whose parameters get no gradient. The gradient still reaches the image. The
        optimizer must exclude them too (weight decay): see `is_frozen`.
      roi_mapping: how pooling finds a proposal's cells: "stride" divides its edges by the stride, as published VGG16
        models do; "receptive_field" also corrects for the position of the first cell's center.
    """

    preprocessing: Preprocessing = "caffe"
    mean: tuple[float, float, float] = CAFFE_MEAN_RCNN
    dtype: jnp.dtype = jnp.float32
    frozen: tuple[str, ...] = ()
    roi_mapping: RoiMapping = "stride"

    architecture: ClassVar[str]

    @property
    def description(self) -> dict[str, Any]:
        """The properties that fitting weights must share, in JSON types; weight files carry the same keys."""
        facts = {"architecture": self.architecture, "preprocessing": self.preprocessing}
        if self.preprocessing == "caffe":
            facts["mean"] = list(self.mean)
        return facts

    @property
    def stride(self) -> int:
        """Pixels per cell."""
        return self.receptive_field().stride_px

    def receptive_field(self) -> ReceptiveField:
        """Return the receptive field of the map's cells."""
        return receptive_field(self.geometry)

    def output_size(self, image_size: Int[Array | np.ndarray, "b 2"]) -> Int[Array, "b 2"]:
        """Return the map's valid (rows, columns) without computing the map."""
        size = jnp.asarray(image_size, jnp.int32)
        for window in self.geometry:
            size = window.output_length(size)
        return size

    def __call__(self, batch: Batch) -> dict[str, FeatureMap]:
        """Return {"c5": features [b, h, w, channels] after ReLU}, or the batch's cached features if it has any.

        Args:
          batch: needs `image` or `features`.
        """
        if batch.features is not None:
            return batch.features
        return {"c5": self.last_map(self.network_input(batch.image, batch.image_size))}

    def network_input(
        self,
        image: Shaped[Array | np.ndarray, "b H W 3"],
        image_size: Int[Array | np.ndarray, "b 2"],
    ) -> FeatureMap:
        """Check the module's fields and return normalized pixels as a `FeatureMap`.

        Raises:
          ConfigError: `preprocessing` is unknown, or a `frozen` prefix matches no layer.
        """
        if self.preprocessing not in get_args(Preprocessing):
            raise ConfigError(
                f"backbone preprocessing is {self.preprocessing!r}; allowed: {', '.join(get_args(Preprocessing))}"
            )
        for prefix in self.frozen:
            if not any(is_frozen(layer, (prefix,)) for layer in self.layers):
                raise ConfigError(
                    f"frozen prefix {prefix!r} matches no layer of {type(self).__name__}; "
                    f"its layers: {', '.join(self.layers)}"
                )
        size = jnp.asarray(image_size, jnp.int32)
        x = normalize_pixels(image, size, preprocessing=self.preprocessing, mean=tuple(self.mean))
        return FeatureMap(x.astype(self.dtype), size, stride=1.0)

    def conv(
        self,
        name: str,
        channels: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
        pad: int | None = None,
    ) -> ConvRelu:
        """Make the layer `name`, frozen if `frozen` has a prefix of its name."""
        return ConvRelu(
            channels,
            kernel=kernel,
            stride=stride,
            dilation=dilation,
            pad=pad,
            frozen=is_frozen(name, self.frozen),
            dtype=self.dtype,
            name=name,
        )


def normalize_pixels(
    image: Shaped[Array | np.ndarray, "b H W 3"],
    image_size: Int[Array, "b 2"],
    *,
    preprocessing: Preprocessing,
    mean: tuple[float, float, float] = CAFFE_MEAN_RCNN,
) -> Float[Array, "b H W 3"]:
    """Turn RGB 0..255 into network input, in float32, with a margin of zeros.

    "caffe": channels in the order B, G, R, minus `mean`, no scaling.
    "torch": (RGB / 255 − mean) / std with the ImageNet mean and standard deviation.
    "tf": RGB / 127.5 − 1, in −1..1.
    "efficientnet_lite": (RGB − 127) / 128.

    Args:
      image: [b, H, W, 3] uint8 or float, RGB, 0..255.
      image_size: [b, 2] int32, valid (height, width).
      preprocessing: convention that the weights were trained with.
      mean: blue, green, red; used by "caffe" only.

    Returns:
      [b, H, W, 3] float32; exactly 0 outside `image_size`, like zero padding.
    """
    x = jnp.asarray(image).astype(jnp.float32)
    if preprocessing == "caffe":
        x = x[..., ::-1] - jnp.asarray(mean, jnp.float32).reshape(1, 1, 1, 3)
    elif preprocessing == "tf":
        x = x / 127.5 - 1.0
    elif preprocessing == "efficientnet_lite":
        x = (x - 127.0) / 128.0
    else:
        offset = jnp.asarray(TORCHVISION_MEAN, jnp.float32).reshape(1, 1, 1, 3)
        x = (x / 255.0 - offset) / jnp.asarray(TORCHVISION_STD, jnp.float32).reshape(1, 1, 1, 3)
    return clear_margin(x, image_size)


def is_frozen(layer: str, frozen: tuple[str, ...]) -> bool:
    """Return whether a layer's name starts with one of the `frozen` prefixes."""
    return any(layer.startswith(prefix) for prefix in frozen)
