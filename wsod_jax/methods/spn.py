"""SPN: soft proposal networks (Zhu et al., ICCV 2017).

A classifier that estimates an objectness map M from its features U, unsupervised, and weights the features by M:

    M ← D(U) × M  until stable        proposal map: mass moves to cells unlike their surroundings       (Eq. 2)
    V_k = U_k ∘ M                     coupled features, in the gradient too                     (Eq. 3, 6 to 8)
    y_c = Σ_k w_kc Σ_ij V_kij + b_c   class scores of the image, E = ℓ(y, t)
    R_c = Σ_k w_kc V_k                class activation map: its maximum gives a point, cells above its mean a box

With M uniform this is class activation mapping (CAM): train with `soft_proposal.solver="uniform"` for that baseline.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wsod_jax.errors import ConfigError
from wsod_jax.losses.image_labels import (
    Activation,
    class_scores,
    classification_loss,
    top1_hits,
)
from wsod_jax.methods.base import ImageClassifier, Output, image_keys, image_term
from wsod_jax.nn.layers import ReceptiveField
from wsod_jax.nn.spn_network import SoftProposal, SpnNetwork
from wsod_jax.options import COUNT, DROPOUT
from wsod_jax.types import Batch, FeatureMap, LossOutput, Params, Predictions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spn(ImageClassifier):
    """Soft proposal network.

    Attributes:
      backbone: part: the network that makes the map "c5".
      num_classes: part: c.
      soft_proposal: the module that computes the proposal map; its solver may differ at test time.
      extra_channels: width of the 3x3 convolution that the released networks put after the backbone; `None`: none.
      extra_groups: its groups of channels.
      insert_after: name of the backbone's layer that the soft proposal module follows; `None`: after the last. In the
        middle V feeds further layers, which requires `soft_proposal.unit_mean`; the last map is then averaged over
        its cells.
      dropout_rate: of the summed features, when training.
      activation: "sigmoid" for any number of classes per image, "softmax" for exactly one (ImageNet).
    """

    backbone: nn.Module
    num_classes: int
    soft_proposal: SoftProposal = SoftProposal()
    extra_channels: Annotated[int | None, COUNT] = 1024
    extra_groups: Annotated[int, COUNT] = 2
    insert_after: str | None = None
    dropout_rate: Annotated[float, DROPOUT] = 0.5
    activation: Activation = "sigmoid"

    paper: ClassVar[str] = "Zhu et al. 2017 (SPN)"
    outputs: ClassVar[frozenset[Output]] = frozenset({"maps", "image_scores"})

    def __post_init__(self):
        if (self.insert_after is not None) != self.soft_proposal.unit_mean:
            raise ConfigError(
                f"config.method.insert_after is {self.insert_after!r} and config.method.soft_proposal.unit_mean is "
                f"{self.soft_proposal.unit_mean}, which contradict each other: before further layers M must have mean "
                "1 (unit_mean=True), or activations vanish; before the spatial sum it must sum to 1 (unit_mean=False)"
            )

    @property
    def network(self) -> SpnNetwork:
        """The whole network."""
        return SpnNetwork(
            backbone=self.backbone,
            soft_proposal=self.soft_proposal,
            num_classes=self.num_classes,
            extra_channels=self.extra_channels,
            extra_groups=self.extra_groups,
            insert_after=self.insert_after,
            dropout_rate=self.dropout_rate,
        )

    def loss(
        self, params: Params, extras: dict, batch: Batch, key: jax.Array, step: jax.Array
    ) -> LossOutput:
        """Return the cross-entropy of every image, and the peak of M as a metric."""
        del step
        outputs = self.network.apply({"params": params}, batch, image_keys(key, batch))
        values = classification_loss(outputs.logits, batch.labels, self.activation)
        peak = proposal_peak(outputs.maps.proposal_map)
        metrics = {
            "top1": image_term(top1_hits(outputs.logits, batch.labels), batch),
            "proposal_peak": image_term(peak, batch),
        }
        return LossOutput(
            {"classification": image_term(values, batch)}, extras, jax.lax.stop_gradient(metrics)
        )

    def predict(
        self, params: Params, extras: dict, batch: Batch, want: frozenset[Output]
    ) -> Predictions:
        """Return class probabilities, class activation maps and the proposal map; boxes come from the maps."""
        del extras
        outputs = self.network.apply({"params": params}, batch)
        scores = class_scores(outputs.logits, self.activation)
        return Predictions(image_scores=scores, maps=outputs.maps if "maps" in want else None)

    def coupled_features(self, params: Params, batch: Batch) -> FeatureMap:
        """Return U, the input of the soft proposal module."""
        return self.network.apply({"params": params}, batch).features

    def proposal_field(self) -> ReceptiveField:
        """Return the receptive field of the proposal map's cells; see `SpnNetwork.proposal_field`."""
        return self.network.proposal_field()


def proposal_peak(proposal_map: Float[Array, "b h w"]) -> Float[Array, " b"]:
    """Return M's maximum relative to a uniform map: 1 for a uniform map, 0 for a map without cells."""
    return jnp.max(proposal_map, axis=(1, 2), initial=0.0)
