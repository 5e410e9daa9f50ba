"""Runs: what one trains on, training it in its workdir, and opening it again."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from wsod_jax import build
from wsod_jax.build import CUES, METHODS
from wsod_jax.config import LogOptions, RunConfig, TrainOptions
from wsod_jax.data.arrays import FeatureCache
from wsod_jax.data.assembling import SkipPixels
from wsod_jax.data.pipeline import TrainStream, train_batches, view_batches
from wsod_jax.data.proposals import ProposalSet
from wsod_jax.data.records import (
    BoxSet,
    ImageSet,
    check_single_label,
    is_single_label,
    training_images,
)
from wsod_jax.data.transforms import ProposalRules
from wsod_jax.errors import ConfigError
from wsod_jax.evals.voc import evaluate_detections
from wsod_jax.methods.base import Method
from wsod_jax.overrides import may_differ
from wsod_jax.predictor import (  # noqa: F401  (what users of a run need beside it)
    Predictor,
    Purpose,
    check_classes,
    rule_arguments,
    score_detections,
    truth_table,
)
from wsod_jax.train import loop
from wsod_jax.train.checkpoint import Checkpoints, load_checkpoint
from wsod_jax.train.distributed import is_first
from wsod_jax.train.identity import run_metadata
from wsod_jax.train.logging import ConsoleWriter, JsonlWriter, TensorBoardWriter
from wsod_jax.train.sharding import fetch, make_mesh
from wsod_jax.train.state import TrainState, init_state
from wsod_jax.train.step import TrainStep
from wsod_jax.types import Batch
from wsod_jax.viz.canvas import save_image
from wsod_jax.viz.pictures import draw_pseudo_labels

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """A training split: images with labels, boxes where the method trains on boxes, and proposals.

    Attributes:
      image_set: the images; those with at least one positive label, where there are no boxes.
      boxes: the same images with boxes, for methods whose stream has them, else `None`.
      proposals: `None` for methods without.
      rules: which proposals are used, `None` likewise.
      settings: how they are batched.
      seed: of order and augmentation.
    """

    image_set: ImageSet
    boxes: BoxSet | None
    proposals: ProposalSet | None
    rules: ProposalRules | None
    settings: TrainOptions
    seed: int

    @classmethod
    def read(cls, config: RunConfig) -> TrainingData:
        """Read what a configuration trains on, and check that it suits the method.

        Raises:
          ConfigError: if the method needs other streams, or boxes that the reader does not have.
          DataError: if the data cannot be read, or its labels are not the method's.
        """
        method = build.method(config, num_classes=1, max_classes=1, max_targets=1)
        split, boxes = config.data.train_split, None
        if method.supervision.get("train") == "boxes" and config.data.has_boxes:
            boxes = config.data.boxes(split)
        images = training_images(config.data.images(split)) if boxes is None else boxes.images
        check_streams(method, {"train": images if boxes is None else boxes})
        check_labels(method, images)
        rules = None if config.proposals is None else config.proposals.rules
        return cls(images, boxes, read_proposals(config), rules, config.train, config.seed)

    @property
    def max_classes(self) -> int:
        """The most positive classes that an image has: what miners size their loops by."""
        return int((self.image_set.label_vectors[0] == 1).sum(axis=1).max())

    @property
    def max_targets(self) -> int:
        """The most boxes that an image has; 1 without boxes."""
        return 1 if self.boxes is None else self.boxes.max_targets

    def batches(self, start_step: int = 0, skip_pixels: SkipPixels | None = None) -> TrainStream:
        """Return the endless stream of updates from `start_step` on, a list of micro-batches each.

        Images for which `skip_pixels` says so are not decoded: their features are cached.
        """
        return train_batches(
            self.image_set if self.boxes is None else self.boxes,
            self.proposals,
            canvases=self.settings.canvases,
            batch_size=self.settings.micro_batch,
            accumulate=self.settings.accumulate,
            flip=self.settings.flip,
            seed=self.seed,
            start_step=start_step,
            loader=self.settings.loader,
            skip_pixels=skip_pixels,
            **rule_arguments(self.rules),
        )

    def example(self) -> Batch:
        """Return one micro-batch, for its shapes."""
        stream = self.batches()
        first = next(stream)[0]
        stream.close()
        return first

    def fixed_batches(self, count: int) -> list[Batch]:
        """Return the first `count` images at the first scale, unmirrored, one image per batch."""
        if count == 0:
            return []
        canvases = dataclasses.replace(self.settings.canvases, scales=self.settings.scales[:1])
        stream = view_batches(
            self.image_set.select(range(min(count, len(self.image_set)))),
            self.proposals,
            canvases=canvases,
            flips=(False,),
            batch_size=1,
            loader="threads",
            **rule_arguments(self.rules),
        )
        return list(stream)


def check_streams(method: Method, streams: Mapping[str, ImageSet | BoxSet]) -> None:
    """Raise `ConfigError` unless the data are the streams that a method trains on, with boxes where it says so.

    Args:
      method: its `supervision` names the streams, each of kind "image" or "boxes".
      streams: name -> what is read; a `BoxSet` is a stream with boxes.
    """
    name, wanted = type(method).__name__, method.supervision
    missing = [stream for stream in wanted if stream not in streams]
    if missing:
        raise ConfigError(
            f"{name} trains on the streams {', '.join(wanted)}, but the data have {', '.join(streams)}: nothing "
            f"is read for {', '.join(missing)}"
        )
    extra = [stream for stream in streams if stream not in wanted]
    if extra:
        raise ConfigError(
            f"the data have the streams {', '.join(streams)}, but {name} trains on {', '.join(wanted)}: it would "
            f"never see {', '.join(extra)}"
        )
    for stream, data in streams.items():
        has_boxes = isinstance(data, BoxSet)
        if has_boxes and wanted[stream] != "boxes":
            raise ConfigError(
                f"stream {stream!r} of {name} has labels per image alone, but was handed a set of boxes "
                f"({data.source}); hand it the set's images"
            )
        if not has_boxes and wanted[stream] == "boxes":
            raise ConfigError(
                f"stream {stream!r} of {name} trains on boxes, but {data.name} was read without; use a reader that "
                "has boxes, such as voc or coco"
            )


def check_labels(method: Method, image_set: ImageSet) -> None:
    """Raise `DataError` if a method's softmax meets an image without exactly one class; log the reverse."""
    if method.single_label:
        check_single_label(image_set)
    elif hasattr(method, "activation") and is_single_label(image_set):
        logger.warning(
            "%s: every image shows one class; config.method.activation='softmax' makes use of that",
            image_set.name,
        )


