"""Image classification, to pretrain small backbones.

Global average pooling over valid cells and one linear layer; softmax cross-entropy for one class per image, sigmoid
cross-entropy for several.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax

from wsod_jax.losses.image_labels import (
    Activation,
    class_scores,
    classification_loss,
    top1_hits,
)
from wsod_jax.methods.base import ImageClassifier, Output, image_term
from wsod_jax.nn.heads import GapClassifier
from wsod_jax.types import Batch, LossOutput, Params, Predictions


class ClassifierNetwork(nn.Module):
    """A backbone with a `GapClassifier` on top: a batch to [b, c] logits."""

    backbone: nn.Module
    num_classes: int

    def setup(self):
        self.head = GapClassifier(num_classes=self.num_classes)

    def __call__(self, batch: Batch) -> jax.Array:
        """Return class logits [b, c]."""
        return self.head(self.backbone(batch)["c5"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier(ImageClassifier):
    """Image classification.

    Attributes:
      backbone: part: the network that makes the map "c5".
      num_classes: part: c.
      activation: "softmax" for one class per image, "sigmoid" for any number.
    """

    backbone: nn.Module
    num_classes: int
    activation: Activation = "softmax"

    outputs: ClassVar[frozenset[Output]] = frozenset({"image_scores"})

    @property
    def network(self) -> ClassifierNetwork:
        """The whole network."""
        return ClassifierNetwork(self.backbone, self.num_classes)

    def loss(
        self, params: Params, extras: dict, batch: Batch, key: jax.Array, step: jax.Array
    ) -> LossOutput:
        """Return the cross-entropy of every image; unknown labels (-1) are excluded from the sigmoid loss."""
        del key, step
        logits = self.network.apply({"params": params}, batch)
        values = classification_loss(logits, batch.labels, self.activation)
        hit = top1_hits(logits, batch.labels)
        return LossOutput(
            {"classification": image_term(values, batch)},
            extras,
            {"top1": image_term(jax.lax.stop_gradient(hit), batch)},
        )

    def predict(
        self, params: Params, extras: dict, batch: Batch, want: frozenset[Output]
    ) -> Predictions:
        """Return image-level class probabilities, without boxes."""
        del extras, want
        logits = self.network.apply({"params": params}, batch)
        return Predictions(image_scores=class_scores(logits, self.activation))
