"""The interface between methods and training or evaluation, and the base classes of methods that score proposals.

A method is a frozen, hashable dataclass. Fields without a default are parts that `build` fills by name (`backbone`,
`num_classes`, `max_classes`, `max_targets`); all others are options, with default and range. Its functions are pure.
`params["backbone"]` holds the backbone's parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from wsod_jax.errors import ConfigError
from wsod_jax.losses.image_labels import mil_loss
from wsod_jax.methods.assign import Mined, assign_proposals
from wsod_jax.methods.regression import Regression
from wsod_jax.nn.box_head import BoxHead
from wsod_jax.nn.proposal_network import ProposalNetwork, ProposalOutputs
from wsod_jax.options import COUNT, NOT_NEGATIVE, POSITIVE, SHARE
from wsod_jax.types import (
    Batch,
    Batches,
    LossOutput,
    Params,
    Predictions,
    PseudoBoxes,
    RefineTargets,
    Source,
    Term,
)

Output = Literal["boxes", "masks", "maps", "semantic", "image_scores"]


class Method:
    """Base class of all methods. A subclass is a frozen dataclass that defines `init`, `loss` and `predict`.

    Attributes:
      supervision: stream -> its labels: "image" (labels) or "boxes" (`Batch.targets`). With several streams `init`,
        `loss` and `propose` get a dict of batches.
      outputs: the outputs that `predict` can return.
      aligned_rows: row m of `Predictions.boxes` is the same region in every view, so views can be averaged.
      result: the weights used for prediction: the trained ones, or their running average.
      requires_image: the loss differentiates with respect to pixels, so cached features cannot replace them.
      pool: `None`, or (params, batch) -> [b, r, p, p, d]: proposals pooled from the backbone's maps; only the
        backbone's `params` are needed. As `Batch.pooled` they replace the image if the backbone is frozen.
      single_label: the image scores sum to 1, and only the best class is predicted.
      uses_negatives: images without any of the classes are used for training; else they are omitted.
      min_classes: the fewest classes that can be learned.
      uses_proposals: the batch needs proposals.
      propose: `None`, or (params, extras, batch, key, step) -> (request, batch): the request to the cue source, which
        answers on the host before an update, and the batch, to which features may have been added.
      predict_masks: `None`, or (params, extras, batch, memo, detections) -> [b, n, p, p] probabilities: the masks of
        detections in one view, each in the frame of its box. `detections` are in the view's pixels, `memo` is the
        view's `Predictions.memo`. With `None`, the output "masks" is cut from the maps of "semantic".
      localization_maps: `None`, or (params, batch, key, classes) -> [b, k, H, W] in [0, 1]: where in the image the
        evidence for classes [b, k] lies.
      start_from: `None`, or (params, started) -> params: computes parameters from others, those that `train.init_from`
        brought; `started` is the set of their paths.
    """

    supervision: ClassVar[Mapping[str, Literal["image", "boxes"]]] = MappingProxyType(
        {"train": "image"}
    )
    outputs: ClassVar[frozenset[Output]] = frozenset()
    aligned_rows: ClassVar[bool] = True
    result: ClassVar[Literal["params", "ema"]] = "params"
    requires_image: ClassVar[bool] = False
    single_label: ClassVar[bool] = False
    uses_negatives: ClassVar[bool] = False
    min_classes: ClassVar[int] = 1
    uses_proposals: ClassVar[bool] = False
    pool: ClassVar[Any] = None
    propose: ClassVar[Any] = None
    predict_masks: ClassVar[Any] = None
    localization_maps: ClassVar[Any] = None
    start_from: ClassVar[Any] = None

    def changes_at(self) -> dict[str, tuple[int, ...]]:
        """Return option -> updates at which its value changes, to print them before a run."""
        return {}

    def init(self, key: jax.Array, batch: Batches) -> tuple[Params, dict]:
        """Return (params, extras) for batches shaped like `batch`; extras are state without gradients."""
        raise TypeError(f"{type(self).__name__} defines no init(key, batch)")

    def loss(
        self, params: Params, extras: dict, batch: Batches, key: jax.Array, step: jax.Array
    ) -> LossOutput:
        """Return per-image loss terms. `key` is the update's; `image_keys` derives one per image."""
        raise TypeError(f"{type(self).__name__} defines no loss(params, extras, batch, key, step)")

    def predict(
        self, params: Params, extras: dict, batch: Batch, want: frozenset[Output]
    ) -> Predictions:
        """Return the outputs `want` of one view, before views are merged; `want` is static under jit."""
        raise TypeError(f"{type(self).__name__} defines no predict(params, extras, batch, want)")


