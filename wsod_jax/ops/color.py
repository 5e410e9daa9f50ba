"""Photometric jitter of images, on the device."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from wsod_jax.types import Batch

WHITE = 255.0
_LUMA = (0.299, 0.587, 0.114)  # of ITU-R BT.601, for red, green, blue


def jitter_hsv(
    image: Shaped[Array | np.ndarray, "b H W 3"], factors: Float[Array | np.ndarray, "b 2"]
) -> Float[Array, "b H W 3"]:
    """Scale saturation and value of every pixel; its hue stays.

    A channel is x = V (1 - S k) with V = max(R, G, B), S = (V - min(R, G, B)) / V and k = (V - x) / (V - min(R, G, B)),
    where k depends on the hue alone. So x' = V' (1 - S' k) with S' = min(f_S S, 1) and V' = min(f_V V, 255).

    Args:
      image: [b, H, W, 3] uint8 or float, RGB, 0..255.
      factors: [b, 2] f_S and f_V, >= 0.

    Returns:
      [b, H, W, 3] float32 in 0..255. Black stays black, so a margin of zeros stays one; gray stays gray.

    Gradient: finite, with the maximum and the minimum as constants where channels are equal.
    Source: the authors' code of WS-JDS, which rounds to 8 bits in between; this does not.
    """
    x = jnp.asarray(image).astype(jnp.float32)
    saturation_factor, value_factor = (f[:, None, None, None] for f in jnp.moveaxis(factors, 1, 0))
    value = jnp.max(x, axis=-1, keepdims=True)  # [b, H, W, 1]
    chroma = value - jnp.min(x, axis=-1, keepdims=True)
    saturation = chroma / jnp.where(value > 0, value, 1.0)
    depth = (value - x) / jnp.where(chroma > 0, chroma, 1.0)  # [b, H, W, 3]
    saturation = jnp.minimum(saturation_factor * saturation, 1.0)
    return jnp.minimum(value_factor * value, WHITE) * (1.0 - saturation * depth)


def jitter_rgb(
    image: Shaped[Array | np.ndarray, "b H W 3"], factors: Float[Array | np.ndarray, "b 2"]
) -> Float[Array, "b H W 3"]:
    """Blend every image with black, which is its brightness, and then with its gray values, its saturation.

    x' = clip(f_B x), x'' = clip(Y + f_S (x' - Y)) with Y = 0.299 R' + 0.587 G' + 0.114 B', clipped to 0..255.

    Args:
      image: [b, H, W, 3] uint8 or float, RGB, 0..255.
      factors: [b, 2] f_B and f_S, >= 0.

    Returns:
      [b, H, W, 3] float32 in 0..255. Black stays black, so a margin of zeros stays one; gray stays gray.

    Source: `RandomBrightness` and `RandomSaturation` of detectron2, in the code of PDSL and OICR+; that cuts to 8
    bits in between, this does not.
    """
    x = jnp.asarray(image).astype(jnp.float32)
    brightness, saturation = (f[:, None, None, None] for f in jnp.moveaxis(factors, 1, 0))
    x = jnp.clip(brightness * x, 0.0, WHITE)
    luma = jnp.asarray(_LUMA, jnp.float32).reshape(1, 1, 1, 3)
    gray = jnp.sum(luma * x, axis=-1, keepdims=True)  # [b, H, W, 1]
    return jnp.clip(gray + saturation * (x - gray), 0.0, WHITE)


_JITTERS = {"hsv": jitter_hsv, "rgb": jitter_rgb}


def apply_photometric(batch: Any) -> Any:
    """Return a batch with jittered pixels, as `batch.views.photometric` has it, which is then `None`.

    A batch without factors is returned as it is, and so is anything else than a batch. One without pixels loses the
    factors alone.

    Args:
      batch: any, or a dict of batches by stream.

    Returns:
      The batch; jittered images are float32, and 0 outside `image_size` if they were.
    """
    if isinstance(batch, dict):
        return {name: apply_photometric(part) for name, part in batch.items()}
    if not isinstance(batch, Batch) or batch.views.photometric is None:
        return batch
    photometric = batch.views.photometric
    views = batch.views.replace(photometric=None)
    if batch.image is None:
        return batch.replace(views=views)
    jitter = _JITTERS[photometric.space]
    return batch.replace(image=jitter(batch.image, photometric.factors), views=views)
