"""From RGB pixels 0..255 to what a network was trained on. Weights and pixel convention belong together."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from wsod_jax.nn.layers import clear_margin

Pixels = Literal["caffe", "torchvision", "inception"]

# Blue, green, red means on 0..255.
CAFFE_MEAN_RCNN = (102.9801, 115.9465, 122.7717)  # Fast R-CNN, OICR, PCL, OIM
CAFFE_MEAN_IMAGENET = (103.939, 116.779, 123.68)  # VGG's authors, Keras
TORCHVISION_MEAN = (0.485, 0.456, 0.406)  # red, green, blue, on 0..1
TORCHVISION_STD = (0.229, 0.224, 0.225)


def normalise_pixels(
    image: Shaped[Array | np.ndarray, "b H W 3"],
    image_size: Int[Array, "b 2"],
    *,
    pixels: Pixels,
    mean: tuple[float, float, float] = CAFFE_MEAN_RCNN,
) -> Float[Array, "b H W 3"]:
    """Turn RGB 0..255 into network input, in float32, with a margin of zeros.

    "caffe": channels in the order B, G, R, minus `mean`, no scaling.
    "torchvision": (RGB / 255 − mean) / std with the ImageNet mean and standard deviation.
    "inception": RGB / 127.5 − 1, in −1..1.

    Args:
      image: [b, H, W, 3] uint8 or float, RGB, 0..255.
      image_size: [b, 2] int32, valid (height, width).
      pixels: the convention the weights were trained with.
      mean: blue, green, red; used by "caffe" only.

    Returns:
      [b, H, W, 3] float32; exactly 0 outside `image_size`, where zero padding would be.
    """
    x = jnp.asarray(image).astype(jnp.float32)
    if pixels == "caffe":
        x = x[..., ::-1] - jnp.asarray(mean, jnp.float32).reshape(1, 1, 1, 3)
    elif pixels == "inception":
        x = x / 127.5 - 1.0
    else:
        offset = jnp.asarray(TORCHVISION_MEAN, jnp.float32).reshape(1, 1, 1, 3)
        x = (x / 255.0 - offset) / jnp.asarray(TORCHVISION_STD, jnp.float32).reshape(1, 1, 1, 3)
    return clear_margin(x, image_size)
