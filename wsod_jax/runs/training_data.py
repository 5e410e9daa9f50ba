"""What a run trains on: images with their labels, boxes where its method trains on them, and proposals."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping

import jax

from wsod_jax import build
from wsod_jax.config.run_config import RunConfig, TrainOptions
from wsod_jax.data.input.loading import Cache, Loading
from wsod_jax.data.input.pipeline import TrainStream, train_batches, view_batches
from wsod_jax.data.input.plan import Order
from wsod_jax.data.input.proposal_rows import ProposalRules
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.data.records import (
    AnnotatedBoxes,
    BoxSet,
    ImageSet,
)
from wsod_jax.data.training_labels import check_single_label, is_single_label, training_images
from wsod_jax.errors import ConfigError
from wsod_jax.methods.base import Method
from wsod_jax.types import Batch

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """A training split: images with labels, boxes where the method trains on boxes, and proposals.

    Attributes:
      image_set: the images that the method learns from.
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
          ConfigError: if the method needs other streams, boxes that the reader does not have, or more classes.
          DataError: if the data cannot be read, or its labels are not the method's.
        """
        # Any sizes will do: only what the class declares is read.
        method = build.method(config, num_classes=1, max_classes=1, max_targets=1)
        split, boxes = config.data.train_split, None
        if method.supervision.get("train") == "boxes" and config.data.has_boxes:
            boxes = config.data.boxes(split)
        if boxes is None:
            images = config.data.images(split)
            images = training_images(images, uses_negatives=method.uses_negatives)
        else:
            images = boxes.images
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

    def batches(self, start_step: int = 0, cache: Cache | None = None) -> TrainStream:
        """Return the endless stream of updates from `start_step` on, a list of micro-batches each.

        Of several processes each has its own rows. Images that `cache` has are not decoded.
        """
        return train_batches(
            self.image_set if self.boxes is None else self.boxes,
            self.proposals,
            canvases=self.settings.canvases,
            order=Order(
                batch_size=self.settings.micro_batch,
                accumulate=self.settings.accumulate,
                flip=self.settings.flip,
                crop=self.settings.crop,
                jitter=self.settings.jitter,
                seed=self.seed,
            ),
            rules=self.rules,
            loading=Loading(
                loader=self.settings.loader,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                cache=cache,
            ),
            start_step=start_step,
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
            rules=self.rules,
            loading=Loading(loader="threads"),
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
    """Check that a method can learn from the labels of a set; log where it could make more of them.

    Raises:
      ConfigError: if it needs more classes than there are.
      DataError: if its softmax meets an image without exactly one class.
    """
    if len(image_set.class_names) < method.min_classes:
        raise ConfigError(
            f"{image_set.name} has the one class {image_set.class_names[0]!r}, from which config.method.name="
            f"{type(method).__name__.lower()!r} learns nothing: a softmax over one class is 1 whatever an image shows. "
            "'spn' and 'classifier' with config.method.activation='sigmoid' learn from one class and images without "
            "it; or add a second class."
        )
    if method.single_label:
        check_single_label(image_set)
    elif (
        hasattr(method, "activation")
        and len(image_set.class_names) > 1
        and is_single_label(image_set)
    ):
        logger.warning(
            "%s: every image shows one class; config.method.activation='softmax' makes use of that",
            image_set.name,
        )


def read_annotated_boxes(config: RunConfig, split: str) -> AnnotatedBoxes:
    """Read a split's annotated boxes, for evaluation; raise `ConfigError` if the reader has none."""
    if not config.data.has_boxes:
        raise ConfigError(
            f"config.data.reader: data read by {type(config.data).__name__} has no boxes, so nothing can be measured; "
            "wsod-jax predict draws detections without"
        )
    return config.data.annotated_boxes(split)


def read_proposals(config: RunConfig) -> ProposalSet | None:
    """Load the proposals; `None` for methods that use none."""
    return None if config.proposals is None else ProposalSet.load(config.proposals.path)
