"""WS-JDS: weakly supervised joint detection and segmentation, which guide each other (Shen et al., CVPR 2019).

WSDDN scores proposals, and a segmentation branch on the same map scores every class in every cell, S = σ(logits):

    X = softmax_r(A) ⊙ softmax_c(B),   φ_c = Σ_r X_rc                       (detection, Eq. 1)
    G_c = max_color |∂φ_c / ∂image| / its maximum                           (localization map)
    M_c = 1 where G_c ≥ 0.1,  0 where G_c ≤ 0.005,  unknown elsewhere       (seeds)
    L_seed = −Σ_c [mean_{M=1} log S_c + mean_{M=0} log(1 − S_c)]            (detection guides segmentation, Eq. 2)
    W_rc = N(p_r) / √|p_r| − N(p_r^c) / √|p_r^c|, normalized                (Eq. 3)
    φ⁺_c = Σ_r max(W_rc, 0) X_rc,   φ⁻_c = Σ_r max(−W_rc, 0) X_rc
    L_prior = BCE(φ⁺, y) + BCE(φ⁻, 0)                                       (segmentation guides detection, Eq. 4)
    L = L_prior(G) + 0.1 L_prior(S) + L_seed + L_boundary

A class that the image contains guides if the detector is confident of it, φ_c ≥ 0.7. Else it has no localization map,
M is unknown, and W is 1, so that L_prior is BCE(φ, y), 1.1 times in all. Absent classes have M = 0. Equations 3 and 4
follow the released code where the paper is silent: `prior_guidance`. docs/methods.md has the options and ablations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from wsod_jax.errors import ConfigError
from wsod_jax.losses.image_labels import score_entropy
from wsod_jax.losses.segmentation import (
    Balance,
    balanced_boundary_loss,
    boundary_loss,
    label_probabilities,
    seed_loss,
    seeds_of_map,
)
from wsod_jax.methods.base import Output, ProposalMethod, image_keys, image_term, mil_metrics
from wsod_jax.methods.prior_guidance import (
    AreaPower,
    Region,
    class_weights,
    mask_maps,
    present_classes,
)
from wsod_jax.nn.aspp import Aspp
from wsod_jax.nn.backbone import is_frozen
from wsod_jax.nn.layers import valid_mask
from wsod_jax.nn.proposal_network import ProposalOutputs
from wsod_jax.ops.crf import CrfOptions, dense_crf
from wsod_jax.ops.masked import masked_mean
from wsod_jax.ops.resize import average_cells, upsample
from wsod_jax.options import COUNT, NOT_NEGATIVE, SHARE
from wsod_jax.types import Batch, FeatureMap, LossOutput, Params, Predictions, Term

Guidance = Literal["both", "to_segmentation", "to_detection", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WsJds(ProposalMethod):
    """Joint detection and segmentation with cyclic guidance.

    Attributes:
      segmentation: the segmentation branch.
      initial: fc6 and fc7 of the branch start from the "box_head"'s, if train.init_from brought these, or "random".
      guidance: who guides whom: "both" is the paper's WSOD ⇋ WSSS. "to_segmentation" (→) trains detection as WSDDN;
        "to_detection" (←) trains segmentation from image labels; "none" (∥) both.
      confidence_thr: φ_c from which a present class guides.
      map_seed: the localization map is the gradient of φ_c ("ones"), or of ½ Σ_r X_rc² ("scores", the first release).
      seed_thrs: (background, foreground): M is 0 up to the first, and 1 from the second.
      seed_balance: means over positive and negative pixels ("balanced", the release), or one mean ("plain", Eq. 2).
      boundary_loss: "sec" compares background and present classes with their CRF, "released" each class; or "off".
      crf: the CRF of the boundary loss.
      evidence_thr: a pixel counts for W from this share of its map's maximum.
      prior_region: W compares the context with a "frame" inside the box (the release) or with the whole "box" (paper).
      mask_area: W of segmentation maps divides by the area's "root" (paper) or the "plain" area (first release).
      negative_weights: φ⁺ and φ⁻ "split" (the release), or one "sum", φ = Σ_r W_rc X_rc (Eq. 4).
      localization_prior_weight: factor on L_prior of the localization maps.
      mask_prior_weight: factor on L_prior of the segmentation maps.
      entropy_weight: factor on the mean of −X log X over proposals and present classes; 0.1 in the release, not in
        the paper.
      guidance_steps: updates after which W is 1 and L_seed is 0; `None`: never.
    """

    mil_reduction: Literal["mean", "sum"] = "sum"
    score_gate: Annotated[float, NOT_NEGATIVE] = 1.0
    segmentation: Aspp = Aspp()
    initial: Literal["box_head", "random"] = "box_head"
    guidance: Guidance = "both"
    confidence_thr: Annotated[float, SHARE] = 0.7
    map_seed: Literal["ones", "scores"] = "ones"
    seed_thrs: Annotated[tuple[float, float], SHARE] = (0.005, 0.1)
    seed_balance: Balance = "balanced"
    boundary_loss: Literal["sec", "released", "off"] = "sec"
    crf: CrfOptions = CrfOptions(floor=1e-4)
    evidence_thr: Annotated[float, SHARE] = 0.1
    prior_region: Region = "frame"
    mask_area: AreaPower = "plain"
    negative_weights: Literal["split", "sum"] = "split"
    localization_prior_weight: Annotated[float, NOT_NEGATIVE] = 1.0
    mask_prior_weight: Annotated[float, NOT_NEGATIVE] = 0.1
    entropy_weight: Annotated[float, NOT_NEGATIVE] = 0.0
    guidance_steps: Annotated[int | None, COUNT] = None

    paper: ClassVar[str] = "Shen et al. 2019 (WS-JDS)"
    outputs: ClassVar[frozenset[Output]] = frozenset({"boxes", "masks", "semantic", "image_scores"})
    requires_image: ClassVar[bool] = True
    pool: ClassVar[None] = None  # no cache: the segmentation branch needs the map

    def __post_init__(self):
        background, foreground = self.seed_thrs
        if background >= foreground:
            raise ConfigError(
                f"config.method.seed_thrs is {self.seed_thrs!r}; allowed are (background, foreground) with background "
                "< foreground, such as (0.005, 0.1)"
            )

    def changes_at(self) -> dict[str, tuple[int, ...]]:
        """Return the update at which guidance ends."""
        return {} if self.guidance_steps is None else {"guidance": (self.guidance_steps,)}

    # -- the network

    def init(self, key: jax.Array, batch: Batch) -> tuple[Params, dict]:
        """Draw the parameters; those of detection are WSDDN's for the same key."""
        params, _ = super().init(key, batch)
        maps = self.backbone.apply({"params": params["backbone"]}, batch)["c5"]
        branch = self.segmentation.init(jax.random.fold_in(key, 1), maps, self.num_classes)
        return params | {"segmentation": branch["params"]}, {}

    def start_from(self, params: Params, started: frozenset[str]) -> Params:
        """Return `params` with fc6 and fc7 of the branches sub-sampled from the box head's, if these were read."""
        has_box_head = {"box_head/fc6/kernel", "box_head/fc7/kernel"} <= started
        has_branch = any(path.startswith("segmentation/") for path in started)
        if self.initial == "random" or has_branch or not has_box_head:
            return params
        branch = self.segmentation.from_box_head(
            params["segmentation"], params["box_head"], self.roi_size
        )
        return params | {"segmentation": branch}

    def pooled(self, params: Params, batch: Batch) -> jax.Array:
        """Return the pooled proposals [b, r, p, p, d], masked rows 0."""
        return self.network.apply({"params": params}, batch, method="pooled")

    def segment(
        self, params: Params, maps: FeatureMap, keys: jax.Array | None = None
    ) -> FeatureMap:
        """Return the logits [b, h, w, c] of the segmentation branch."""
        return self.segmentation.apply(
            {"params": params["segmentation"]}, maps, self.num_classes, keys
        )

    def predict(
        self, params: Params, extras: dict, batch: Batch, want: frozenset[Output]
    ) -> Predictions:
        """Return X as scores of the proposals, and S as label probabilities."""
        del extras
        maps = self.backbone.apply({"params": params["backbone"]}, batch)
        scored = self.score(params, batch.replace(features=maps))
        semantic = None
        if "semantic" in want:
            logits = self.segment(params, maps["c5"])
            semantic = logits.replace(features=jax.nn.sigmoid(logits.features))
        return Predictions(
            batch.proposals,
            scored.mil_scores,
            scored.mask,
            scored.image_scores(),
            semantic=semantic,
        )

    # -- training

    def loss(
        self, params: Params, extras: dict, batch: Batch, key: jax.Array, step: jax.Array
    ) -> LossOutput:
        """Score proposals and cells, let each branch guide the other, and supervise both."""
        maps = self.backbone.apply({"params": params["backbone"]}, batch)
        constant, to_image = self.pooled_of_image(params, batch)
        trains = not all(is_frozen(layer, self.backbone.frozen) for layer in self.backbone.layers)
        pooled = self.pooled(params, batch.replace(features=maps)) if trains else constant
        scored = self.score(params, batch.replace(pooled=pooled), key)
        keys = image_keys(jax.random.fold_in(key, 1), batch)
        logits = self.segment(params, maps["c5"], keys)

        is_guiding = True if self.guidance_steps is None else step < self.guidance_steps
        classes = self.confident_classes(scored, batch, is_guiding)
        if self.guidance == "none":
            localization = jnp.zeros((*classes.shape, *batch.image.shape[1:3]))
        else:
            localization = self.maps_of_pooled(params, batch, key, classes, pooled, to_image)
        figures = {"localization_maps": localization, "classes": classes}
        figures["segmentation"] = jax.nn.sigmoid(logits.features)

        if self.guidance in ("both", "to_detection"):
            masks = mask_maps(logits, classes, batch)
            terms = self.prior_terms(scored, localization, masks, classes, batch)
        else:
            terms = {"mil": self.mil_term(scored, batch)}
        if self.guidance in ("both", "to_segmentation"):
            seed = self.seed_losses(logits, localization, classes, batch)
            terms["seed"] = image_term(jnp.where(is_guiding, seed, 0.0), batch)
            if self.boundary_loss != "off":
                terms["boundary"] = image_term(self.boundary_losses(logits, batch), batch)
        else:
            terms["segmentation"] = self.segmentation_term(logits, batch)
        if self.entropy_weight:
            entropy = jax.vmap(score_entropy)(scored.mil_scores, scored.mask, batch.labels)
            terms["entropy"] = image_term(self.entropy_weight * entropy, batch)
        metrics = mil_metrics(scored, batch)
        metrics["confident_classes"] = image_term(jnp.sum(classes >= 0, axis=1), batch)
        return LossOutput(terms, extras, metrics, figures=figures)

    def confident_classes(
        self, scored: ProposalOutputs, batch: Batch, is_guiding: jax.Array | bool
    ) -> Int[Array, "b k"]:
        """Return the classes that guide, ascending, -1 in empty slots: present, with φ_c >= `confidence_thr`."""
        phi = jax.lax.stop_gradient(scored.image_scores())
        guides = (batch.labels == 1) & (phi >= self.confidence_thr)
        guides &= batch.image_mask[:, None] & is_guiding
        return present_classes(guides, self.max_classes)

    def localization_maps(
        self, params: Params, batch: Batch, key: jax.Array | None, classes: Int[Array, "b k"]
    ) -> Float[Array, "b k H W"]:
        """Return G of some classes: the absolute gradient of their scores, relative to its maximum.

        The gradient passes frozen layers and the dropout of `key`, the loss's. A class slot costs a backward pass of
        the batch, without gradients of weights, and nothing if it is empty in all images.

        Args:
          params, batch, key: of the loss; without a key nothing is dropped.
          classes: [b, k], -1 in empty slots, which come last.

        Returns:
          [b, k, H, W] in [0, 1], constant; all 0 for an empty slot, and where the gradient is 0 everywhere.
        """
        pooled, to_image = self.pooled_of_image(params, batch)
        return self.maps_of_pooled(params, batch, key, classes, pooled, to_image)

    def pooled_of_image(
        self, params: Params, batch: Batch
    ) -> tuple[jax.Array, Callable[[jax.Array], tuple[jax.Array]]]:
        """Return the pooled proposals, without gradient to `params`, and from their gradient to that of the pixels."""
        frozen = jax.lax.stop_gradient(params)
        image = jnp.asarray(batch.image).astype(jnp.float32)
        return jax.vjp(lambda image: self.pooled(frozen, batch.replace(image=image)), image)

    def maps_of_pooled(
        self,
        params: Params,
        batch: Batch,
        key: jax.Array | None,
        classes: Int[Array, "b k"],
        pooled: jax.Array,
        to_image: Callable[[jax.Array], tuple[jax.Array]],
    ) -> Float[Array, "b k H W"]:
        """Return `localization_maps`. Scoring `pooled` here is what the loss does, and XLA merges the two."""
        frozen, pooled = jax.lax.stop_gradient((params, pooled))

        def scores_of(pooled: jax.Array) -> jax.Array:
            return self.score(frozen, batch.replace(pooled=pooled), key).mil_scores

        scores, to_pooled = jax.vjp(scores_of, pooled)
        cotangent = jnp.ones_like(scores) if self.map_seed == "ones" else scores

        def add_slot(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            slot, maps = carry
            of_class = jax.nn.one_hot(classes[:, slot], self.num_classes)  # [b, c], 0 for -1
            (gradient,) = to_image(*to_pooled(cotangent * of_class[:, None, :]))
            slope = jnp.max(jnp.abs(gradient), axis=-1)  # [b, H, W]
            peak = jnp.max(slope, axis=(1, 2), keepdims=True)
            return slot + 1, maps.at[:, slot].set(slope / jnp.where(peak > 0, peak, 1.0))

        num_slots = jnp.max(jnp.sum(classes >= 0, axis=1))
        start = jnp.zeros((), jnp.int32), jnp.zeros((*classes.shape, *batch.image.shape[1:3]))
        _, maps = jax.lax.while_loop(lambda carry: carry[0] < num_slots, add_slot, start)
        return jax.lax.stop_gradient(maps)

    def prior_terms(
        self,
        scored: ProposalOutputs,
        localization: Float[Array, "b k H W"],
        masks: Float[Array, "b k H W"],
        classes: Int[Array, "b k"],
        batch: Batch,
    ) -> dict[str, Term]:
        """Return L_prior of the localization maps and of the segmentation maps."""

        def one_image(
            maps: jax.Array, area: AreaPower, row: ProposalOutputs, classes: jax.Array, batch: Batch
        ) -> jax.Array:
            weights = class_weights(
                (maps >= self.evidence_thr) & (maps > 0),
                classes,
                row.mil_scores,
                batch.proposals,
                row.mask,
                batch.image_size,
                region=self.prior_region,
                area=area,
            )
            if self.negative_weights == "sum":
                return self.mil_loss(jnp.sum(weights * row.mil_scores, axis=0), batch.labels)
            positive = jnp.sum(jnp.maximum(weights, 0.0) * row.mil_scores, axis=0)
            negative = jnp.sum(jnp.maximum(-weights, 0.0) * row.mil_scores, axis=0)
            nothing = jnp.where(batch.labels >= 0, 0, -1)
            return self.mil_loss(positive, batch.labels) + self.mil_loss(negative, nothing)

        terms = {}
        for name, maps, area, weight in (
            ("localization", localization, "root", self.localization_prior_weight),
            ("mask", masks, self.mask_area, self.mask_prior_weight),
        ):
            losses = jax.vmap(lambda maps, *rest, area=area: one_image(maps, area, *rest))(
                maps, scored, classes, batch.replace(image=None, features=None)
            )
            terms[f"prior_{name}"] = image_term(weight * losses, batch)
        return terms

    def seed_losses(
        self,
        logits: FeatureMap,
        localization: Float[Array, "b k H W"],
        classes: Int[Array, "b k"],
        batch: Batch,
    ) -> Float[Array, " b"]:
        """Return L_seed of every image, at the image's resolution, one class after the other."""
        background, foreground = self.seed_thrs
        shape = localization.shape[2:]

        def one_image(
            cells: jax.Array,
            valid: jax.Array,
            maps: jax.Array,
            classes: jax.Array,
            labels: jax.Array,
            inside: jax.Array,
        ) -> jax.Array:
            @jax.checkpoint  # keeps one class's pixels in memory
            def of_class(index: jax.Array) -> jax.Array:
                is_slot = classes == index
                found = maps[jnp.argmax(is_slot)]
                seeds = seeds_of_map(
                    found,
                    jnp.any(is_slot) & (jnp.max(found) > 0),  # a map of zeros says nothing
                    labels[index] == 1,
                    inside & (labels[index] >= 0),
                    fg_thr=foreground,
                    bg_thr=background,
                )
                scores = upsample(cells[..., index], valid, logits.stride, shape)
                return seed_loss(scores, seeds, self.seed_balance)

            return jnp.sum(jax.lax.map(of_class, jnp.arange(self.num_classes)))

        inside = valid_mask(batch.image_size, *shape)[..., 0]
        return jax.vmap(one_image)(
            logits.features, logits.size, localization, classes, batch.labels, inside
        )

    def boundary_losses(self, logits: FeatureMap, batch: Batch) -> Float[Array, " b"]:
        """Return L_boundary of every image, on the cells of the map."""
        scores = jax.nn.sigmoid(logits.features)
        shape = scores.shape[1:3]
        mask = valid_mask(logits.size, *shape)[..., 0]
        image = jax.vmap(lambda one, size: average_cells(one, size, int(logits.stride), shape))(
            jnp.asarray(batch.image), batch.image_size
        )
        if self.boundary_loss == "released":
            everything = jnp.ones(batch.labels.shape, bool)
            labels = jax.vmap(label_probabilities)(scores, everything)
            counts = jnp.ones((len(labels), labels.shape[-1]), bool)
            refined = self.refine(labels, image, logits.size, counts)
            return jax.vmap(balanced_boundary_loss)(scores, refined[..., 1:], mask)
        present = present_classes(batch.labels == 1, self.max_classes)
        chosen = jax.vmap(lambda one, index: one[..., index])(scores, present)
        labels = jax.vmap(label_probabilities)(chosen, present >= 0)
        counts = jnp.pad(present >= 0, ((0, 0), (1, 0)), constant_values=True)
        refined = self.refine(labels, image, logits.size, counts)
        return jax.vmap(boundary_loss)(labels, refined, mask)

    def refine(
        self, labels: jax.Array, image: jax.Array, size: jax.Array, counts: jax.Array
    ) -> Float[Array, "b h w k"]:
        """Return the CRF's probabilities of every image, computed where the image lies."""

        def one_image(*row: jax.Array) -> jax.Array:
            labels, image, size, counts = (x[None] for x in row)
            return dense_crf(labels, image, size, self.crf, label_mask=counts)[0]

        return jax.vmap(one_image)(labels, image, size, counts)

    def segmentation_term(self, logits: FeatureMap, batch: Batch) -> Term:
        """Return the image-label loss of the mean logits, by which an unguided segmentation branch learns."""
        mask = valid_mask(logits.size, *logits.features.shape[1:3])
        scores = jax.nn.sigmoid(masked_mean(logits.features, mask, axis=(1, 2)))
        return image_term(jax.vmap(self.mil_loss)(scores, batch.labels), batch)