class ImageClassifier(Method):
    """A method that scores whole images: by a softmax for one class per image, by a sigmoid for any number.

    A subclass has an option `activation`, "softmax" or "sigmoid", and a property `network`, a flax module.
    """

    @property
    def single_label(self) -> bool:
        """Whether an image has exactly one class."""
        return self.activation == "softmax"

    @property
    def uses_negatives(self) -> bool:
        """Whether images without any class are used for training."""
        return not self.single_label

    @property
    def min_classes(self) -> int:
        """A softmax over one class is always 1."""
        return 2 if self.single_label else 1

    def init(self, key: jax.Array, batch: Batch) -> tuple[Params, dict]:
        """Draw the network's parameters; there are no extras."""
        return self.network.init(key, batch)["params"], {}


def image_keys(key: jax.Array, batch: Batch) -> jax.Array:
    """Derive one key per image from the update's key and the image's index, [b].

    The key depends on nothing else, so an image has the same dropout mask in any batch and on any number of devices.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, batch.image_index)


def image_term(values: jax.Array, batch: Batch) -> Term:
    """Return the mean over real images of per-image `values` [b]."""
    real = batch.image_mask.astype(jnp.float32)
    return Term(jnp.where(batch.image_mask, values, 0.0).astype(jnp.float32), real)


def counted_term(values: jax.Array, mask: jax.Array, per: str) -> Term:
    """Return the mean over entries of `values` [b, ...] where `mask` is True, e.g. over all mined boxes."""
    axes = tuple(range(1, mask.ndim))
    total = jnp.sum(jnp.where(mask, values, 0.0).astype(jnp.float32), axis=axes)
    return Term(total, jnp.sum(mask.astype(jnp.float32), axis=axes), per=per)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProposalMethod(Method):
    """A method that scores proposals by WSDDN's two streams, trained by image labels through their sum.

        X = softmax_r(A) ⊙ softmax_c(B),   φ_c = Σ_r X_rc,   L_mil = BCE(φ, y)

    Attributes:
      backbone: part: the network that makes the map "c5".
      num_classes: part: c.
      max_classes: part: static maximum of positive classes in an image.
      box_head: fully connected layers between RoI pooling and the scores.
      roi_size: bins per side of a pooled proposal.
      pooling: quantized max pooling ("max"), as in published results, or RoIAlign ("align").
      det_temperature: divides A before its softmax over proposals; 2 in the released WSDDN code.
      score_gate: pooled features are multiplied by 1 + score_gate * objectness if proposals have scores (WSDDN with
        EdgeBoxes: 10); 0 disables it.
      mil_reduction: L_mil is the "mean" (released OICR code) or the "sum" (the papers) over classes.
      mil_scale: factor on L_mil; with the mean, 4 weighs each of 80 classes like each of 20.
    """

    backbone: nn.Module
    num_classes: int
    max_classes: int
    box_head: BoxHead = BoxHead()
    roi_size: Annotated[int, COUNT] = 7
    pooling: Literal["max", "align"] = "max"
    det_temperature: Annotated[float, POSITIVE] = 1.0
    score_gate: Annotated[float, NOT_NEGATIVE] = 0.0
    mil_reduction: Literal["mean", "sum"] = "mean"
    mil_scale: Annotated[float, NOT_NEGATIVE] = 1.0

    paper: ClassVar[str] = "Bilen and Vedaldi 2016 (WSDDN)"
    outputs: ClassVar[frozenset[Output]] = frozenset({"boxes", "image_scores"})
    uses_proposals: ClassVar[bool] = True
    min_classes: ClassVar[int] = 2  # a softmax over one class is always 1
    num_stages: ClassVar[int] = 0
    regression: ClassVar[Regression | None] = None

    @property
    def network(self) -> ProposalNetwork:
        """The whole network, with a refinement head per stage."""
        return ProposalNetwork(
            backbone=self.backbone,
            box_head=self.box_head,
            num_classes=self.num_classes,
            num_stages=self.num_stages,
            roi_size=self.roi_size,
            pooling=self.pooling,
            det_temperature=self.det_temperature,
            score_gate=self.score_gate,
            regresses=self.regression is not None,
        )

    def init(self, key: jax.Array, batch: Batch) -> tuple[Params, dict]:
        """Draw the network's parameters; there are no extras."""
        return self.network.init(key, batch)["params"], {}

    def pool(self, params: Params, batch: Batch) -> jax.Array:
        """Return the pooled proposals [b, r, p, p, d] of a batch, masked rows 0."""
        return self.network.apply({"params": params}, batch, method="pooled")

    def score(self, params: Params, batch: Batch, key: jax.Array | None = None) -> ProposalOutputs:
        """Score a batch's proposals, with dropout if given the update's key."""
        keys = None if key is None else image_keys(key, batch)
        return self.network.apply({"params": params}, batch, keys)

    def mil_term(self, scored: ProposalOutputs, batch: Batch) -> Term:
        """Return L_mil = -Σ_c [y_c log φ_c + (1 - y_c) log(1 - φ_c)], reduced over classes."""
        losses = jax.vmap(self.mil_loss)(scored.image_scores(), batch.labels)
        return image_term(losses, batch)

    def mil_loss(self, scores: Float[Array, " c"], labels: Int[Array, " c"]) -> Float[Array, ""]:
        """Return the cross-entropy of one image's class scores, reduced over classes."""
        return mil_loss(scores, labels, reduction=self.mil_reduction, scale=self.mil_scale)


