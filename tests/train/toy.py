"""A linear model with two terms on two normalizers, small enough to check by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from wsod_jax.types import LossOutput, Term


@struct.dataclass
class ToyBatch:
    x: jax.Array  # [b, n, 3]
    y: jax.Array  # [b, n]
    image_mask: jax.Array  # [b]
    image_index: jax.Array  # [b]


class Toy:
    """Squared errors of y ≈ x·W + b: per image, and over the rows with positive y."""

    name = "toy"

    def __init__(self, *, poison_at: int | None = None, tied: bool = False) -> None:
        self.poison_at = poison_at
        self.tied = tied  # both terms claim one normalizer, wrongly

    def init(self, key, batch):
        del batch
        params = {
            "frozen": {"kernel": jnp.full((3,), 0.5)},
            "head": {"kernel": 0.1 * jax.random.normal(key, (3,)), "bias": jnp.zeros((1,))},
        }
        return params, {"seen": jnp.zeros((), jnp.int32)}

    def loss(self, params, extras, batch, key, step):
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch.image_index)
        noise = jax.vmap(lambda k: jax.random.normal(k, (3,)))(keys)  # [b, 3]
        x = batch.x + 0.1 * noise[:, None, :]
        kernel = params["head"]["kernel"] + params["frozen"]["kernel"]
        error = (
            jnp.sum(x * kernel[None, None, :], axis=-1) + params["head"]["bias"][None, :] - batch.y
        )
        squared = error**2 * batch.image_mask[:, None]  # [b, n]
        positive = jnp.where(batch.y > 0, 1.0, 0.0) * batch.image_mask[:, None]
        mask = batch.image_mask.astype(jnp.float32)
        image = Term(jnp.mean(squared, axis=1), mask, "image")
        second = "image" if self.tied else "positive"
        rows = Term(jnp.sum(jnp.sin(error) * positive, axis=1), jnp.sum(positive, axis=1), second)
        if self.poison_at is not None:
            rows = rows.replace(total=jnp.where(step == self.poison_at, jnp.nan, rows.total))
        seen = extras["seen"] + jnp.sum(batch.image_mask).astype(jnp.int32)
        metrics = {"positives": Term(jnp.sum(positive, axis=1), mask)}
        return LossOutput({"fit": image, "rows": rows}, {"seen": seen}, metrics)


def toy_batches(num: int, *, images: int = 8, rows: int = 5, seed: int = 0) -> list[ToyBatch]:
    """Draw batches of `images` images; the number of positive rows differs from image to image."""
    rng = np.random.default_rng(seed)
    return [
        ToyBatch(
            x=rng.normal(size=(images, rows, 3)).astype(np.float32),
            y=rng.normal(size=(images, rows)).astype(np.float32),
            image_mask=np.ones(images, bool),
            image_index=np.arange(i * images, (i + 1) * images, dtype=np.int32),
        )
        for i in range(num)
    ]


def part(batch: ToyBatch, first: int, last: int) -> ToyBatch:
    """Return images first to last of a batch."""
    return jax.tree.map(lambda leaf: leaf[first:last], batch)