def read_proposals(config: RunConfig) -> ProposalSet | None:
    """Load the proposals; `None` for methods that use none."""
    return None if config.proposals is None else ProposalSet.load(config.proposals.path)


def load_run(
    workdir: str | Path,
    step: int | None = None,
    *,
    weights: Literal["params", "ema"] | None = None,
    changes: Sequence[str] = (),
    methods: Mapping[str, type] = METHODS,
    cues: Mapping[str, type] = CUES,
) -> Predictor:
    """Open a trained run, ready to predict.

    Args:
      workdir: of the run, its `checkpoints` folder, or the folder of one step.
      step: which step; `None` takes the newest, or the one that `workdir` names.
      weights: the trained parameters, or their running average; `None` takes those that are the method's detector.
      changes: to how it is tested and where its files lie, such as "nms_thr=0.4" and "data.root=/data/VOCdevkit".
      methods: name -> class, a frozen dataclass each.
      cues: name -> class of the cue sources.

    Raises:
      DataError: if there is no such checkpoint, it is damaged, of version 0.1, or has no running average.
      ConfigError: for a change that is not possible.
    """
    params, extras, metadata = load_checkpoint(workdir, step=step, weights=weights)
    config = build.read_config(metadata["config"], methods=methods, cues=cues)
    config = build.change(config, changes)
    class_names = tuple(metadata["class_names"])
    count = len(class_names)
    method = build.method(config, num_classes=count, max_classes=count, max_targets=1)
    return Predictor.configured(config, method, params, extras, class_names, metadata)


