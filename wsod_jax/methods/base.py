"""What training and evaluation know of a method, and what methods that score proposals share.

A method is a frozen, hashable dataclass. Fields without a default are parts that `build` fills by name (`backbone`,
`num_classes`, `max_classes`, `max_targets`); all others are its options, each with its default and range. Its
functions are pure. `params["backbone"]` holds the backbone's parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

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
      supervision: stream -> what it is labeled with: "image" (labels) or "boxes" (`Batch.targets`). With several
        streams `init`, `loss` and `propose` get a dict of batches.
      outputs: what `predict` can return.
      aligned_rows: row m of `Predictions.boxes` is the same region in every view, so views can be averaged.
      result: the weights that are the detector: the trained ones, or their running average.
      requires_image: gradients reach the pixels, so no cached features can stand in for them.
      pool: `None`, or (params, batch) -> [b, r, p, p, d]: proposals pooled from the backbone's maps, of which `params`
        needs the backbone's alone. As `Batch.pooled` they stand in for the image where the backbone is frozen.
      single_label: the image scores sum to 1, and the best class alone is predicted.
      uses_negatives: an image that shows none of the classes teaches it something; else such images are left out.
      min_classes: with fewer it learns nothing.
      uses_proposals: the batch needs proposals.
      propose: `None`, or (params, extras, batch, key, step) -> (request, batch): what the cue source is asked for on
        the host before an update, and the batch, to which features may have been added.
      predict_masks: `None`, or (params, extras, batch, memo, detections) -> [b, n, p, p] probabilities: the masks of
        detections in one view, each in the frame of its box. `detections` are in the view's pixels, `memo` is the
        view's `Predictions.memo`.
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

    def changes_at(self) -> dict[str, tuple[int, ...]]:
        """Return option -> the updates at which it changes what the loss does, to say them before a run."""
        return {}

    def init(self, key: jax.Array, batch: Batches) -> tuple[Params, dict]:
        """Return (params, extras) for batches shaped like `batch`; extras are what gradients do not train."""
        raise TypeError(f"{type(self).__name__} defines no init(key, batch)")

    def loss(
        self, params: Params, extras: dict, batch: Batches, key: jax.Array, step: jax.Array
    ) -> LossOutput:
        """Return per-image loss terms. `key` belongs to the update; `image_keys` makes one per image of it."""
        raise TypeError(f"{type(self).__name__} defines no loss(params, extras, batch, key, step)")

    def predict(
        self, params: Params, extras: dict, batch: Batch, want: frozenset[Output]
    ) -> Predictions:
        """Return what is wanted of one view, before views are merged; `want` is static under jit."""
        raise TypeError(f"{type(self).__name__} defines no predict(params, extras, batch, want)")


def image_keys(key: jax.Array, batch: Batch) -> jax.Array:
    """Derive one key per image from the update's key and the image's index, [b].

    The key depends on nothing else, so an image sees one dropout mask whatever the batch or device
    split.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, batch.image_index)


def image_term(values: jax.Array, batch: Batch) -> Term:
    """Make the mean over real images of per-image `values` [b]."""
    real = batch.image_mask.astype(jnp.float32)
    return Term(jnp.where(batch.image_mask, values, 0.0).astype(jnp.float32), real)


