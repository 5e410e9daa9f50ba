"""Atrous spatial pyramid pooling: parallel dilated branches that score every class in every cell."""

from __future__ import annotations

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from wsod_jax.errors import ConfigError
from wsod_jax.nn.heads import EXACT, HEAD_INIT
from wsod_jax.nn.layers import ConvRelu, max_pool, per_image_dropout
from wsod_jax.options import COUNT, DROPOUT
from wsod_jax.types import FeatureMap, Params


class Aspp(nn.Module):
    """Sum the class logits of branches that differ in dilation, after a 3x3 max pooling of stride 1.

        logits_c = Σ_d fc8_d(fc7_d(fc6_d(pool(x))))_c

    fc6_d is a 3x3 convolution of dilation d and fc7_d a 1x1 one, each followed by ReLU and dropout; fc8_d is linear.

    Attributes:
      dilations: one branch each, in cells.
      channels: width of fc6 and fc7.
      dropout_rate: after both.
      dtype: type of the computation; parameters and logits are float32.

    Source: Chen et al. 2017 (DeepLab-v2), section 3.2, as in the released WS-JDS code.
    """

    dilations: Annotated[tuple[int, ...], COUNT] = (6, 12, 18, 24)
    channels: Annotated[int, COUNT] = 1024
    dropout_rate: Annotated[float, DROPOUT] = 0.5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        maps: FeatureMap,
        num_classes: int,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> FeatureMap:
        """Map features [b, h, w, d] to logits [b, h, w, c], float32, arbitrary in the margin.

        Args:
          maps: features after ReLU, 0 in the margin.
          num_classes: c.
          dropout_keys: [b] typed keys, one mask per image; `None` disables dropout.
        """
        pooled = max_pool(maps, window=3, stride=1, pad=1, ceil_mode=False)
        logits = 0.0
        for number, dilation in enumerate(self.dilations):
            branch = pooled
            for layer, (kernel, rate) in enumerate(((3, dilation), (1, 1))):
                convolution = ConvRelu(
                    self.channels,
                    kernel=kernel,
                    dilation=rate,
                    dtype=self.dtype,
                    name=f"branch{number}_fc{6 + layer}",
                )
                branch = convolution(branch)
                if dropout_keys is not None:
                    salt = 2 * number + layer
                    keys = jax.vmap(jax.random.fold_in, (0, None))(dropout_keys, salt)
                    features = per_image_dropout(branch.features, keys, self.dropout_rate)
                    branch = branch.replace(features=features)
            linear = nn.Dense(
                num_classes, kernel_init=HEAD_INIT, precision=EXACT, name=f"branch{number}_fc8"
            )
            logits += linear(branch.features.astype(jnp.float32))
        return maps.replace(features=logits)

    def from_box_head(self, params: Params, box_head: Params, roi_size: int) -> Params:
        """Return the parameters with fc6 and fc7 of every branch sub-sampled from those of a box head.

        fc6 [p·p·d, f] is a p x p convolution, of which the corners, the edges' middles and the center are kept; of f
        inputs and outputs every (f / channels)-th one.

        Args:
          params: this module's, of the same depth d.
          box_head: `BoxHead`'s, with layers fc6 and fc7 of one width f.
          roi_size: p, bins per side.

        Raises:
          ConfigError: the box head is narrower than a branch, of another depth, or its two layers differ in width.

        Source: DeepLab-v2's initialization, from ImageNet's fc6 and fc7 (p = 7, f = 4096, every 4th).
        """
        fc6, fc7 = box_head["fc6"], box_head["fc7"]
        depth = params["branch0_fc6"]["kernel"].shape[2]
        width = fc6["kernel"].shape[1]
        needed = (roi_size**2 * depth, width), (width, width)
        if width < self.channels or (fc6["kernel"].shape, fc7["kernel"].shape) != needed:
            raise ConfigError(
                f"fc6 and fc7 of the box head have shapes {fc6['kernel'].shape} and {fc7['kernel'].shape}; branches of "
                f"{self.channels} channels can start from {needed[0][0]} inputs and two layers of one width, at least "
                'as large. Set config.method.initial to "random"'
            )
        at = jnp.round(jnp.linspace(0, roi_size - 1, 3)).astype(int)
        kept = (jnp.arange(self.channels) * width) // self.channels
        window = fc6["kernel"].reshape(roi_size, roi_size, depth, width)
        started = {
            "fc6": {"kernel": window[at][:, at][..., kept], "bias": fc6["bias"][kept]},
            "fc7": {"kernel": fc7["kernel"][kept][:, kept][None, None], "bias": fc7["bias"][kept]},
        }
        return params | {
            f"branch{number}_{layer}": dict(started[layer])
            for number in range(len(self.dilations))
            for layer in started
        }
