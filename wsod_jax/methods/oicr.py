"""OICR: online instance classifier refinement (Tang et al., CVPR 2017).

WSDDN's X supervises the first of three refinement heads, and each head the next (`RefinementMethod`). The best-scored
proposal j_c of every positive class is a pseudo box; proposals with IoU >= 0.5 take its label, all others are
background, and each is weighted by the score of the pseudo box that it overlaps most:

    j_c = argmax_r x_cr,     L = L_mil + Σ_k L_k,     L_k = -(1/|P|) Σ_j w_j log x_{y_j, j}.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wsod_jax.methods.assign import Mined, fill_slots, positive_classes
from wsod_jax.methods.base import RefinementMethod, log_likelihood
from wsod_jax.ops.masked import masked_argmax
from wsod_jax.types import RefineTargets, Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oicr(RefinementMethod):
    """OICR.

    Attributes:
      normalizer: |P| is the number of proposals of nonzero weight ("weighted", released code) or of all ("real",
        PyTorch ports).
    """

    normalizer: Literal["weighted", "real"] = "weighted"

    def mine(self, source: Source, step: jax.Array) -> Mined:
        """Mine one box per positive class of one image and label all proposals by it.

        For the classes c with y_c = 1 in ascending order,

            j_c = argmax_r x_cr,

        after which the scores of proposal j_c are 0 for every later class. Each proposal then takes label and
        weight of the j_c that it overlaps most (`assign_proposals`).

        Args:
          source: of one image and stage.
          step: not used.

        Returns:
          `Mined` with one slot per class. No positive class, or no real proposal: all weights 0.

        Ties: lowest index wins.   Gradient: none.   Cost: O(r max_classes).
        Source: Tang et al. 2017, arXiv:1704.00138, algorithm 1; removal of rows as in the released code.
        """
        del step
        classes, num_overflow = positive_classes(source.labels, self.max_classes)

        def mine_class(removed: Array, c: Array) -> tuple[Array, tuple[Array, Array]]:
            left = jnp.where(removed, 0.0, source.scores[:, c])
            index, score = masked_argmax(left, source.mask)
            return removed.at[index].set(True), (index, score)

        # Empty slots (class -1) come last, so the rows they remove affect no real class.
        start = jnp.zeros_like(source.mask)
        _, (index, score) = jax.lax.scan(mine_class, start, classes)
        used = (classes >= 0) & jnp.any(source.mask)
        boxes = source.boxes_at(index, classes)
        pseudo = fill_slots(boxes, index, classes, score, is_seed=used, mask=used)
        return Mined(self.assign(pseudo, source), pseudo, num_overflow)

    def stage_loss(
        self, logits: Float[Array, "r k"], mined: Mined, mask: Bool[Array, " r"]
    ) -> Float[Array, ""]:
        """Return L_k of one image."""
        ones = jnp.ones_like(mined.targets.weights)
        return weighted_cross_entropy(logits, mined.targets, ones, mask, normalizer=self.normalizer)


def weighted_cross_entropy(
    logits: Float[Array, "r k"],
    targets: RefineTargets,
    multiplier: Float[Array, " r"],
    mask: Bool[Array, " r"],
    *,
    normalizer: Literal["weighted", "real"],
) -> Float[Array, ""]:
    """Return the weighted cross-entropy of one refinement head on one image.

        L = - 1/|P| sum_j w_j m_j log x_{y_j, j}

    with w_j, y_j from `targets`, m_j = `multiplier` (1 in OICR, 1 + z_j in OIM), x = softmax(`logits`).

    Args:
      logits: [r, k] background first; masked rows may hold anything.
      targets: mined labels and weights.
      multiplier: [r] factor on each weight; the normalizer does not include it.
      mask: [r] True = real proposal.
      normalizer: |P|. "weighted": proposals with w_j > 1e-12, at least 1 (released OICR code);
        "real": all real proposals, at least 1. They differ only by ignored proposals.

    Returns:
      [] float32. 0 if all weights are 0.

    Gradient: to `logits` only; finite, and 0 for masked rows.
    Source: Tang et al. 2017 (OICR), section 3; Lin et al. 2020 (OIM), eqs. 3 and 4.
    """
    targets, multiplier = jax.lax.stop_gradient((targets, multiplier))
    weights = jnp.where(mask, targets.weights, 0.0)
    counted = weights > 1e-12 if normalizer == "weighted" else mask
    total = -jnp.sum(
        jnp.where(mask, weights * multiplier, 0.0) * log_likelihood(logits, targets, mask)
    )
    return total / jnp.maximum(jnp.sum(counted), 1)
