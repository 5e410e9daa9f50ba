"""The section `eval` of a configuration: how a detector is tested."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from wsod_jax.data.input.transforms import Canvases, Resize
from wsod_jax.errors import ConfigError, error_prefix
from wsod_jax.evaluation.decoding import Decoding, Merge
from wsod_jax.evaluation.maps import MapReading
from wsod_jax.evaluation.metrics.average_precision import IOU_SWEEP, ApMode
from wsod_jax.evaluation.metrics.ilsvrc import ILSVRC_GUESSES
from wsod_jax.ops.cam import BoxMode, Resizing
from wsod_jax.ops.crf import CrfOptions
from wsod_jax.options import COUNT, NOT_NEGATIVE, SHARE

EvaluatorName = Literal[
    "boxes", "coco", "corloc", "classification", "pointing", "energy", "ilsvrc",
    "masks", "coco_masks", "miou", "pseudo",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MapOptions:
    """How points and boxes are read off the maps of a method without proposals, and judged.

    Attributes:
      upsampling: from cells to pixels of the original image, see `ops.cam.resize_map`.
      threshold: a pixel is foreground where a class's activation is at least this times its mean.
      connectivity: 4 or 8, of the pixels of one component.
      boxes: which boxes predictions.json holds: the "tightest" around all foreground of a class, or one for
        each of its "components".
      nms_thr: boxes that several views or several detectors found of one class are removed where their IoU with a
        better one exceeds this, or their score is <= 0.
      min_side_px: they are removed too where a side is shorter than this, in pixels of the original image.
      join: whether small boxes are removed before NMS, and so suppress nothing, or after it, as in the released code.
      predicted_thr: a class is predicted where its score exceeds this (sigmoid; softmax predicts the best class).
      pointing_px: a point this close to an object's box is a hit, in pixels of the original image.
      prediction_px: the same where points are ranked by class scores.
    """

    upsampling: Resizing = "align_corners"
    threshold: Annotated[float, NOT_NEGATIVE] = 1.0
    connectivity: Literal[4, 8] = 4
    boxes: BoxMode = "tightest"
    nms_thr: Annotated[float, SHARE] = 0.7
    min_side_px: Annotated[float, NOT_NEGATIVE] = 50.0
    join: Literal["filter_first", "nms_first"] = "filter_first"
    predicted_thr: Annotated[float, SHARE] = 0.5
    pointing_px: Annotated[float, NOT_NEGATIVE] = 15.0
    prediction_px: Annotated[float, NOT_NEGATIVE] = 18.0


@dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """How instance masks and label maps are made, and judged.

    Attributes:
      threshold: a pixel belongs to an object from this probability on.
      iou_thrs: a mask needs IoU > this.
      semantic_threshold: a pixel is background where no class's probability exceeds this.
      semantic_scales: label maps are made of the views of these scales alone; `None` uses all. Each is one of the
        pass's scales.
      semantic_flips: and of these mirrorings; `None` uses all.
      crf: the dense CRF that refines the probabilities of label maps, and of masks that are cut from them, at up to 500
        pixels per side; `None` for none.
    """

    threshold: Annotated[float, SHARE] = 0.5
    iou_thrs: Annotated[tuple[float, ...], SHARE] = (0.25, 0.5, 0.7, 0.75)
    semantic_threshold: Annotated[float, SHARE] = 0.5
    semantic_scales: Annotated[tuple[int, ...] | None, COUNT] = None
    semantic_flips: tuple[bool, ...] | None = None
    crf: CrfOptions | None = None


@dataclass(frozen=True, kw_only=True)
class PassOptions:
    """A further pass over a split: what it does otherwise than the section that it stands in, `None` for nothing.

    Attributes:
      split, evaluators, scales, flips, resize, merge, top_k, max_per_image, score_thr, nms_thr, ap, iou_thrs, masks: as
        in `eval`, for this pass alone; `None` takes what `eval` says.
    """

    split: str | None = None
    evaluators: tuple[EvaluatorName, ...] | None = None
    scales: Annotated[tuple[int, ...] | None, COUNT] = None
    flips: tuple[bool, ...] | None = None
    resize: Resize | None = None
    merge: Merge | None = None
    top_k: Annotated[int | None, COUNT] = None
    max_per_image: Annotated[int | None, COUNT] = None
    score_thr: float | None = None
    nms_thr: Annotated[float | None, SHARE] = None
    ap: ApMode | None = None
    iou_thrs: Annotated[tuple[float, ...] | None, SHARE] = None
    masks: MaskOptions | None = None


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """How a detector is tested: one pass over the test split, and further passes that differ in some of these options.

    Every option is printed in the report.

    Attributes:
      split: the split predicted; `None` is `data.test_split`.
      evaluators: what is measured; `None` measures all that the method's outputs and the split's annotations allow,
        but CorLoc, COCO's numbers and pseudo boxes, which are measured where they are named.
      scales: side lengths of the views in pixels, at most 32; each image is seen len(scales) * len(flips) times.
      flips: whether the views are mirrored.
      resize: which side a scale means: the "short" or the "long" one, or both sides, with "warp".
      max_long: no side exceeds this, in pixels.
      aspect: the length of a canvas divided by the scale, see `Canvases`.
      micro_batch: images per forward pass; more where the devices are more.
      merge: how views meet: "mean" or "sum" of scores, or the "union" of their detections.
      top_k: best boxes kept per class and image before NMS.
      max_per_image: best boxes kept per image over all classes, after NMS and all thresholds; `None` keeps all.
      average_per_image: per class, keep this many boxes per image on average over the data set,
        by one threshold; `None` keeps all of `top_k`.
      score_thr: scores above this are kept; `None` keeps all. -1 in a pass keeps all as well, scores being >= 0.
      nms_thr: boxes with IoU > this to a better one are removed.
      ap: the rule of average precision: "11point" (exact recall thresholds), "11point_devkit" (its rounding too),
        "area" (VOC's rule from 2010 on), or "ranking" (without interpolation, as the released code of SPN).
      classification_ap: the same for classes of images, `classification mAP`; `None` is `ap`.
      iou_thrs: a detection needs IoU > this; the first one is the headline. "sweep" stands for
        0.50, 0.55 ... 0.95. 0.75 is always measured.
      corloc_difficult: difficult objects count as hits and in the denominator.
      loader: as in training.
      maps: of methods that predict maps.
      masks: of methods that predict masks or label maps.
      passes: name -> what a further pass does otherwise; CorLoc has one of its own, since papers measure it on the
        training split.
    """

    split: str | None = None
    evaluators: tuple[EvaluatorName, ...] | None = None
    scales: Annotated[tuple[int, ...], COUNT] = (480, 576, 688, 864, 1200)
    flips: tuple[bool, ...] = (False, True)
    resize: Resize = "short"
    max_long: Annotated[int, COUNT] = 2000
    aspect: Annotated[float, COUNT] = 1.5
    micro_batch: Annotated[int, COUNT] = 1
    merge: Merge = "mean"
    top_k: Annotated[int, COUNT] = 100
    max_per_image: Annotated[int | None, COUNT] = None
    average_per_image: Annotated[int | None, COUNT] = None
    score_thr: float | None = None
    nms_thr: Annotated[float, SHARE] = 0.3
    ap: ApMode = "11point"
    classification_ap: ApMode | None = None
    iou_thrs: Annotated[tuple[float, ...], SHARE] | Literal["sweep"] = (0.5,)
    corloc_difficult: bool = True
    loader: Literal["tf", "threads"] = "threads"
    maps: MapOptions = MapOptions()
    masks: MaskOptions = MaskOptions()
    passes: Mapping[str, PassOptions] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Resolve "sweep"; raise `ConfigError` for what is empty or cannot be."""
        if self.iou_thrs == "sweep":
            object.__setattr__(self, "iou_thrs", IOU_SWEEP)
        for name, example in (("iou_thrs", (0.5,)), ("flips", (False, True))):
            if not getattr(self, name):
                raise ConfigError(
                    f"config.eval.{name} is empty; it needs at least one, as in {example}"
                )
        for name, given in (
            ("scales", self.masks.semantic_scales),
            ("flips", self.masks.semantic_flips),
        ):
            if given is not None and not set(given) <= set(getattr(self, name)):
                raise ConfigError(
                    f"config.eval.masks.semantic_{name} is {given}; allowed are those of config.eval.{name}, "
                    f"{getattr(self, name)}"
                )
        with error_prefix("config.eval."):
            self.canvases  # noqa: B018  (impossible scales are an error here)
        for name in self.passes:
            if name == "test" or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ConfigError(
                    f"config.eval.passes has a pass {name!r}; allowed are names of letters, digits, _ and -, but not "
                    "'test', which is the first pass"
                )
            try:
                self.of_pass(name)
            except ConfigError as error:
                place = f"config.eval.passes.{name}."
                raise ConfigError(str(error).replace("config.eval.", place, 1)) from None

    @property
    def canvases(self) -> Canvases:
        """The static shapes of test images."""
        return Canvases(self.scales, self.resize, self.max_long, self.aspect)

    @property
    def num_views(self) -> int:
        """Views per image."""
        return len(self.scales) * len(self.flips)

    def of_pass(self, name: str) -> EvalOptions:
        """Return what a further pass does, as options of its own; raise `ConfigError` if there is no such pass."""
        if name not in self.passes:
            raise ConfigError(
                f"there is no pass {name!r}; those of config.eval.passes are {', '.join(self.passes) or 'none'}"
            )
        changed = {
            key: value for key, value in vars(self.passes[name]).items() if value is not None
        }
        return dataclasses.replace(self, **changed, passes={})

    def wants(self, outputs: frozenset[str]) -> tuple[frozenset[str], ...]:
        """Return what is wanted of each view, scales in the outer and flips in the inner loop."""
        scales = self.scales if self.masks.semantic_scales is None else self.masks.semantic_scales
        flips = self.flips if self.masks.semantic_flips is None else self.masks.semantic_flips
        return tuple(
            outputs if scale in scales and flip in flips else outputs - {"semantic"}
            for scale in self.scales
            for flip in self.flips
        )

    def decoding(self, *, is_single_label: bool) -> Decoding:
        """Return how predictions become results."""
        maps = self.maps
        reading = MapReading(
            upsampling=maps.upsampling,
            threshold=maps.threshold,
            connectivity=maps.connectivity,
            boxes=maps.boxes,
            nms_thr=maps.nms_thr,
            min_side_px=maps.min_side_px,
            is_nms_first=maps.join == "nms_first",
            predicted_thr=None if is_single_label else maps.predicted_thr,
            num_best=ILSVRC_GUESSES if is_single_label else 1,
            separate_views=self.merge == "union" and self.num_views > 1,
        )
        return Decoding(
            merge=self.merge,
            top_k=self.top_k,
            max_per_image=self.max_per_image if self.average_per_image is None else None,
            score_thr=-math.inf if self.score_thr is None else self.score_thr,
            nms_thr=self.nms_thr,
            mask_thr=self.masks.threshold,
            semantic_thr=self.masks.semantic_threshold,
            crf=self.masks.crf,
            reading=reading,
            with_candidates=self.average_per_image is not None,
        )
