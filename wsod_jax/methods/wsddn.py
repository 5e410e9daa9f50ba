"""WSDDN: weakly supervised deep detection network (Bilen and Vedaldi, CVPR 2016).

Two streams score every proposal, by a softmax over proposals and by a softmax over classes:

    X = softmax_r(A) ⊙ softmax_c(B),   φ_c = Σ_r X_rc,
    L = BCE(φ, y)  (+ λ · spatial regularizer).

OICR, PCL, MIST and OIM start from the same X (`methods/base.py`); WSDDN detects by it.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from wsod_jax.methods.base import Output, ProposalMethod, image_term, mil_metrics
from wsod_jax.ops.boxes import pairwise_iou
from wsod_jax.ops.masked import masked_top_k
from wsod_jax.options import NOT_NEGATIVE
from wsod_jax.types import Batch, LossOutput, Params, Predictions, Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wsddn(ProposalMethod):
    """Plain WSDDN.

    Attributes:
      spatial_weight: λ of the spatial regularizer, 1e-4 in the original; 0 disables it.
    """

    spatial_weight: Annotated[float, NOT_NEGATIVE] = 0.0

    def loss(
        self, params: Params, extras: dict, batch: Batch, key: jax.Array, step: jax.Array
    ) -> LossOutput:
        """Return the MIL loss of every image, and the spatial regularizer if it has a weight."""
        del step
        scored = self.score(params, batch, key)
        terms = {"mil": self.mil_term(scored, batch)}
        if self.spatial_weight:
            source = jax.vmap(Source.of)(
                scored.mil_scores, batch.proposals, scored.mask, batch.labels
            )
            smooth = jax.vmap(
                lambda *image: spatial_regularizer(*image, max_classes=self.max_classes)
            )(source, scored.features)
            terms["spatial"] = image_term(self.spatial_weight * smooth, batch)
        return LossOutput(terms, extras, mil_metrics(scored, batch))

    def predict(
        self, params: Params, extras: dict, batch: Batch, want: frozenset[Output]
    ) -> Predictions:
        """Return X as scores of the proposals."""
        del extras, want
        scored = self.score(params, batch)
        return Predictions(batch.proposals, scored.mil_scores, scored.mask, scored.image_scores())


def spatial_regularizer(
    source: Source,
    features: Float[Array, "r f"],
    *,
    iou_thr: ArrayLike = 0.6,
    num_best: int = 10,
    max_classes: int,
) -> Float[Array, ""]:
    """Penalize differences between the features of a class's best box and of good boxes that overlap it.

        L = 1/2 sum_{c: y_c = 1} sum_{k in N_c} || p_k (f_k - f_*) ||^2

    where * is the best proposal of class c, N_c are those of the next nine best with IoU(k, *) > `iou_thr`,
    and p_k = x_ck is a constant.

    Args:
      source: scores, proposals, mask and labels of one image; only classes with label 1 count.
      features: [r, f] features that the class scores are computed from.
      iou_thr: IoU > this makes a neighbor (exclusive).
      num_best: number of best boxes to compare, the best included.
      max_classes: static maximum of positive classes; further (higher) ones are omitted.

    Returns:
      [] float32, >= 0, not yet weighted (the authors use 1e-4).

    Ties: lower index ranks first.   Gradient: to features only, f_* included; it has p_k squared, as the
    printed loss, where the authors' hand-written gradient has p_k once.
    Source: Bilen & Vedaldi 2016 (WSDDN), section 3.4.
    """
    boxes = source.proposals

    def one_class(column: Array) -> Array:
        weight, best, valid = masked_top_k(column, source.mask, num_best)
        overlap = pairwise_iou(boxes[best], boxes[best[:1]])[:, 0]
        neighbor = valid & (overlap > iou_thr) & (jnp.arange(num_best) > 0)
        best_features = features[best].astype(jnp.float32)  # [num_best, f]
        difference = jnp.where(neighbor[:, None], best_features - best_features[:1], 0.0)
        return 0.5 * jnp.sum((weight[:, None] * difference) ** 2)

    (classes,) = jnp.nonzero(source.labels == 1, size=max_classes, fill_value=-1)
    per_class = jax.vmap(one_class, in_axes=1)(source.scores[:, classes])  # [m]
    return jnp.sum(jnp.where(classes >= 0, per_class, 0.0))
