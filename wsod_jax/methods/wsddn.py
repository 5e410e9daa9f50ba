"""WSDDN: weakly supervised deep detection network (Bilen and Vedaldi, CVPR 2016).

Two streams score every proposal, one by a softmax over classes, one by a softmax over proposals:

    X = softmax_r(A) ⊙ softmax_c(B),   φ_c = Σ_r X_rc,
    L = BCE(φ, y)  (+ λ · spatial regulariser).

OICR, PCL, MIST and OIM start from the same X; here it is the detector itself.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from wsod_jax.losses.mil import mil_loss, spatial_regulariser
from wsod_jax.methods.contract import Method, counted_term, image_keys, image_term
from wsod_jax.nn.proposal_network import ProposalNetwork, ProposalOutputs
from wsod_jax.types import Batch, Detections, LossOutput, Params, Term


@dataclasses.dataclass(frozen=True)
class Wsddn(Method):
    """Plain WSDDN.

    Attributes:
      network: with `num_stages=0`.
      max_classes: static maximum of positive classes in an image (for the regulariser).
      mil_reduction: "mean" over classes (what the released OICR code optimises) or "sum" (the
        papers, and WSDDN itself).
      mil_scale: factor on the MIL loss; 4 makes 80 classes weigh like 20.
      spatial_weight: λ of the spatial regulariser, 1e-4 in the original; 0 leaves it out.
    """

    network: ProposalNetwork
    max_classes: int
    mil_reduction: Literal["mean", "sum"] = "mean"
    mil_scale: float = 1.0
    spatial_weight: float = 0.0

    def init(self, key: jax.Array, batch: Batch) -> tuple[Params, dict]:
        """Initialise the network's parameters; there are no extras."""
        return self.network.init(key, batch)["params"], {}

    def loss(
        self, params: Params, extras: dict, batch: Batch, key: jax.Array, step: jax.Array
    ) -> LossOutput:
        """Return the MIL loss of every image, and the spatial regulariser where asked for."""
        del step
        outputs = self.network.apply({"params": params}, batch, image_keys(key, batch))
        terms = {"mil": mil_term(outputs, batch, self.mil_reduction, self.mil_scale)}
        if self.spatial_weight:
            smooth = jax.vmap(
                lambda *image: spatial_regulariser(*image, max_classes=self.max_classes)
            )(
                outputs.mil_scores,
                outputs.features,
                batch.proposals,
                outputs.mask,
                batch.labels,
            )
            terms["spatial"] = image_term(self.spatial_weight * smooth, batch)
        return LossOutput(terms, extras, mil_metrics(outputs, batch))

    def predict(self, params: Params, extras: dict, batch: Batch) -> Detections:
        """Return X as scores of the proposals."""
        del extras
        outputs = self.network.apply({"params": params}, batch)
        return Detections(batch.proposals, outputs.mil_scores, outputs.mask, outputs.image_scores())


def mil_term(
    outputs: ProposalOutputs,
    batch: Batch,
    reduction: Literal["mean", "sum"],
    scale: float,
) -> Term:
    """Return L_mil = -Σ_c [y_c log φ_c + (1 - y_c) log(1 - φ_c)], reduced over classes."""
    values = jax.vmap(lambda phi, labels: mil_loss(phi, labels, reduction=reduction, scale=scale))(
        outputs.image_scores(), batch.labels
    )
    return image_term(values, batch)


def mil_metrics(outputs: ProposalOutputs, batch: Batch) -> dict[str, Term]:
    """Return φ averaged over present and over absent classes, and the number of proposals."""
    phi = jax.lax.stop_gradient(outputs.image_scores())
    real = batch.image_mask[:, None]
    return {
        "phi_present": counted_term(phi, real & (batch.labels == 1), per="present"),
        "phi_absent": counted_term(phi, real & (batch.labels == 0), per="absent"),
        "proposals": image_term(jnp.sum(outputs.mask, axis=1).astype(jnp.float32), batch),
    }
