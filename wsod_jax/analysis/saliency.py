"""Which pixels a class's score hangs on: its gradient with respect to the image, for any method that scores images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from wsod_jax.methods.base import Method
from wsod_jax.types import Batch, Params

IMAGE_SCORES = frozenset({"image_scores"})


def saliency(
    method: Method, params: Params, extras: dict, batch: Batch, classes: Int[Array, " b"]
) -> Float[Array, "b H W"]:
    """Return max over channels of |∂s_c / ∂image|, the Grad baseline of the SPN paper's Table 2.

    Args:
      method: predicts "image_scores".
      params: its parameters.
      extras: its extras.
      batch: images [b, H, W, 3]; their boxes, if the method takes any, stay where they are.
      classes: [b] int32, which class c of each image.

    Returns:
      [b, H, W] float32, >= 0.

    Source: Simonyan et al. 2014, here of the probability s_c.
    """

    def chosen(image: Float[Array, "b H W 3"]) -> Float[Array, ""]:
        seen = batch.replace(image=image)
        scores = method.predict(params, extras, seen, IMAGE_SCORES).image_scores  # [b, c]
        return jnp.sum(jnp.take_along_axis(scores, classes[:, None], axis=1))

    gradient = jax.grad(chosen)(jnp.asarray(batch.image, jnp.float32))  # [b, H, W, 3]
    return jnp.max(jnp.abs(gradient), axis=-1)
