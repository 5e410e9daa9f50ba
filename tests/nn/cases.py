"""Batches of pixels alone, and what a backbone makes of them."""

import jax.numpy as jnp

from tests.methods.cases import whole_views
from wsod_jax.types import Batch


def image_batch(image, size) -> Batch:
    """Return a batch of images [b, H, W, 3] with valid sizes [b, 2]."""
    size = jnp.asarray(size, jnp.int32)
    return Batch(
        image=jnp.asarray(image),
        image_size=size,
        image_mask=jnp.ones(len(size), bool),
        image_index=jnp.arange(len(size), dtype=jnp.int32),
        views=whole_views(size),
    )


def init(backbone, key, image, size):
    """Draw a backbone's parameters."""
    return backbone.init(key, image_batch(image, size))


def apply(backbone, variables, image, size):
    """Return the backbone's map "c5" of images."""
    return backbone.apply(variables, image_batch(image, size))["c5"]
