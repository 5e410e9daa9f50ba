"""A plain image classifier: how a small backbone gets its weights before it detects anything.

Global average pooling over valid cells and one linear layer; softmax cross-entropy where every image
shows one class, sigmoid cross-entropy where it may show several.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

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
    activation: Literal["softmax", "sigmoid"] = "softmax"

    def init(self, key: jax.Array, batch: Batch) -> tuple[Params, dict]:
        """Initialise the network's parameters; there are no extras."""
        return self.network.init(key, batch)["params"], {}

    def loss(
        self, params: Params, extras: dict, batch: Batch, key: jax.Array, step: jax.Array
    ) -> LossOutput:
        """Return the cross-entropy of every image; unknown labels (-1) carry no sigmoid loss."""
        del key, step
        logits = self.network.apply({"params": params}, batch)
        present = (batch.labels == 1).astype(jnp.float32)
        if self.activation == "softmax":
            values = optax.losses.safe_softmax_cross_entropy(logits, present)
        else:
            known = batch.labels >= 0
            per_class = optax.losses.sigmoid_binary_cross_entropy(logits, present)
            values = jnp.sum(per_class * known, axis=1) / jnp.maximum(jnp.sum(known, axis=1), 1)
        best = jnp.argmax(logits, axis=1)
        hit = jnp.take_along_axis(present, best[:, None], axis=1)[:, 0]
        return LossOutput(
            {"classification": image_term(values, batch)},
            extras,
            {"top1": image_term(jax.lax.stop_gradient(hit), batch)},
        )

    def predict(self, params: Params, extras: dict, batch: Batch) -> Detections:
        """Return image-level class probabilities; there are no boxes."""
        del extras
        logits = self.network.apply({"params": params}, batch)
        if self.activation == "softmax":
            scores = jax.nn.softmax(logits, axis=-1)
        else:
            scores = jax.nn.sigmoid(logits)
        return Detections(None, None, None, scores)
