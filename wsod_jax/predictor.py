"""A trained detector and the way it is tested: views of a set, their predictions merged, boxes selected, maps read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np

from wsod_jax import build
from wsod_jax.config import EvalOptions, RunConfig
from wsod_jax.data.loading import Loading
from wsod_jax.data.pipeline import ViewStream, view_batches
from wsod_jax.data.proposals import ProposalSet
from wsod_jax.data.records import GroundTruth, ImageSet
from wsod_jax.data.transforms import ProposalRules
from wsod_jax.errors import DataError
from wsod_jax.evaluation.inference import MergedImage, infer
from wsod_jax.evaluation.maps import Located, claims_above, claims_best, locate
from wsod_jax.evaluation.metrics.average_precision import DetectionMetrics, evaluate_detections
from wsod_jax.evaluation.metrics.corloc import CorLocMetrics, corloc
from wsod_jax.evaluation.metrics.ilsvrc import ILSVRC_GUESSES
from wsod_jax.evaluation.metrics.tables import DetectionTable, TruthTable
from wsod_jax.evaluation.selection import Results, select
from wsod_jax.methods.base import Method
from wsod_jax.train.distributed import refuse_several
from wsod_jax.types import Batch, Params, Predictions

Purpose = Literal["map", "corloc"]


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained detector and the way it is tested.

    Attributes:
      config: of its run, with the changes it was opened with.
      method: what predicts.
      params, extras: its state.
      class_names: c names.
      settings: views, NMS and metrics: `config.eval`, unless replaced.
      metadata: what its checkpoint tells of the run, with "step"; {} while it is trained.
      predict_step: the method's predict function, jitted, (params, extras, batch, want) -> `Predictions` with
        `want` a frozenset; one compilation per canvas.
    """

    config: RunConfig
    method: Method
    params: Params
    extras: dict
    class_names: tuple[str, ...]
    settings: EvalOptions
    metadata: dict[str, Any]
    predict_step: Callable[[Params, dict, Batch, frozenset[str]], Predictions]

    @classmethod
    def configured(
        cls,
        config: RunConfig,
        method: Method,
        params: Params,
        extras: dict,
        class_names: tuple[str, ...],
        metadata: dict[str, Any] | None = None,
    ) -> Predictor:
        """Return a predictor that tests as a configuration says."""
        step = jax.jit(method.predict, static_argnums=3)
        return cls(config, method, params, extras, class_names, config.eval, metadata or {}, step)

    @property
    def rules(self) -> ProposalRules | None:
        """Which proposals are used, `None` for methods that use none."""
        return None if self.config.proposals is None else self.config.proposals.rules

    def num_compilations(self) -> int:
        """Return how often the predict step has been compiled."""
        return self.predict_step._cache_size()

    def with_weights(self, params: Params, extras: dict) -> Predictor:
        """Return the same detector with the weights of another checkpoint; nothing is compiled anew."""
        return dataclasses.replace(self, params=params, extras=extras)

    def changed(self, changes: Sequence[str]) -> Predictor:
        """Return the same weights tested otherwise, as `runs.load_run` with these changes would."""
        config = build.change(self.config, changes)
        count = len(self.class_names)
        method = build.method(config, num_classes=count, max_classes=count, max_targets=1)
        found = Predictor.configured(
            config, method, self.params, self.extras, self.class_names, self.metadata
        )
        return dataclasses.replace(found, settings=self.settings)

    def one_view(self) -> Predictor:
        """Return the same detector seeing every image once, at the first scale, unmirrored."""
        settings = dataclasses.replace(
            self.settings, scales=self.settings.scales[:1], flips=(False,)
        )
        return dataclasses.replace(self, settings=settings)

    def views(
        self, images: ImageSet, proposals: ProposalSet | None, purpose: Purpose = "map"
    ) -> ViewStream:
        """Return the batches of all views of a set; refused where there are several processes."""
        refuse_several("prediction of a set")
        return view_batches(
            images,
            proposals,
            canvases=self.settings.canvases(purpose),
            flips=self.settings.flips,
            batch_size=self.settings.micro_batch,
            rules=self.rules,
            loading=Loading(loader=self.settings.loader),
        )

    def candidates(self, batches: Iterable[Batch]) -> Iterator[MergedImage]:
        """Predict batches of `views`; yield every image's candidate boxes with scores, all views merged."""
        return infer(
            lambda batch: self.predict_step(
                self.params, self.extras, batch, frozenset(self.method.outputs)
            ),
            batches,
            num_views=self.settings.num_views,
            merge=self.settings.merge,
        )

    def select(self, candidates: Iterable[MergedImage], num_images: int) -> Results:
        """Select the detections of a set out of its candidates, as the settings define it."""
        return select(
            candidates,
            num_images=num_images,
            num_classes=len(self.class_names),
            top_k=self.settings.top_k,
            nms_thr=self.settings.nms_thr,
            score_thr=self.settings.score_thr,
            average_per_image=self.settings.average_per_image,
        )

    def detect(
        self,
        images: ImageSet,
        proposals: ProposalSet | None,
        purpose: Purpose = "map",
        progress: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
    ) -> Results:
        """Detect in a whole set: all views, merged, selected.

        Args:
          images: the images; labels are not looked at.
          proposals: their proposals.
          purpose: which resize rule of the settings applies.
          progress: wraps the iterable of batches, to show how far it is.

        Returns:
          Detections, top boxes per class, image-level scores, and what the input met.
        """
        views = self.views(images, proposals, purpose)
        results = self.select(self.candidates(progress(views)), len(images))
        return dataclasses.replace(results, counts=views.counts)

    def locate(
        self,
        images: ImageSet,
        wanted: np.ndarray | None = None,
        purpose: Purpose = "map",
        progress: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
        keep_responses: int = 0,
    ) -> Located:
        """Read points and boxes off the maps of a whole set.

        Args:
          images: the images; labels are not looked at.
          wanted: [n, c] bool, classes to examine beside the predicted ones; `None` for no others.
          purpose: which resize rule of the settings applies.
          progress: wraps the iterable of batches, to show how far it is.
          keep_responses: keep the response maps of so many of the first images, to draw them.
        """
        views = self.views(images, None, purpose)
        single, maps = self.method.single_label, self.settings.maps
        located = locate(
            self.candidates(progress(views)),
            np.array([(record.height, record.width) for record in images.records]),
            num_classes=len(self.class_names),
            wanted=wanted,
            claims=claims_best if single else claims_above(maps.predicted_thr),
            reading=maps.reading,
            num_best=ILSVRC_GUESSES if single else 0,
            keep_responses=keep_responses,
            separate_views=self.settings.merge == "union" and self.settings.num_views > 1,
        )
        counts = {**views.counts, "smaller_than_a_cell": int(located.too_small.sum())}
        return dataclasses.replace(located, counts=counts)

    def score(self, detections: DetectionTable, truth: TruthTable) -> DetectionMetrics:
        """Return average precision as the settings define it."""
        return score_detections(detections, truth, self.settings)

    def localise(self, results: Results, truth: TruthTable) -> CorLocMetrics:
        """Return CorLoc as the settings define it."""
        return corloc(
            results.top_boxes,
            results.top_valid,
            truth,
            include_difficult=self.settings.corloc_difficult,
        )


def score_detections(
    detections: DetectionTable, truth: TruthTable, settings: EvalOptions
) -> DetectionMetrics:
    """Return average precision as the settings define it."""
    return evaluate_detections(detections, truth, iou_thrs=settings.iou_thrs, ap_mode=settings.ap)


def truth_table(images: ImageSet, truth: GroundTruth) -> TruthTable:
    """Return the ground truth of a set as the evaluators read it."""
    selected = truth.select(images.image_ids)
    return TruthTable.from_annotations(selected.boxes.values(), num_classes=len(truth.class_names))


def check_classes(images: ImageSet, class_names: tuple[str, ...]) -> None:
    """Raise `DataError` if the data's classes are not the checkpoint's."""
    if images.class_names != class_names:
        raise DataError(
            f"{images.name} has classes {', '.join(images.class_names)}, but the checkpoint was trained "
            f"for {', '.join(class_names)}; choose the data or the checkpoint that fits"
        )
