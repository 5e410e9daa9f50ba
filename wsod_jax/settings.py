"""The settings of a run that no single constructor takes: how it trains, what it writes, how it is tested."""

from __future__ import annotations

import dataclasses
from typing import Literal

from wsod_jax.data.transforms import Canvases, Resize
from wsod_jax.errors import ConfigError
from wsod_jax.evals.maps import MapReading
from wsod_jax.evals.response import BoxMode, Resizing
from wsod_jax.evals.voc import IOU_SWEEP
from wsod_jax.ops.soft_proposal import Solver


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How a run trains.

    Attributes:
      num_steps: optimiser updates.
      micro_batch: images per forward pass, over all devices.
      accumulate: forward passes per update; micro_batch * accumulate is the batch size.
      scales, resize, max_long, aspect: see `Canvases`; a scale is drawn per micro-batch.
      crop_margin: resize to scale + crop_margin, and cut out a random window of the scale, drawn anew in
        every epoch; see `Canvases`. For methods without proposals; 0 shows whole images.
      flip: mirror an image with probability 1/2, drawn anew in every epoch.
      loader: "tf" (tf.data) or "threads" (no TensorFlow needed).
      ema_decay: keep a running average of the parameters; `None` keeps none.
      cache_features: keep the feature maps of a wholly frozen backbone in memory.
    """

    num_steps: int
    micro_batch: int = 1
    accumulate: int = 1
    scales: tuple[int, ...] = (480, 576, 688, 864, 1200)
    resize: Resize = "short"
    max_long: int = 2000
    aspect: float = 1.5
    crop_margin: int = 0
    flip: bool = True
    loader: Literal["tf", "threads"] = "tf"
    ema_decay: float | None = None
    cache_features: bool = False

    def __post_init__(self):
        self.canvases  # noqa: B018  (impossible scales are an error here, not when the first image comes)
        if self.crop_margin and self.cache_features:
            raise ConfigError(
                f"config.train.crop_margin is {self.crop_margin}, and every random window has another feature "
                "map, so config.train.cache_features saves nothing; set it to False, or crop_margin to 0"
            )

    @property
    def canvases(self) -> Canvases:
        """The static shapes of training images."""
        return Canvases(
            self.scales, self.resize, self.max_long, self.aspect, crop_margin=self.crop_margin
        )


@dataclasses.dataclass(frozen=True)
class LogSettings:
    """What a run writes, and how often, in updates.

    Attributes:
      every: a line on the console and in metrics.jsonl; at least 1.
      checkpoint_every: a checkpoint; the latest two are kept. At least 1.
      milestones_every: checkpoints kept for good (step 0 always is), for figures over training; a multiple
        of `checkpoint_every`, or 0 for none.
      pictures_every: pictures of fixed training images with their pseudo boxes, also in TensorBoard; 0 for
        none.
      num_pictures: how many images.
      best: also keep the checkpoint where this score of `data.val_split` is best; it is measured as
        `eval` says at every checkpoint but the first. `None` measures nothing while training.
      tensorboard: write TensorBoard event files too.
      profile_steps: (first, last) update to profile into the workdir, or ().
    """

    every: int = 20
    checkpoint_every: int = 1000
    milestones_every: int = 0
    pictures_every: int = 0
    num_pictures: int = 8
    best: Literal["mAP50"] | None = None
    tensorboard: bool = True
    profile_steps: tuple[int, ...] = ()

    def __post_init__(self):
        if self.milestones_every % self.checkpoint_every:
            raise ConfigError(
                f"config.log.milestones_every is {self.milestones_every}, but only checkpoints can be kept, and "
                f"those are made every {self.checkpoint_every} updates; set it to a multiple of "
                "config.log.checkpoint_every, or to 0"
            )


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """How detections and CorLoc are measured. Every field is printed in the report.

    Attributes:
      scales, flips: the views; each image is seen len(scales) * len(flips) times.
      resize: which side a scale means when mAP is measured: the "short" or the "long" one, or both sides,
        with "warp".
      corloc_resize: the same for CorLoc.
      corloc_split: split whose images CorLoc is measured on; `None` skips it.
      corloc_difficult: difficult objects count as hits and in the denominator.
      max_long, aspect: see `Canvases`.
      micro_batch: images per forward pass.
      merge: how views meet: "mean" or "sum" of scores, or the "union" of their boxes.
      top_k: best boxes kept per class and image before NMS.
      average_per_image: per class, keep this many boxes per image on average over the data set,
        by one threshold; `None` keeps all of `top_k`.
      score_thr: lowest score kept, or `None`.
      nms_thr: boxes with IoU > this to a better one are removed.
      ap: "11point" (exact recall thresholds), "11point_devkit" (its rounding too) or "area".
      iou_thrs: a detection needs IoU > this; the first one is the headline. "sweep" stands for
        0.50, 0.55 ... 0.95.
      loader: "threads" or "tf".
    """

    scales: tuple[int, ...] = (480, 576, 688, 864, 1200)
    flips: tuple[bool, ...] = (False, True)
    resize: Resize = "short"
    corloc_resize: Resize = "long"
    corloc_split: str | None = "trainval"
    corloc_difficult: bool = True
    max_long: int = 2000
    aspect: float = 1.5
    micro_batch: int = 1
    merge: Literal["mean", "sum", "union"] = "mean"
    top_k: int = 100
    average_per_image: int | None = None
    score_thr: float | None = None
    nms_thr: float = 0.3
    ap: Literal["11point", "11point_devkit", "area"] = "11point"
    iou_thrs: tuple[float, ...] | Literal["sweep"] = (0.5,)
    loader: Literal["tf", "threads"] = "threads"

    def __post_init__(self):
        if isinstance(self.iou_thrs, str):
            if self.iou_thrs != "sweep":
                raise ConfigError(
                    f"config.eval.iou_thrs is {self.iou_thrs!r}; allowed are thresholds such as "
                    "(0.5, 0.75), and 'sweep' for 0.50, 0.55 ... 0.95"
                )
            object.__setattr__(self, "iou_thrs", IOU_SWEEP)
        for name, example in (("iou_thrs", (0.5,)), ("flips", (False, True))):
            if not getattr(self, name):
                raise ConfigError(
                    f"config.eval.{name} is empty; it needs at least one, as in {example}"
                )
        self.canvases("map"), self.canvases("corloc")  # impossible scales are an error here

    def canvases(self, purpose: Literal["map", "corloc"]) -> Canvases:
        """The static shapes of test images, for mAP or for CorLoc."""
        resize = self.resize if purpose == "map" else self.corloc_resize
        return Canvases(self.scales, resize, self.max_long, self.aspect)

    @property
    def num_views(self) -> int:
        """Views per image."""
        return len(self.scales) * len(self.flips)


@dataclasses.dataclass(frozen=True)
class LocalizationSettings:
    """How points and boxes are read off the maps of a method without proposals, and judged.

    Attributes:
      solver: how the proposal map is found at test; `None`: as in training. "uniform" gives class activation
        maps with the same weights.
      upsampling: from cells to pixels of the original image, see `evals.response.resize_map`.
      threshold: a pixel is foreground where a class's response is at least this times its mean.
      connectivity: 4 or 8, of the pixels of one component.
      boxes: which boxes predictions.json holds: the "tightest" around all foreground of a class, or one for
        each of its "components".
      nms_thr, min_side_px: of boxes that several views or several detectors found of one class: those with IoU >
        nms_thr to a better one, with a score <= 0, or with a side below min_side_px are removed.
      predicted_thr: a class is predicted where its score exceeds this (sigmoid; softmax predicts the best class).
      pointing_px: a point this close to an object's box is a hit, in pixels of the original image.
      prediction_px: the same where points are ranked by class scores.
    """

    solver: Solver | None = None
    upsampling: Resizing = "align_corners"
    threshold: float = 1.0
    connectivity: Literal[4, 8] = 4
    boxes: BoxMode = "tightest"
    nms_thr: float = 0.7
    min_side_px: float = 50.0
    predicted_thr: float = 0.5
    pointing_px: float = 15.0
    prediction_px: float = 18.0

    @property
    def reading(self) -> MapReading:
        """How maps are read."""
        return MapReading(self.upsampling, self.threshold, self.connectivity)