def counted_term(values: jax.Array, mask: jax.Array, per: str) -> Term:
    """Make the mean over masked-in entries of `values` [b, ...], e.g. over all mined boxes."""
    axes = tuple(range(1, mask.ndim))
    total = jnp.sum(jnp.where(mask, values, 0.0).astype(jnp.float32), axis=axes)
    return Term(total, jnp.sum(mask.astype(jnp.float32), axis=axes), per=per)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProposalMethod(Method):
    """A method that scores proposals by WSDDN's two streams, and learns the image's labels from their sum.

        X = softmax_r(A) ⊙ softmax_c(B),   φ_c = Σ_r X_rc,   L_mil = BCE(φ, y)

    Attributes:
      backbone: part: the network that makes the map "c5".
      num_classes: part: c.
      max_classes: part: static maximum of positive classes in an image.
      box_head: fully connected layers between RoI pooling and the scores.
      roi_size: bins per side of a pooled proposal.
      pooling: quantized max pooling, which published numbers rest on, or RoIAlign.
      det_temperature: divides A before its softmax over proposals; 2 in WSDDN's own code.
      score_gate: pooled features are multiplied by 1 + score_gate * objectness where proposals carry scores (WSDDN
        with EdgeBoxes: 10); 0 switches it off.
      mil_reduction: L_mil's "mean" over classes (what the released code of OICR optimizes) or "sum" (the papers).
      mil_scale: factor on L_mil; with the mean, 4 makes 80 classes weigh like 20.
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
    min_classes: ClassVar[int] = 2  # a softmax over one class is 1, whatever the image shows
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

        def one_image(phi: jax.Array, labels: jax.Array) -> jax.Array:
            return mil_loss(phi, labels, reduction=self.mil_reduction, scale=self.mil_scale)

        return image_term(jax.vmap(one_image)(scored.image_scores(), batch.labels), batch)


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
    """Online refinement, L = L_mil + Σ_k L_k: head k learns from what is mined out of the scores of head k - 1.

    The scores that stage k mines are S^0 = X, S^k = softmax of head k. All are known after one forward pass, so
    stages are vmapped; so are regressed boxes, since proposals are not pooled again. A subclass says how it mines
    (`mine`) and what a stage's loss is (`stage_loss`).

    Attributes:
      num_stages: refinement heads; 3 in the papers.
      iou_thrs: (background, foreground): IoU >= foreground with a pseudo box takes its label, IoU < background is
        background, what lies between has weight 0.
      ignore_iou_thr: IoU < this with every pseudo box has weight 0; 0 ignores nothing, 0.1 is the later trick of
        PCL's authors.
      first_stage_scale: factor on L_1, box regression included.
      regression: each head also regresses boxes, with a loss of its own; `None` leaves the proposals as they are.
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
        self, pseudo: PseudoBoxes, source: Source, spreads: Bool[Array, " g"] | None = None
    ) -> RefineTargets:
        """Label every proposal by the pseudo box that it overlaps most; see `assign_proposals`."""
        return assign_proposals(
            pseudo,
            source.scores,
            source.proposals,
            source.mask,
            iou_thrs=self.iou_thrs,
            ignore_iou_thr=self.ignore_iou_thr,
            spreads=spreads,
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
            seen: jax.Array,
        ) -> Mined:
            def one_stage(scores: jax.Array, regressed: jax.Array | None) -> Mined:
                source = Source.of(scores, boxes, mask, labels, seen, regressed)
                return self.mine(source, step)

            return jax.vmap(one_stage)(scores, regressed)

        features = self.mined_features(scored)
        return jax.vmap(one_image)(
            scores, regressed, batch.proposals, scored.mask, batch.labels, features
        )

    def regressed_boxes(self, scored: ProposalOutputs, batch: Batch) -> jax.Array | None:
        """Return the boxes [b, s, r, c, 4] that each stage mines; `None` where all mine the proposals."""
        if self.regression is None or self.regression.mined_boxes == "proposals":
            return None
        regress = jax.vmap(self.regression.boxes, in_axes=(None, 1, None), out_axes=1)
        later = regress(batch.proposals, scored.deltas[:, :-1], batch.image_size)
        first = batch.proposals[:, None, :, None]  # X is of the proposals
        first = jnp.broadcast_to(first, scored.deltas[:, :1].shape)
        return jnp.concatenate([first, later], axis=1)

    def predict(
        self, params: Params, extras: dict, batch: Batch, want: frozenset[Output]
    ) -> Predictions:
        """Score proposals by the mean of the heads' softmaxes without background, and move them by the mean deltas."""
        del extras, want
        scored, boxes = self.score(params, batch), batch.proposals
        scores = jnp.mean(scored.refine_scores(), axis=1)
        scores = jnp.where(scored.mask[..., None], scores, 0.0)
        if self.regression is not None:
            deltas = jnp.mean(scored.deltas, axis=1)
            boxes = self.regression.boxes(boxes, deltas, batch.image_size)
        return Predictions(boxes, scores, scored.mask, scored.image_scores())


def mining_metrics(mined: Mined, batch: Batch) -> dict[str, Term]:
    """Return what is logged of the mining, averaged over stages: boxes, positives, scores."""
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
    chosen = jnp.take_along_axis(log_probs, targets.labels[:, None], axis=1)[:, 0]
    return jnp.where(mask, chosen, 0.0)