def mil_metrics(scored: ProposalOutputs, batch: Batch) -> dict[str, Term]:
    """Return φ averaged over present and over absent classes, and the number of proposals."""
    phi = jax.lax.stop_gradient(scored.image_scores())
    real = batch.image_mask[:, None]
    return {
        "phi_present": counted_term(phi, real & (batch.labels == 1), per="present"),
        "phi_absent": counted_term(phi, real & (batch.labels == 0), per="absent"),
        "proposals": image_term(jnp.sum(scored.mask, axis=1).astype(jnp.float32), batch),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefinementMethod(ProposalMethod):
    """Online refinement, L = L_mil + Σ_k L_k: head k is trained on pseudo boxes mined from the scores of head k - 1.

    The scores are S^0 = X, S^k = softmax of head k. All are known after one forward pass, so stages are vmapped; so are
    regressed boxes, since proposals are not pooled again. A subclass defines the miner (`mine`) and the loss of a stage
    (`stage_loss`).

    Attributes:
      num_stages: refinement heads; 3 in the papers.
      iou_thrs: (background, foreground): proposals of IoU >= foreground with a pseudo box take its label, those of
        IoU < background are background, those between have weight 0.
      ignore_iou_thr: proposals of IoU < this with every pseudo box have weight 0; 0 ignores none, 0.1 is PCL's later
        practice.
      first_stage_scale: factor on L_1, box regression included.
      regression: each head also regresses boxes; `None`: boxes are the proposals.
    """

    num_stages: Annotated[int, COUNT] = 3
    iou_thrs: Annotated[tuple[float, float], SHARE] = (0.5, 0.5)
    ignore_iou_thr: Annotated[float, SHARE] = 0.0
    first_stage_scale: Annotated[float, NOT_NEGATIVE] = 1.0
    regression: Regression | None = None

    paper: ClassVar[str] = "Tang et al. 2017 (OICR)"

    def __post_init__(self):
        background, foreground = self.iou_thrs
        if background > foreground:
            raise ConfigError(
                f"config.method.iou_thrs is {self.iou_thrs!r}; allowed are (background, foreground) with background "
                "<= foreground, such as (0.5, 0.5)"
            )

    def mine(self, source: Source, step: jax.Array) -> Mined:
        """Return the pseudo labels of one image and one stage."""
        raise TypeError(f"{type(self).__name__} defines no mine(source, step)")

    def stage_loss(
        self, logits: Float[Array, "r k"], mined: Mined, mask: Bool[Array, " r"]
    ) -> Float[Array, ""]:
        """Return L_k of one image."""
        raise TypeError(f"{type(self).__name__} defines no stage_loss(logits, mined, mask)")

    def mined_features(self, scored: ProposalOutputs) -> jax.Array:
        """Return the features [b, r, f] that the miner compares."""
        return scored.features

    def assign(
        self, pseudo: PseudoBoxes, source: Source, labels_neighbors: Bool[Array, " g"] | None = None
    ) -> RefineTargets:
        """Label every proposal by the pseudo box that it overlaps most; see `assign_proposals`."""
        return assign_proposals(
            pseudo,
            source.scores,
            source.proposals,
            source.mask,
            iou_thrs=self.iou_thrs,
            ignore_iou_thr=self.ignore_iou_thr,
            labels_neighbors=labels_neighbors,
        )

    def loss(
        self, params: Params, extras: dict, batch: Batch, key: jax.Array, step: jax.Array
    ) -> LossOutput:
        """Score the proposals, mine every stage, supervise every head."""
        scored = self.score(params, batch, key)
        mined = self.mine_stages(scored, batch, step)
        terms = {"mil": self.mil_term(scored, batch)}
        per_stage = jax.vmap(self.stage_loss, in_axes=(0, 0, None))
        losses = jax.vmap(per_stage)(scored.refine_logits, mined, scored.mask)
        terms |= self.stage_terms("refine", losses, batch)
        if self.regression is not None:
            per_stage = jax.vmap(self.regression.loss, in_axes=(0, 0, None, None))
            losses = jax.vmap(per_stage)(scored.deltas, mined, batch.proposals, scored.mask)
            terms |= self.stage_terms("regress", losses, batch)
        metrics = mil_metrics(scored, batch) | mining_metrics(mined, batch)
        return LossOutput(terms, extras, metrics, mined.pseudo)

    def stage_terms(self, name: str, losses: Float[Array, "b s"], batch: Batch) -> dict[str, Term]:
        """Return the losses of all stages as terms `name`_1, `name`_2, …"""
        losses = losses.at[:, 0].multiply(self.first_stage_scale)
        return {f"{name}_{s + 1}": image_term(losses[:, s], batch) for s in range(losses.shape[1])}

    def mine_stages(self, scored: ProposalOutputs, batch: Batch, step: jax.Array) -> Mined:
        """Mine every stage of every image; the result leads with axes [b, s]."""
        first = scored.mil_scores[:, None]
        scores = jnp.concatenate([first, scored.refine_scores()[:, :-1]], axis=1)  # [b, s, r, c]
        regressed = self.regressed_boxes(scored, batch)

        def one_image(
            scores: jax.Array,
            regressed: jax.Array | None,
            boxes: jax.Array,
            mask: jax.Array,
            labels: jax.Array,
            features: jax.Array,
        ) -> Mined:
            def one_stage(scores: jax.Array, regressed: jax.Array | None) -> Mined:
                source = Source.of(scores, boxes, mask, labels, features, regressed)
                return self.mine(source, step)

            return jax.vmap(one_stage)(scores, regressed)

        features = self.mined_features(scored)
        return jax.vmap(one_image)(
            scores, regressed, batch.proposals, scored.mask, batch.labels, features
        )

    def regressed_boxes(self, scored: ProposalOutputs, batch: Batch) -> jax.Array | None:
        """Return the boxes [b, s, r, c, 4] that each stage mines; `None` if all mine the proposals."""
        if self.regression is None or self.regression.mined_boxes == "proposals":
            return None
        regress = jax.vmap(self.regression.boxes, in_axes=(None, 1, None), out_axes=1)
        later = regress(batch.proposals, scored.deltas[:, :-1], batch.image_size)
        first = batch.proposals[:, None, :, None]  # X scores the proposals
        first = jnp.broadcast_to(first, scored.deltas[:, :1].shape)
        return jnp.concatenate([first, later], axis=1)

    def predict(
        self, params: Params, extras: dict, batch: Batch, want: frozenset[Output]
    ) -> Predictions:
        """Score proposals by the mean of the heads' softmaxes without background; apply the mean deltas."""
        del extras, want
        scored, boxes = self.score(params, batch), batch.proposals
        scores = jnp.mean(scored.refine_scores(), axis=1)
        scores = jnp.where(scored.mask[..., None], scores, 0.0)
        if self.regression is not None:
            deltas = jnp.mean(scored.deltas, axis=1)
            boxes = self.regression.boxes(boxes, deltas, batch.image_size)
        return Predictions(boxes, scores, scored.mask, scored.image_scores())


def mining_metrics(mined: Mined, batch: Batch) -> dict[str, Term]:
    """Return the logged metrics of mining, averaged over stages: boxes, positives, scores."""
    pseudo, targets = mined.pseudo, mined.targets
    real = batch.image_mask[:, None, None]
    nodes = pseudo.mask & ~pseudo.is_seed

    def per_image(mask: jax.Array) -> Term:
        return image_term(jnp.mean(jnp.sum(mask, axis=2) * 1.0, axis=1), batch)

    return {
        "pseudo_boxes": per_image(pseudo.mask),
        "nodes": per_image(nodes),
        "positives": per_image((targets.labels > 0) & (targets.weights > 0)),
        "core_score": counted_term(pseudo.scores, pseudo.mask & ~nodes & real, per="cores"),
        "node_score": counted_term(pseudo.scores, nodes & real, per="nodes"),
        "mining_overflow": image_term(jnp.sum(mined.num_overflow, axis=1) * 1.0, batch),
    }


def log_likelihood(
    logits: Float[Array, "r k"], targets: RefineTargets, mask: Bool[Array, " r"]
) -> Float[Array, " r"]:
    """Return log x_{y_j, j} of every proposal's label, x the softmax of `logits`; 0 for masked rows."""
    logits = jnp.where(mask[:, None], logits.astype(jnp.float32), 0.0)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    label_log_probs = jnp.take_along_axis(log_probs, targets.labels[:, None], axis=1)[:, 0]
    return jnp.where(mask, label_log_probs, 0.0)
