"""Linear heads. Logits and their matrix products are float32, whatever the type of the features."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from wsod_jax.nn.layers import framework_uniform, per_image_dropout, valid_mask
from wsod_jax.ops.masked import masked_mean, masked_softmax
from wsod_jax.types import FeatureMap

HEAD_INIT = nn.initializers.normal(0.01)
EXACT = jax.lax.Precision.HIGHEST  # by default accelerators round the operands


def _linear(num_outputs: int, name: str) -> nn.Dense:
    return nn.Dense(num_outputs, kernel_init=HEAD_INIT, precision=EXACT, name=name)


def _stages(
    head: nn.Module, features: Array, num_outputs: int, kernel_init: nn.initializers.Initializer
) -> Array:
    """Map features [b, r, f] to [b, s, r, num_outputs] by `head`'s kernel and bias, a slice per stage."""
    shape = (head.num_stages, features.shape[-1], num_outputs)
    kernel = head.param("kernel", kernel_init, shape, jnp.float32)
    bias = head.param("bias", nn.initializers.zeros, (shape[0], num_outputs), jnp.float32)
    features = features.astype(jnp.float32)
    outputs = jnp.einsum("brf,sfk->bsrk", features, kernel, precision=EXACT)
    return outputs + bias[None, :, None, :]


class MidnHead(nn.Module):
    """Score proposals by two streams, detection and classification (a multiple-instance detection network).

        X_rc = softmax_r(A_rc / T) · softmax_c(B_rc)

    with A from layer `det` and B from layer `cls`, both initialized from N(0, 0.01²) with zero bias.

    Attributes:
      num_classes: c, without background.
      det_temperature: T; 2 in the released WSDDN code, 1 in its descendants.

    Source: Bilen and Vedaldi 2016, section 3.
    """

    num_classes: int
    det_temperature: float

    @nn.compact
    def __call__(
        self, features: Float[Array, "b r f"], mask: Bool[Array, "b r"]
    ) -> Float[Array, "b r c"]:
        """Map features to scores.

        Args:
          features: [b, r, f].
          mask: [b, r] bool, True = real proposal; the softmax over proposals excludes the others.

        Returns:
          X [b, r, c] float32. It sums to at most 1 over r, and is 0 where masked.
        """
        features = features.astype(jnp.float32)
        det_logits = _linear(self.num_classes, "det")(features)
        cls_logits = _linear(self.num_classes, "cls")(features)
        among_proposals = masked_softmax(
            det_logits / self.det_temperature, mask[:, :, None], axis=1
        )
        return among_proposals * jax.nn.softmax(cls_logits, axis=-1)


class RefinementHeads(nn.Module):
    """Classify proposals, background included, once per refinement stage.

    The stages share one `kernel` [s, f, k] and one `bias` [s, k], initialized from N(0, 0.01²) and 0: one matrix
    product, and one parameter group for the optimizer.

    Attributes:
      num_classes: c; a head has k = c + 1 logits, background first.
      num_stages: s.

    Source: Tang et al. 2017, section 3.2.
    """

    num_classes: int
    num_stages: int

    @nn.compact
    def __call__(self, features: Float[Array, "b r f"]) -> Float[Array, "b s r k"]:
        """Map features [b, r, f] to logits [b, s, r, k], float32."""
        return _stages(self, features, self.num_classes + 1, HEAD_INIT)


class BoxRegression(nn.Module):
    """Predict class-specific box deltas of every proposal, once per refinement stage.

    The stages share one `kernel` [s, f, 4c] and one `bias` [s, 4c], initialized from N(0, 0.001²) and 0.

    Attributes:
      num_classes: c; the background has no deltas.
      num_stages: s.

    Source: Girshick 2015 (Fast R-CNN), section 2.3.
    """

    num_classes: int
    num_stages: int

    @nn.compact
    def __call__(self, features: Float[Array, "b r f"]) -> Float[Array, "b s r c 4"]:
        """Map features [b, r, f] to deltas [b, s, r, c, 4], float32; see `ops.boxes.decode_boxes`."""
        deltas = _stages(self, features, 4 * self.num_classes, nn.initializers.normal(0.001))
        return deltas.reshape(*deltas.shape[:-1], self.num_classes, 4)


class GapClassifier(nn.Module):
    """Average the valid cells of a feature map and classify the mean by the linear layer `cls`.

    Attributes:
      num_classes: c.
    """

    num_classes: int

    @nn.compact
    def __call__(self, maps: FeatureMap) -> Float[Array, "b c"]:
        """Map features [b, h, w, d] to class logits [b, c], float32; an empty map averages to 0."""
        mask = valid_mask(maps.size, maps.features.shape[1], maps.features.shape[2])
        mean = masked_mean(maps.features, mask, axis=(1, 2))  # [b, d]
        return _linear(self.num_classes, "cls")(mean)


class CamHead(nn.Module):
    """Sum a coupled feature map over its cells and classify the sums by a linear layer.

        y_c = Σ_k w_kc Σ_ij V_kij + b_c,      R_c = Σ_k w_kc V_k

    Kernel and bias are drawn from U(±1/√d), as the released networks' framework did.

    Attributes:
      num_classes: c.
      dropout_rate: of the sums, when training.

    Source: Zhu et al. 2017, section 3.3; R excludes the bias, as in the released code.
    """

    num_classes: int
    dropout_rate: float

    @nn.compact
    def __call__(
        self, maps: FeatureMap, dropout_keys: Key[Array, " b"] | None
    ) -> tuple[Float[Array, "b c"], Float[Array, "b h w c"]]:
        """Map features V [b, h, w, d], 0 in the margin, to class logits y and class activation maps R, float32.

        The paper calls R response maps. An empty map sums to 0. `dropout_keys` [b], one mask per image; `None`
        disables dropout.
        """
        features = maps.features.astype(jnp.float32)
        depth = features.shape[-1]
        shape = (depth, self.num_classes)
        kernel = self.param("kernel", framework_uniform(depth), shape, jnp.float32)
        bias = self.param("bias", framework_uniform(depth), shape[1:], jnp.float32)
        sums = jnp.sum(features, axis=(1, 2))  # [b, d]
        if dropout_keys is not None:
            sums = per_image_dropout(sums, dropout_keys, self.dropout_rate)
        logits = jnp.matmul(sums, kernel, precision=EXACT) + bias[None, :]
        return logits, jnp.einsum("bhwd,dc->bhwc", features, kernel, precision=EXACT)
