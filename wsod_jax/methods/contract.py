"""What training and evaluation know of a method: three pure functions, and the pieces methods share."""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp

from wsod_jax.types import Batch, Detections, LossOutput, Params, Term


class Method(Protocol):
    """A method is three pure functions over one network; any object with them will do.

    `extras` holds what gradients do not train: running statistics, EMA copies, centres. It is an
    empty dict where there is nothing of the kind.
    """

    def init(self, key: jax.Array, batch: Batch) -> tuple[Params, dict]:
        """Return (params, extras) for batches shaped like `batch`."""
        ...

    def loss(
        self, params: Params, extras: dict, batch: Batch, key: jax.Array, step: jax.Array
    ) -> LossOutput:
        """Return per-image loss terms. `key` belongs to the step; fold the image index into it."""
        ...

    def predict(self, params: Params, extras: dict, batch: Batch) -> Detections:
        """Return candidate boxes and scores, before merging views and NMS."""
        ...


class Localiser(Method, Protocol):
    """A method that localises without proposals: its `predict` returns maps, and evaluation asks it a little more."""

    @property
    def single_label(self) -> bool:
        """Whether an image has exactly one class."""
        ...

    def with_solver(self, solver: str) -> Localiser:
        """Return the method with another way to find its proposal map; parameters fit both."""
        ...

    def saliency(self, params: Params, batch: Batch, class_index: jax.Array) -> jax.Array:
        """Return how much each pixel [b, H, W] moves the score of a class `class_index` [b] of every image."""
        ...


def image_keys(key: jax.Array, batch: Batch) -> jax.Array:
    """Derive one key per image from the step's key and the image's index, [b].

    The key depends on nothing else, so an image sees one dropout mask whatever the batch or device
    split.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, batch.image_index)


def image_term(values: jax.Array, batch: Batch) -> Term:
    """Make the mean over real images of per-image `values` [b]."""
    real = batch.image_mask.astype(jnp.float32)
    return Term(jnp.where(batch.image_mask, values, 0.0).astype(jnp.float32), real)


def counted_term(values: jax.Array, mask: jax.Array, per: str) -> Term:
    """Make the mean over masked-in entries of `values` [b, ...], e.g. over all mined boxes."""
    axes = tuple(range(1, mask.ndim))
    total = jnp.sum(jnp.where(mask, values, 0.0).astype(jnp.float32), axis=axes)
    return Term(total, jnp.sum(mask.astype(jnp.float32), axis=axes), per=per)