def train(
    config: RunConfig, workdir: str | Path, *, resume_command: str = "the same command"
) -> TrainState:
    """Train as a configuration says, in a workdir; resume the run that is in it.

    The workdir gets config.json, metrics.jsonl, tensorboard/, checkpoints/ and pictures/ of fixed training images
    with their pseudo boxes.

    Args:
      config: from `build.read_config`.
      workdir: folder of the run.
      resume_command: what to type to go on, for messages.

    Returns:
      The state after the last update.

    Raises:
      ConfigError: for a configuration that the data do not suit, or that is not the one of the run in the workdir.
      DataError: if the data, the weights to start from or the checkpoints cannot be read.
      NonFiniteError: if a loss, gradient or parameter became infinite or not a number.
      Interrupted: after a signal, once saved.
    """
    workdir, log, settings = Path(workdir), config.log, config.train

    # -- data and method
    data = TrainingData.read(config)
    class_names = data.image_set.class_names
    method = build.method(
        config,
        num_classes=len(class_names),
        max_classes=data.max_classes,
        max_targets=data.max_targets,
    )
    tx, schedule = build.optimizer(config)
    validate = validation(config, method, class_names) if log.best else None

    # -- state: resumed, or drawn and warm-started
    mesh = make_mesh()
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        describe_run(config, method, data),
        keep_period=log.milestones_every or None,
        best=log.best,
        may_differ=tuple(f"config.{name}" for name in may_differ(config)),
    )
    if is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(config.to_json(), encoding="utf-8")
    state = init_state(
        method,
        tx,
        seed=config.seed,
        batch=data.example(),
        mesh=mesh,
        ema=settings.ema_decay is not None,
        warm_start=None,
    )
    state = checkpoints.restore(state) or state
    start = int(state.step)

    # -- the step, and what is written
    step = TrainStep(
        method,
        tx,
        seed=config.seed,
        mesh=mesh,
        accumulate=settings.accumulate,
        ema_decay=settings.ema_decay,
        schedule=schedule,
    )
    console, board, writers = ConsoleWriter(settings.num_steps), None, []
    if is_first():
        writers = [console, JsonlWriter(workdir / "metrics.jsonl", resume_step=start)]
    if is_first() and log.tensorboard:
        board = TensorBoardWriter(workdir / "tensorboard", resume_step=start)
        writers.append(board)
    describe(console.say, config, data, mesh, state)
    stream, batches = open_stream(config, data, state)
    hooks = []
    if log.pictures_every:
        hooks.append(pseudo_pictures(step, data, log, workdir / "pictures", board))

    # -- loop
    try:
        state = loop.train(
            step,
            state,
            batches,
            loop.Steps(
                total=settings.num_steps,
                log_interval=log.every,
                checkpoint_interval=log.checkpoint_every,
                profile=log.profile_steps or None,
            ),
            checkpoints=checkpoints,
            watchers=loop.Watchers(
                writers=writers,
                hooks=hooks,
                validate=validate,
                profile_folder=workdir / "profile",
                resume_command=resume_command,
                say=console.say,
            ),
            cues=build.cue_source(config, data.image_set, data.proposals),
        )
    finally:
        met = {name: count for name, count in stream.counts.items() if count}
        console.say(f"input: {met}")
        stream.close()
        checkpoints.close()
        for writer in writers:
            writer.close()
    console.say(f"compilations of the training step: {step.num_compilations()}")
    console.say(f"done: {workdir}; next: python scripts/evaluate.py --workdir {workdir}")
    return state
