"""The fully connected layers between RoI pooling and the heads."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from wsod_jax.nn.layers import per_image_dropout
from wsod_jax.options import COUNT, DROPOUT


class BoxFeatures(NamedTuple):
    """`features` [b, r, f] after the last ReLU and dropout, and `clean` [b, r, f] before that dropout."""

    features: jax.Array
    clean: jax.Array


class BoxHead(nn.Module):
    """Flatten pooled maps and apply fc6, fc7, ... each followed by ReLU and dropout.

    Maps are flattened in the order row, column, channel; kernels are [inputs, outputs].

    Attributes:
      dims: widths of the layers, named fc6, fc7 and so on.
      dropout_rate: after every layer; kept values are scaled up, so prediction needs no scaling.
      log_input: apply log(1 + x) to the pooled maps. Networks without batch normalization have heavy-tailed features
        (SqueezeNet: mean 5, maximum 300), on which randomly initialized layers train badly; leave it False for
        pretrained fc6, fc7.
      dtype: type of the computation; parameters stay float32.
    """

    dims: Annotated[tuple[int, ...], COUNT] = (4096, 4096)
    dropout_rate: Annotated[float, DROPOUT] = 0.5
    log_input: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, pooled: Float[Array, "b r p p d"], dropout_keys: Key[Array, " b"] | None = None
    ) -> BoxFeatures:
        """Compute features per proposal.

        Args:
          pooled: [b, r, p, p, d].
          dropout_keys: [b] typed keys, one per image; `None` disables dropout.
        """
        features = clean = pooled.reshape(*pooled.shape[:2], -1).astype(self.dtype)
        if self.log_input:
            features = clean = jnp.log1p(features)  # pooled maps of a ReLU network are >= 0
        for i, width in enumerate(self.dims):
            dense = nn.Dense(
                width, dtype=self.dtype, kernel_init=nn.initializers.he_normal(), name=f"fc{6 + i}"
            )
            features = clean = nn.relu(dense(features))  # [b, r, width]
            if dropout_keys is not None:
                keys = jax.vmap(jax.random.fold_in, (0, None))(dropout_keys, i)
                features = per_image_dropout(clean, keys, self.dropout_rate)
        return BoxFeatures(features, clean)
