"""A plain image classifier: how a small backbone gets its weights before it detects anything.

Global average pooling over valid cells and one linear layer; softmax cross-entropy where every image
shows one class, sigmoid cross-entropy where it may show several.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax

from wsod_jax.losses.classification import (
    Activation,
    class_scores,
    classification_loss,
    top1_hits,
)
from wsod_jax.methods.contract import Method, image_term
from wsod_jax.nn.heads import GapClassifier
from wsod_jax.types import Batch, Detections, LossOutput, Params


class ClassifierNetwork(nn.Module):
    """A backbone with a `GapClassifier` on top: [b, H, W, 3] pixels to [b, c] logits."""

    backbone: nn.Module
    num_classes: int

    def setup(self):
        self.head = GapClassifier(num_classes=self.num_classes)

    def __call__(self, batch: Batch) -> jax.Array:
        """Return class logits [b, c]."""
        return self.head(self.backbone(batch.image, batch.image_size))


@dataclasses.dataclass(frozen=True)
class Classifier(Method):
    """Image classification.

    Attributes:
      network: a `ClassifierNetwork`.
      activation: "softmax" for one class per image, "sigmoid" for any number.
    """

    network: ClassifierNetwork
    activation: Activation = "softmax"

    def init(self, key: jax.Array, batch: Batch) -> tuple[Params, dict]:
        """Initialise the network's parameters; there are no extras."""
        return self.network.init(key, batch)["params"], {}

    def loss(
        self, params: Params, extras: dict, batch: Batch, key: jax.Array, step: jax.Array
    ) -> LossOutput:
        """Return the cross-entropy of every image; unknown labels (-1) carry no sigmoid loss."""
        del key, step
        logits = self.network.apply({"params": params}, batch)
        values = classification_loss(logits, batch.labels, self.activation)
        hit = top1_hits(logits, batch.labels)
        return LossOutput(
            {"classification": image_term(values, batch)},
            extras,
            {"top1": image_term(jax.lax.stop_gradient(hit), batch)},
        )

    def predict(self, params: Params, extras: dict, batch: Batch) -> Detections:
        """Return image-level class probabilities; there are no boxes."""
        del extras
        logits = self.network.apply({"params": params}, batch)
        return Detections(None, None, None, class_scores(logits, self.activation))
