"""SPN: soft proposal networks (Zhu et al., ICCV 2017).

A classifier that finds, in its own features U and without supervision, where objects are, and gathers its evidence
there:

    M ← D(U) × M  until stable        a proposal map: mass walks to cells unlike their surroundings     (Eq. 2)
    V_k = U_k ∘ M                     features are coupled with it, in the gradient too         (Eq. 3, 6 to 8)
    y_c = Σ_k w_kc Σ_ij V_kij + b_c   an image's class scores, E = ℓ(y, t)
    R_c = Σ_k w_kc V_k                where class c is: its maximum is a point, what exceeds its mean a box

With M uniform this is class activation mapping (CAM): train with `solver="uniform"` for that baseline.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from wsod_jax.losses.classification import (
    Activation,
    class_scores,
    classification_loss,
    top1_hits,
)
from wsod_jax.methods.contract import Localiser, image_keys, image_term
from wsod_jax.nn.spn_network import SpnNetwork
from wsod_jax.ops.soft_proposal import Solver
from wsod_jax.types import Batch, Detections, LossOutput, Params


@dataclasses.dataclass(frozen=True)
class Spn(Localiser):
    """Soft proposal network.

    Attributes:
      network: an `SpnNetwork`.
      activation: "sigmoid" for any number of classes per image, "softmax" for exactly one (ImageNet).
    """

    network: SpnNetwork
    activation: Activation = "sigmoid"

    @property
    def single_label(self) -> bool:
        """Whether an image has exactly one class."""
        return self.activation == "softmax"

    def with_solver(self, solver: Solver) -> Spn:
        """Return the method with another way to find the proposal map; parameters fit both."""
        soft_proposal = self.network.soft_proposal.clone(solver=solver)
        return dataclasses.replace(self, network=self.network.clone(soft_proposal=soft_proposal))

    def init(self, key: jax.Array, batch: Batch) -> tuple[Params, dict]:
        """Initialise the network's parameters; there are no extras."""
        return self.network.init(key, batch)["params"], {}

    def loss(
        self, params: Params, extras: dict, batch: Batch, key: jax.Array, step: jax.Array
    ) -> LossOutput:
        """Return the cross-entropy of every image, and how far M is from uniform (as a metric)."""
        del step
        outputs = self.network.apply({"params": params}, batch, image_keys(key, batch))
        values = classification_loss(outputs.logits, batch.labels, self.activation)
        peak = proposal_peak(outputs.maps.proposal_map, outputs.maps.proposal_size)
        metrics = {
            "top1": image_term(top1_hits(outputs.logits, batch.labels), batch),
            "proposal_peak": image_term(peak, batch),
        }
        return LossOutput(
            {"classification": image_term(values, batch)}, extras, jax.lax.stop_gradient(metrics)
        )

    def predict(self, params: Params, extras: dict, batch: Batch) -> Detections:
        """Return class probabilities, response maps and the proposal map; boxes come from the maps."""
        del extras
        outputs = self.network.apply({"params": params}, batch)
        scores = class_scores(outputs.logits, self.activation)
        return Detections(None, None, None, scores, outputs.maps)

    def saliency(
        self, params: Params, batch: Batch, class_index: Int[Array, " b"]
    ) -> Float[Array, "b H W"]:
        """Return max over channels of |∂y_c / ∂image|: the Grad baseline of the paper's Table 2.

        Args:
          params: the network's.
          batch: needs `image`.
          class_index: [b] int32, which class of each image.

        Source: Simonyan et al. 2014.
        """

        def chosen(image: Float[Array, "b H W 3"]) -> Float[Array, ""]:
            logits = self.network.apply({"params": params}, batch.replace(image=image)).logits
            return jnp.sum(jnp.take_along_axis(logits, class_index[:, None], axis=1))

        gradient = jax.grad(chosen)(jnp.asarray(batch.image, jnp.float32))
        return jnp.max(jnp.abs(gradient), axis=-1)


def proposal_peak(
    proposal_map: Float[Array, "b h w"], size: Int[Array, "b 2"]
) -> Float[Array, " b"]:
    """Return how many times the uniform value M reaches at its highest cell.

    1 for a uniform map, 0 for a map without cells.
    """
    cells = (size[:, 0] * size[:, 1]).astype(jnp.float32)
    return jnp.max(proposal_map, axis=(1, 2), initial=0.0) * cells
